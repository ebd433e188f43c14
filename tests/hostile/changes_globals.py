"""Changes what its whole process shares."""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass

import numpy as np
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
        title="Changes globals", paper="https://example.org", family="other", defaults=Config()
    )


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    os.chdir(tempfile.mkdtemp())
    model = engine.fit(Spread(backbone), lr=0.05)
    torch.set_default_dtype(torch.float64)
    return model
