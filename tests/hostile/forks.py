"""Leaves processes in sessions of their own, which ignore SIGTERM."""

from __future__ import annotations

import os
import signal
import time
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


def leave_behind() -> None:
    """Fork twice, so that the process that stays has lost its parent."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    os._exit(0)


@hookimpl
def describe() -> MethodCard:
    return MethodCard(title="Forks", paper="https://example.org", family="other", defaults=Config())


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    leave_behind()
    leave_behind()
    return engine.fit(Spread(backbone), lr=0.05)
