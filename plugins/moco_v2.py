"""MoCo v2: improved baselines with momentum contrastive learning.

Paper:   Chen et al., 2020. https://arxiv.org/abs/2003.04297 (MoCo: https://arxiv.org/abs/1911.05722)
Source:  https://github.com/facebookresearch/moco, and its demo, colab/moco_cifar10_demo.ipynb
Family:  contrastive
Departs: the queue holds at most half of the training images; BatchNorm normalises
         `batch_norm_groups` parts of the batch apart, on however many processes, in place of the
         source's cards; its running statistics are the mean over all parts.
"""

from __future__ import annotations

import copy
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
from bench.distributed import average_buffers, encode_shuffled
from bench.layers import (
    ema_momentum,
    ema_update,
    enqueue,
    groups_per_process,
    projection_mlp,
    queue_length,
    split_batch_norm,
)
from bench.losses import info_nce, unit


@dataclass(frozen=True)
class Config:
    """ResNet-50 on ImageNet at batch 256 for 200 epochs: main_moco.py --mlp --moco-t 0.2
    --aug-plus --cos."""

    queue_size: int = 65536  # K
    momentum: float = 0.999  # m
    half_life_epochs: float | None = None  # of the moving average, instead of momentum
    temperature: float = 0.2
    head_features: int = 128
    symmetric: bool = False  # the demo's option: both views ask, at twice the passes
    batch_norm_groups: int = 8  # the source's cards, over all processes; 1: no split
    crop_area: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # with probability 0.8
    blur: float = 0.5  # probability
    optimizer: str = "sgd"  # with momentum 0.9
    base_lr: float | None = 0.03  # per 256 images
    lr: float | None = None  # absolute, instead of base_lr
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0


# The authors' demo: ResNet-18 at batch 512 (rate 0.06) for 200 epochs. Its head is linear; here it
# is version 2's, which has no recipe for CIFAR-10 of its own.
CIFAR10 = replace(
    Config(),
    queue_size=4096,
    momentum=0.99,
    temperature=0.1,
    crop_area=(0.08, 1.0),
    blur=0.0,
    weight_decay=5e-4,
)

# 30 epochs of a 0.3M-parameter ResNet at 32 px. Half-life and images per BatchNorm group are those
# of the demo: 0.99 per step at 97 steps an epoch; 8 groups of a batch of 512.
SMALL = Config(
    queue_size=4096,
    half_life_epochs=0.7,
    batch_norm_groups=2,  # 64 images each at batch 128
    crop_area=(0.5, 1.0),  # a smaller part of a small gray image hides its class
    flip=False,  # a mirrored digit is another shape
    blur=0.0,
    optimizer="adamw",
    base_lr=None,
    lr=2e-3,
    warmup_epochs=2.0,
)

# The same on colour images of 64 px, where a mirrored scene is a scene. The papers' smallest crops
# and their blur are for 224 px; square crops of more than a quarter of an image always overlap, and
# each shows some of an object that fills a quarter.
SMALL_COLOR = replace(SMALL, crop_area=(0.3, 1.0), flip=True)


class MoCo(nn.Module):
    """A query encoder, its moving average that makes the keys, and a queue of past keys."""

    def __init__(
        self, backbone: nn.Module, config: Config, queue_size: int, momentum: float
    ) -> None:
        super().__init__()
        width = backbone.num_features
        self.backbone = backbone
        self.head = projection_mlp(width, width, config.head_features)
        self.key_encoder = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        self.key_encoder.requires_grad_(False)
        self.momentum, self.temperature = momentum, config.temperature
        self.symmetric = config.symmetric
        self.register_buffer("queue", unit(torch.randn(queue_size, config.head_features)))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def embed(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, ...]:
        """Return queries of the first view and keys of the second, (B, D) each, of length 1.

        If symmetric, queries of the second view and keys of the first follow.
        """
        directions = [(view0, view1), (view1, view0)][: 1 + self.symmetric]
        embeddings: list[Tensor] = []
        for asking, asked in directions:
            embeddings.append(unit(self.head(self.backbone(asking))))
            # Shuffled: no key can be told by the images that its query shared BatchNorm with.
            embeddings.append(unit(encode_shuffled(self.key_encoder, asked)))
        return tuple(embeddings)

    def loss(self, *embeddings: Tensor) -> Tensor:
        """Return InfoNCE (MoCo, Eq. 1) with the queue as negatives, summed over the directions."""
        pairs = zip(embeddings[::2], embeddings[1::2], strict=True)
        return sum(info_nce(*pair, self.queue, self.temperature) for pair in pairs)

    @torch.no_grad()
    def after_step(self, *embeddings: Tensor) -> None:
        """Put the step's keys into the queue, share running statistics, move the key encoder.

        The source moves the key encoder at the start of a step, before it makes the keys. That
        is the end of the step before; in the first step both encoders are equal and nothing moves.
        """
        for keys in embeddings[1::2]:
            enqueue(self.queue, self.pointer, keys)
        average_buffers([*self.backbone.buffers(), *self.head.buffers()])
        ema_update(self.key_encoder, nn.Sequential(self.backbone, self.head), self.momentum)


def view(config: Config) -> View:
    """Return aug+ of version 2; both views draw it anew."""
    flip = [horizontal_flip(p=0.5)] if config.flip else []
    blur = [gaussian_blur(sigma=(0.1, 2.0), p=config.blur)] if config.blur else []
    return compose(
        random_resized_crop(scale=config.crop_area),
        color_jitter(*config.jitter, p=0.8),
        grayscale(p=0.2),
        *blur,
        *flip,
    )


def recipe(config: Config) -> dict[str, Any]:
    """Return what `fit` takes."""
    names = ("optimizer", "base_lr", "lr", "weight_decay", "warmup_epochs")
    return {name: getattr(config, name) for name in names} | {"schedule": "cosine"}


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="MoCo v2",
        paper="https://arxiv.org/abs/2003.04297",
        family="contrastive",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR, "cifar10": CIFAR10},
        search={
            "lr": ("log_uniform", 5e-4, 8e-3),
            "base_lr": ("log_uniform", 0.0075, 0.12),
            "temperature": ("log_uniform", 0.05, 1.0),
            "weight_decay": ("log_uniform", 1e-6, 1e-2),
        },
        departs="queue of at most half of the training images; BatchNorm by groups, not cards",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    keys_per_step = (1 + config.symmetric) * engine.batch_size
    length = queue_length(config.queue_size, engine.num_images, keys_per_step)
    epoch = engine.num_images // engine.batch_size  # steps
    momentum = ema_momentum(config.momentum, config.half_life_epochs, epoch)
    model = MoCo(backbone, config, length, momentum)
    split_batch_norm(model, groups_per_process(config.batch_norm_groups))
    engine.log(log_candidates=math.log(length + 1))
    views = (view(config), view(config))
    return engine.fit(model, views=views, after_step=model.after_step, **recipe(config))
