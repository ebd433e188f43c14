"""MoCo v2: improved baselines with momentum contrastive learning.

Paper:   Chen et al., 2020. https://arxiv.org/abs/2003.04297 (MoCo: https://arxiv.org/abs/1911.05722)
Source:  https://github.com/facebookresearch/moco
Family:  contrastive
Departs: the queue holds at most half of the training images; BatchNorm normalises
         `batch_norm_groups` parts of the batch apart, on however many processes, in place of the
         source's cards; its running statistics are the mean over all parts.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, Unsupported, hookimpl
from bench.augment import (
    View,
    color_jitter,
    compose,
    gaussian_blur,
    grayscale,
    horizontal_flip,
    random_resized_crop,
)
from bench.distributed import average_buffers, broadcast, gather, rank, world_size
from bench.layers import ema_update, projection_mlp, split_batch_norm
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


# 30 epochs of a 0.3M-parameter ResNet at 32 px. Half-life and images per BatchNorm group are those
# of the authors' CIFAR-10 demo: 0.99 per step at 98 steps an epoch; 8 groups of a batch of 512.
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
        self.register_buffer("queue", unit(torch.randn(queue_size, config.head_features)))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def embed(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries of the first view and keys of the second, (B, D) each, of length 1."""
        queries = unit(self.head(self.backbone(view0)))
        with torch.no_grad():
            keys = unit(self.shuffled_keys(view1))
        return queries, keys

    def loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return InfoNCE (MoCo, Eq. 1) with the queue as negatives."""
        return info_nce(queries, keys, self.queue, self.temperature)

    def shuffled_keys(self, images: Tensor) -> Tensor:
        """Encode the images of all processes in another order than the queries (Section 3.3).

        BatchNorm's statistics then tell no key which query shared its group of images.
        """
        everyone = gather(images)  # (N, 3, H, W) over all processes
        order = broadcast(torch.randperm(len(everyone), device=images.device))
        mine = order.chunk(world_size())[rank()]
        keys = gather(self.key_encoder(everyone[mine]))  # (N, D), in shuffled order
        return keys[order.argsort()].chunk(world_size())[rank()]

    @torch.no_grad()
    def after_step(self, queries: Tensor, keys: Tensor) -> None:
        """Put the step's keys into the queue, share running statistics, move the key encoder.

        The source moves the key encoder at the start of a step, before it makes the keys. That
        is the end of the step before; in the first step both encoders are equal and nothing moves.
        """
        keys = gather(keys)
        rows = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, keys.to(self.queue.dtype))
        self.pointer.add_(len(keys)).remainder_(len(self.queue))
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


def queue_size(config: Config, engine: Engine) -> int:
    """Return the queue's length: whole batches, at most half of the training images."""
    most = min(config.queue_size, engine.num_images // 2)
    return max(1, most // engine.batch_size) * engine.batch_size


def momentum(config: Config, engine: Engine) -> float:
    """Return m, from the half-life in epochs if one is given."""
    if config.half_life_epochs is None:
        return config.momentum
    steps = config.half_life_epochs * (engine.num_images // engine.batch_size)
    return 0.5 ** (1 / steps)


def groups_here(config: Config) -> int:
    """Return the groups into which each process splits its part of the batch.

    Raises:
        Unsupported: the processes cannot share the groups evenly; another number of groups would
            be another training.
    """
    groups, processes = config.batch_norm_groups, world_size()
    if groups % processes:
        raise Unsupported(f"{groups} BatchNorm groups do not divide among {processes} processes")
    return groups // processes


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
        recipes={"small": SMALL},
        search={
            "lr": ("log_uniform", 5e-4, 8e-3),
            "temperature": ("log_uniform", 0.05, 1.0),
            "weight_decay": ("log_uniform", 1e-6, 1e-2),
        },
        departs="queue of at most half of the training images; BatchNorm by groups, not cards",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = MoCo(backbone, config, queue_size(config, engine), momentum(config, engine))
    split_batch_norm(model, groups_here(config))
    engine.log(log_candidates=math.log(len(model.queue) + 1))
    views = (view(config), view(config))
    return engine.fit(model, views=views, after_step=model.after_step, **recipe(config))
