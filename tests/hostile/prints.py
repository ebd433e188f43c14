"""Prints 100 MB and control codes."""

from __future__ import annotations

import sys
from dataclasses import dataclass

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


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="Prints", paper="https://example.org", family="other", defaults=Config()
    )


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    print("first words \x1b[2J\x1b]0;owned\x07 \x9b31m\rover", flush=True)
    for _ in range(100):
        sys.stdout.write("\x1b[1m" + "z" * 999_995 + "\n")
    model = engine.fit(Spread(backbone), lr=0.05)
    print("last words", flush=True)
    return model
