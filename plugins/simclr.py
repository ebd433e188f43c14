"""SimCLR: a simple framework for contrastive learning of visual representations.

Paper:   Chen et al., ICML 2020. https://arxiv.org/abs/2002.05709
Source:  https://github.com/google-research/simclr
Family:  contrastive
Departs: nothing in the defaults; the recipe "small" has AdamW, milder crops and no blur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.augment import (
    View,
    color_jitter,
    compose,
    gaussian_blur,
    grayscale,
    horizontal_flip,
    random_resized_crop,
)
from bench.layers import group_batch_norm, projection_mlp
from bench.losses import nt_xent


@dataclass(frozen=True)
class Config:
    """ResNet-50 on ImageNet at batch 4096, Section 2.2 and Appendix B.6."""

    crop_area: tuple[float, float] = (0.08, 1.0)  # Appendix A
    flip: bool = True  # Appendix A
    color_strength: float = 1.0  # Appendix A
    blur: float = 0.5  # probability, Appendix A
    temperature: float = 0.1  # Table 5
    head: str = "mlp"  # none, linear or mlp, Section 4.2
    head_depth: int = 2  # linear layers of the mlp; version 2 of the paper has 3
    head_features: int = 128  # Section 4.2
    optimizer: str = "lars"  # Section 2.2
    base_lr: float | None = 0.3  # per 256 images, Section 2.2
    lr: float | None = None  # absolute, instead of base_lr
    weight_decay: float = 1e-6  # Section 2.2; the source's default is 1e-4
    warmup_epochs: float = 10.0  # Section 2.2


# Appendix B.9: weaker colour, no blur, temperature 0.5. The rate is the source's README's for batch
# 512, --learning_rate=1.0, which like ImageNet's 0.3 is per 256 images.
CIFAR10 = replace(Config(), color_strength=0.5, blur=0.0, temperature=0.5, base_lr=1.0)

# 30 epochs of a 0.3M-parameter ResNet at 32 px.
SMALL = Config(
    crop_area=(0.5, 1.0),  # a smaller part of a small gray image hides its class
    flip=False,  # a mirrored digit is another shape
    color_strength=0.5,
    blur=0.0,
    temperature=0.2,
    optimizer="adamw",
    base_lr=None,
    lr=2e-3,
    weight_decay=1e-4,
    warmup_epochs=2.0,
)

# The same on colour images of 64 px, where a mirrored scene is a scene. The papers' smallest crops
# and their blur are for 224 px; square crops of more than a quarter of an image always overlap, and
# each shows some of an object that fills a quarter.
SMALL_COLOR = replace(SMALL, crop_area=(0.3, 1.0), flip=True)


class SimCLR(nn.Module):
    """A backbone and a projection head; two views of an image attract each other."""

    def __init__(self, backbone: nn.Module, config: Config) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = projection_head(backbone.num_features, config)
        self.temperature = config.temperature

    def embed(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projections of both views, (B, D) each.

        Both go through the network as one batch of 2B, as in the source: BatchNorm's statistics
        are those of the two views together.
        """
        features = self.backbone(torch.cat([view0, view1]))  # h, (2B, F)
        z0, z1 = self.head(features).chunk(2)
        return z0, z1

    def loss(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Return the NT-Xent loss (Eq. 1) over the views of all processes."""
        return nt_xent(z0, z1, self.temperature)


def projection_head(in_features: int, config: Config) -> nn.Module:
    """Return g of Section 4.2, with the source's BatchNorm after every linear layer.

    Raises:
        ValueError: config.head is none of none, linear, mlp.
    """
    if config.head == "none":
        return nn.Identity()
    if config.head == "linear":
        return projection_mlp(in_features, 0, config.head_features, depth=1, out_norm=True)
    if config.head == "mlp":
        depth, width = config.head_depth, config.head_features
        return projection_mlp(
            in_features, in_features, width, depth=depth, norm=True, out_norm=True
        )
    raise ValueError(f"head is {config.head!r}; expected none, linear or mlp")


def view(config: Config) -> View:
    """Return the augmentation of Appendix A; each view of an image draws it anew."""
    strength = config.color_strength
    flip = [horizontal_flip(p=0.5)] if config.flip else []
    blur = [gaussian_blur(sigma=(0.1, 2.0), p=config.blur)] if config.blur else []
    return compose(
        random_resized_crop(scale=config.crop_area),
        *flip,
        color_jitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        grayscale(p=0.2),
        *blur,
    )


def recipe(config: Config) -> dict[str, Any]:
    """Return what `fit` takes; norms and biases have no weight decay, as in the source."""
    names = ("optimizer", "base_lr", "lr", "weight_decay", "warmup_epochs")
    return {name: getattr(config, name) for name in names} | {
        "schedule": "cosine",
        "decay_norm_and_bias": False,
    }


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="SimCLR",
        paper="https://arxiv.org/abs/2002.05709",
        family="contrastive",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR, "cifar10": CIFAR10},
        search={
            "lr": ("log_uniform", 5e-4, 8e-3),
            "base_lr": ("log_uniform", 0.25, 4.0),
            "temperature": ("log_uniform", 0.05, 1.0),
            "weight_decay": ("log_uniform", 1e-6, 1e-2),
        },
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = group_batch_norm(SimCLR(backbone, config))
    engine.log(log_candidates=math.log(2 * engine.batch_size - 1))
    return engine.fit(model, views=(view(config), view(config)), **recipe(config))
