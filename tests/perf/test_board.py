"""A whole small board against the training and embedding in it: what the harness itself costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import data, integrity
from bench.features import extract

JOBS = 2


def test_board_costs_at_most_thirteen_tenths_of_its_training(
    benchmark: Any, tmp_path: Path
) -> None:
    command = ["run", "--plugins", "simclr,moco_v2,rotnet", "--seeds", "3", "--jobs", str(JOBS)]

    def board() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bench", *command], cwd=tmp_path, check=True)
        return time.perf_counter() - begun

    wall = benchmark.pedantic(board, rounds=1)
    torch.set_num_threads(1)
    bare = 0.0
    for path in sorted(tmp_path.glob("runs/results/digits/*-s*.json")):
        result = json.loads(path.read_text())
        bare += result["cost"]["train_seconds"] + _embedding_seconds(tmp_path, result)
    benchmark.extra_info.update(wall=wall, jobs=JOBS, bare=bare, ratio=wall * JOBS / bare)
    print(f"\nwall {wall:.0f} s x {JOBS} jobs / bare {bare:.0f} s = {wall * JOBS / bare:.2f}")
    assert wall < 300
    assert wall * JOBS <= 1.3 * bare


def _embedding_seconds(place: Path, result: dict[str, Any]) -> float:
    """Return how long one core takes to embed all splits by the run's backbone."""
    spec = result["spec"]
    if spec["backbone"] is None:
        return 0.0
    dataset = data.load("digits", image_size=spec["image_size"])
    split = data.split(dataset, spec["seed"])
    backbone = integrity.load_backbone(
        spec["backbone"],
        spec["image_size"],
        place / "runs" / result["run_id"] / "backbone.safetensors",
        result["artifacts"]["backbone.safetensors"]["sha256"],
    )
    begun = time.perf_counter()
    extract(backbone, dataset, split)
    return time.perf_counter() - begun
