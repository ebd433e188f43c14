"""Searches the whole memory of its process for bytes that only training or test images hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl

# The complement of what is searched for, so that this file itself is not found.
MARKS = {
    "train": bytes(255 - (7 * i + 3) % 251 for i in range(64)),
    "test": bytes(255 - (11 * i + 5) % 241 for i in range(64)),
}


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Spread(nn.Module):
    """A backbone whose features are drawn to unit variance: something to train, quickly."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return (self.backbone(images).var(0) - 1).square().mean()


def holds(mark: bytes) -> bool:
    """Return whether any readable page of this process holds the complement of `mark`.

    The complement is made byte by byte wherever its first four fit, never as a whole.
    """
    first = re.compile(re.escape(bytes(255 - value for value in mark[:4])), re.DOTALL)
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            if "r" not in rights or "[v" in line or ".so" in line:  # the kernel's, and libraries
                continue
            start, end = (int(part, 16) for part in place.split("-"))
            for begin in range(start, end, 2**24):
                try:
                    memory.seek(begin)
                    page = memory.read(min(2**24, end - begin) + len(mark))
                except (OSError, OverflowError):
                    continue
                for hit in first.finditer(page):
                    here = page[hit.start() : hit.start() + len(mark)]
                    if len(here) == len(mark) and all(
                        a == 255 - b for a, b in zip(here, mark, strict=True)
                    ):
                        return True
    return False


@hookimpl
def describe() -> MethodCard:
    return MethodCard("Scans memory", "https://example.org", "other", Config())


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    model = engine.fit(Spread(backbone), lr=0.05)
    found = [name for name, mark in MARKS.items() if holds(mark)]
    print(f"held: {' and '.join(found) or 'nothing'}")
    return model
