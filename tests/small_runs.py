"""Runs of a second: a tiny data set, a tiny track, and plans of plugins on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import plan
from bench.manager import method_name
from bench.probe import probe

HOSTILE = Path(__file__).parent / "hostile"
CLASSES = 4
TRACK = """
title = "Small runs"
description = "Forty-step runs for tests."
smoke = true
seeds = [0]
recipe = "small"
batch_size = 24
precision = "fp32"
floors = []

[data]
name = "npz:{data}"
image_size = 16

[backbone]
name = "{backbone}"
{args}
stem = {{ kernel = 3, stride = 2, max_pool = false }}

[budget]
steps = {steps}

[evaluations.knn]
"""
NARROW = "args = { layers = [1, 1, 1, 1], channels = [8, 8, 8, 8] }"


def write_data(path: Path, *, train: int = 120, test: int = 40, size: int = 16) -> Path:
    """Write an npz data set of noisy stripes, one orientation and colour per class."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        labels = np.arange(count) % CLASSES
        rows, columns = np.mgrid[:size, :size]
        waves = np.where(labels[:, None, None] % 2, rows, columns) * (1 + labels[:, None, None])
        images = 128 + 60 * np.sin(waves)[..., None] + generator.normal(0, 20, (*waves.shape, 3))
        arrays[f"x_{part}"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"y_{part}"] = labels
    np.savez(path, **arrays)
    return path


def specs(
    plugins: list[str],
    folder: Path,
    *,
    steps: int,
    backbone: str = "resnet18",
    args: str = NARROW,
) -> list[plan.RunSpec]:
    """Return the runs of `plugins`, names or files, that can be loaded; data lie in `folder`."""
    data = folder / "small.npz"
    if not data.exists():
        write_data(data)
    file = folder / f"small-{steps}-{backbone}.toml"
    file.write_text(TRACK.format(data=data, backbone=backbone, args=args, steps=steps))
    track = plan.load_track(str(file))
    answer = probe(
        plugins,
        recipe=track.recipe,
        overrides={},
        data={"name": track.data["name"], "image_size": track.image_size},
        seeds=[0],
        runs_dir=folder,
    )
    methods = {
        method_name(request): facts | {"plugin": request}
        for request, facts in answer["methods"].items()
        if not facts["error"]
    }
    return plan.plan(track, methods, answer["data"], seeds=[0])


def hostile(*names: str) -> list[str]:
    """Return the paths of local plugin files by their stems."""
    return [str(HOSTILE / f"{name}.py") for name in names]
