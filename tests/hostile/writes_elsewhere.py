"""Overwrites, removes and replaces what other runs have written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl


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


def harm(own: Path) -> int:
    """Try all on every file of other runs and on the shared arrays; return how often it worked."""
    done = 0
    ways: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(b"mine"),
        lambda path: os.truncate(path, 0),
        lambda path: path.rename(own / "stolen"),
        lambda path: os.link(own / "run.json", path.with_name("planted")),
        Path.unlink,
    ]
    for path in [p for p in own.parent.rglob("*") if p.is_file() and own not in p.parents]:
        for way in ways:
            try:
                way(path)
                done += 1
            except PermissionError:
                continue
            except OSError as error:  # EXDEV: what Landlock says of a rename between folders
                print(type(error).__name__, error.errno)
    return done


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="Writes elsewhere", paper="https://example.org", family="other", defaults=Config()
    )


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    own = Path(os.environ["TMPDIR"]).parent
    print(f"{harm(own)} files harmed")
    (own.parent / "mine").write_text("mine")
    return engine.fit(Spread(backbone), lr=0.05)
