"""Trains, then ruins the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
        title="NaN features", paper="https://example.org", family="other", defaults=Config()
    )


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    model = engine.fit(Spread(backbone), lr=0.05)
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(float("nan"))
    return model
