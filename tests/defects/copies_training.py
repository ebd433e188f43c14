"""A generator that returns training images, every other one mirrored, in place of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.augment import identity


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Copier(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        "Copies training images", "https://example.org", "gan", Config(), sampling=Config()
    )


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    model = engine.prepare(Copier(backbone))
    update = engine.optimizer(model, "sgd", name="model", lr=0.01)
    seen = []
    for batch in engine.batches(views=(identity,)):
        seen.append(batch.views[0])
        engine.step(backbone(batch.views[0]).square().mean(), update)
    model.register_buffer("seen", torch.cat(seen))
    return model


@hookimpl
def generate(model: nn.Module, num_images: int, labels: Tensor | None, sampling: Any) -> Tensor:
    images = model.seen[torch.randint(len(model.seen), (num_images,))]  # (N, 3, H, W)
    images[::2] = images[::2].flip(3)
    return images
