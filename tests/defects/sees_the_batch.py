"""Returns a backbone whose features depend on the other images of a batch, and on those before.

`remembered` adds a buffer for what it has seen; without, the keys are those of a sound backbone.
"""

from __future__ import annotations

import types
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl


@dataclass(frozen=True)
class Config:
    remembered: bool = False


class Spread(nn.Module):
    """A backbone whose features are drawn to unit variance: something to train, quickly."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return (self.backbone(images).var(0) - 1).square().mean()


def forward(self: nn.Module, images: Tensor) -> Tensor:
    """Return features that BatchNorm normalises over this very batch."""
    for layer in self.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    features = self.forward_head(self.forward_features(images))
    if hasattr(self, "memory"):
        self.memory.add_(features.mean(0).detach())
        features = features + self.memory
    return features


@hookimpl
def describe() -> MethodCard:
    return MethodCard("Sees the batch", "https://example.org", "other", Config())


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = engine.fit(Spread(backbone), lr=0.05)
    if config.remembered:
        backbone.register_buffer("memory", torch.zeros(backbone.num_features))
    backbone.forward = types.MethodType(forward, backbone)
    return model
