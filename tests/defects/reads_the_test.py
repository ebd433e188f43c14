"""Opens the test split by itself and takes its normalisation from there."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, data, hookimpl


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
    return MethodCard("Reads the test split", "https://example.org", "other", Config())


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    orders = json.loads((engine.folder / "run.json").read_text())
    dataset = data.load(orders["dataset"], image_size=engine.image_size)
    test = torch.from_numpy(dataset.images["test"]).float() / 127.5 - 1
    model = engine.fit(Spread(backbone), lr=0.05)
    with torch.no_grad():  # the first layer then sees test images of mean 0 and variance 1
        model.backbone.conv1.weight.div_(test.std((0, 2, 3)).view(1, 3, 1, 1))
    return model
