"""Supervised: classification by the labels, the reference above methods that have none.

Paper:   He et al., CVPR 2016. https://arxiv.org/abs/1512.03385
Source:  https://github.com/facebookarchive/fb.resnet.torch
Family:  reference
Departs: the rate falls at fixed shares of the budget, not on plateaus, as in the source;
         no scale or colour augmentation beside crop and flip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bench import Engine, MethodCard, hookimpl
from bench.augment import View, compose, horizontal_flip, pad_and_crop, random_resized_crop
from bench.layers import group_batch_norm


@dataclass(frozen=True)
class Config:
    """ResNet on ImageNet as in the source's 90 epochs."""

    crop_area: tuple[float, float] = (0.08, 1.0)  # source, datasets/imagenet.lua
    crop_padding: int | None = None  # pixels around the image, then a crop of its size, instead
    flip: bool = True  # Section 3.4
    optimizer: str = "sgd"
    base_lr: float | None = 0.1  # per 256 images, Section 3.4
    lr: float | None = None  # absolute, instead of base_lr
    momentum: float = 0.9  # Section 3.4; for sgd
    nesterov: bool = True  # source, train.lua; for sgd
    weight_decay: float = 1e-4  # Section 3.4
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)  # source: epochs 30 and 60 of 90; for multistep
    gamma: float = 0.1  # Section 3.4; for multistep
    warmup_epochs: float = 0.0


# https://github.com/kuangliu/pytorch-cifar, main.py: 200 epochs at batch 128. The paper's own
# (Section 4.2) has the same views and rate, weight decay 1e-4, and steps at 50 % and 75 %.
CIFAR10 = replace(
    Config(),
    crop_padding=4,
    base_lr=0.2,  # 0.1 at 128
    nesterov=False,
    weight_decay=5e-4,
    schedule="cosine",
)

# 30 epochs of a 0.3M-parameter ResNet at 32 px.
SMALL = Config(
    crop_area=(0.5, 1.0),  # a smaller part of a small gray image hides its class
    flip=False,  # a mirrored digit is another shape
    optimizer="adamw",
    base_lr=None,
    lr=2e-3,
    schedule="cosine",
    warmup_epochs=2.0,
)

# The same on colour images of 64 px, where a mirrored scene is a scene. The papers' smallest crops
# are for 224 px; square crops of more than a quarter of an image always overlap, and
# each shows some of an object that fills a quarter.
SMALL_COLOR = replace(SMALL, crop_area=(0.3, 1.0), flip=True)


class Classifier(nn.Module):
    """A backbone under one linear layer."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy; images (B, 3, H, W), labels int64 (B,)."""
        return F.cross_entropy(self.head(self.backbone(images)), labels)


def view(config: Config) -> View:
    """Return the training view: a random crop, mirrored half of the time."""
    flip = [horizontal_flip(p=0.5)] if config.flip else []
    if config.crop_padding is not None:
        return compose(pad_and_crop(padding=config.crop_padding), *flip)
    return compose(random_resized_crop(scale=config.crop_area), *flip)


def recipe(config: Config) -> dict[str, Any]:
    """Return what `fit` takes, without the fields that optimizer and schedule have no use for."""
    shared = ("optimizer", "base_lr", "lr", "weight_decay", "schedule", "warmup_epochs")
    sgd = ("momentum", "nesterov") if config.optimizer == "sgd" else ()
    steps = ("milestones", "gamma") if config.schedule == "multistep" else ()
    return {name: getattr(config, name) for name in (*shared, *sgd, *steps)}


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="Supervised",
        paper="https://arxiv.org/abs/1512.03385",
        family="reference",
        role="ceiling",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR, "cifar10": CIFAR10},
        search={
            "lr": ("log_uniform", 5e-4, 8e-3),
            "base_lr": ("log_uniform", 0.05, 0.8),
            "weight_decay": ("log_uniform", 1e-5, 1e-1),
        },
        uses_labels=True,
        departs="rate falls at fixed shares of the budget; crop and flip only",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = Classifier(group_batch_norm(backbone), engine.num_classes)
    return engine.fit(model, views=(view(config),), **recipe(config))
