"""RotNet: unsupervised representation learning by predicting image rotations.

Paper:   Gidaris et al., ICLR 2018. https://arxiv.org/abs/1803.07728
Source:  https://github.com/gidariss/FeatureLearningRotNet
Family:  pretext
Departs: one linear layer on the backbone's pooled features predicts the rotation, whatever the
         backbone; the paper's networks are NIN (CIFAR-10) and AlexNet (ImageNet).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import Engine, MethodCard, hookimpl
from bench.augment import View, compose, horizontal_flip, pad_and_crop, random_resized_crop
from bench.layers import group_batch_norm


@dataclass(frozen=True)
class Config:
    """The source's recipe on ImageNet, config/ImageNet_RotNet_AlexNet.py: 50 epochs, batch 192."""

    crop_area: tuple[float, float] = (0.08, 1.0)  # source, dataloader.py: torchvision's default
    crop_padding: int | None = None  # pixels around the image, then a crop of its size, instead
    flip: bool = True  # source, dataloader.py
    optimizer: str = "sgd"
    base_lr: float | None = 0.4 / 3  # per 256 images: 0.1 at the source's 192
    lr: float | None = None  # absolute, instead of base_lr
    momentum: float = 0.9  # for sgd
    nesterov: bool = True  # for sgd
    weight_decay: float = 5e-4
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)  # epochs 15, 30, 45 of 50; for multistep
    gamma: float = 0.1  # for multistep
    warmup_epochs: float = 0.0


# config/CIFAR10_RotNet_NIN4blocks.py: 200 epochs at batch 128.
CIFAR10 = replace(
    Config(),
    crop_padding=4,  # dataloader.py
    base_lr=0.2,  # 0.1 at 128
    milestones=(0.3, 0.6, 0.8),  # epochs 60, 120, 160
    gamma=0.2,
)

# 30 epochs of a 0.3M-parameter ResNet at 32 px.
SMALL = replace(
    CIFAR10,
    flip=False,  # a mirrored digit is another shape
    optimizer="adamw",
    base_lr=None,
    lr=2e-3,
    weight_decay=1e-4,
    schedule="cosine",
    warmup_epochs=2.0,
)

# The same on colour images of 64 px, where a mirrored scene is a scene.
SMALL_COLOR = replace(SMALL, flip=True)


class RotNet(nn.Module):
    """A backbone and a linear layer that tell by which of four angles an image was turned."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean cross-entropy over all four rotations of each image, (B, 3, H, H)."""
        turned = rotations(images)
        turns = torch.arange(4, device=images.device).repeat_interleave(len(images))  # (4B,)
        return F.cross_entropy(self.head(self.backbone(turned)), turns)


def rotations(images: Tensor) -> Tensor:
    """Return the images turned by 0, 90, 180 and 270 degrees, (4B, 3, H, H), angle by angle.

    The paper's Section 3.1: all four copies in one batch do better than one at random. Each turn
    is a flip and a transposition, so that no resampling gives the angle away (Section 2.2).
    """
    return torch.cat([torch.rot90(images, turns, dims=(2, 3)) for turns in range(4)])


def view(config: Config) -> View:
    """Return the view that is turned: a random crop, mirrored half of the time."""
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
        title="RotNet",
        paper="https://arxiv.org/abs/1803.07728",
        family="pretext",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR, "cifar10": CIFAR10},
        search={
            "lr": ("log_uniform", 5e-4, 8e-3),
            "base_lr": ("log_uniform", 0.05, 0.8),
            "weight_decay": ("log_uniform", 1e-5, 1e-1),
        },
        departs="the track's backbone under one linear layer; the paper's are NIN and AlexNet",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = RotNet(group_batch_norm(backbone))
    return engine.fit(model, views=(view(config),), **recipe(config))
