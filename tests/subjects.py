"""Subjects for evaluations: gratings in six directions, and an untrained net to judge on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bench import backbones, features
from bench.data import Dataset, Split
from bench.evaluations import Subject

CLASSES, SIZE = 6, 16
RESNET = {
    "name": "test_resnet",
    "args": {},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}
VIT = {"name": "test_vit", "args": {"patch_size": 4}, "stem": None}


def gratings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 (N, 1, 16, 16) and labels: the class is the direction, the phase is random."""
    generator = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(count) % CLASSES
    angles = np.pi * labels / CLASSES
    phases = generator.uniform(0, 2 * np.pi, count)
    y, x = np.mgrid[:SIZE, :SIZE]
    along = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    waves = np.sin(along * 1.2 + phases[:, None, None])
    pixels = 128 + 45 * waves + generator.normal(0, 70, waves.shape)
    return pixels.clip(0, 255).astype(np.uint8)[:, None], labels


Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""(count, seed) -> images and labels of six classes."""


def dataset(
    train: int = 240, validation: int = 60, test: int = 60, draw: Draw = gratings
) -> Dataset:
    """Return a data set with a validation split of its own."""
    sizes = {"train": train, "val": validation, "test": test}
    parts = {name: draw(count, seed) for seed, (name, count) in enumerate(sizes.items(), 1)}
    return Dataset(
        draw.__name__,
        {split: images for split, (images, _) in parts.items()},
        {split: labels for split, (_, labels) in parts.items()},
        tuple("abcdef"),
        "made here",
        "made here",
        sha256="",
    )


def loader(spec: dict, seed: int = 0) -> Callable[[], nn.Module]:
    """Return what loads an untrained backbone, always the same."""
    torch.manual_seed(seed)
    return partial(_loaded, spec, backbones.build(spec, SIZE).state_dict())


def _loaded(spec: dict, weights: dict[str, Tensor]) -> nn.Module:
    backbone = backbones.build(spec, SIZE)
    backbone.load_state_dict(weights)
    return backbone


def subject(
    spec: dict = RESNET,
    *,
    data: Dataset | None = None,
    load: Callable[[], nn.Module] | None = None,
    test: bool = True,
) -> Subject:
    """Return a subject whose backbone comes from `load`, by default untrained."""
    data = data or dataset()
    load = load or loader(spec)
    split = Split(
        np.arange(len(data.labels["train"])), np.arange(len(data.labels["val"])), True, ""
    )
    seen = features.extract(load(), data, split, test=test)
    return Subject(seen, load, data, split, "rgb", SIZE, test, threads=1)
