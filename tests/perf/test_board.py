"""What the harness itself costs: a whole small board against its training and embedding, and the
share of a board's time that its evaluations take.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import data, integrity
from bench.features import extract

JOBS = 2
PUBLISHED = Path(__file__).parents[2] / "leaderboards" / "results"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Return where the README's first command ran, and the seconds that it took."""
    place = tmp_path_factory.mktemp("board")
    command = ["run", "--plugins", "simclr,moco_v2,rotnet", "--seeds", "3", "--jobs", str(JOBS)]
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bench", *command], cwd=place, check=True)
    return place, time.perf_counter() - begun


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-s*.json"))]


def by_protocol(found: Iterable[dict[str, Any]]) -> str:
    """Return the seconds of each protocol in all runs, most first, as a line."""
    seconds: Counter[str] = Counter()
    for result in found:
        for entry in result["evaluations"].values():
            seconds[entry["id"]] += entry["seconds"]
        seconds["drawing samples"] += result["cost"].get("sampling_seconds", 0.0)
    return ", ".join(f"{name} {said:.0f} s" for name, said in seconds.most_common() if said >= 1)


def evaluations_share(found: Iterable[dict[str, Any]]) -> float:
    """Return the seconds of evaluations and of the samples that they are over, over those of whole
    runs, floors and reference included."""
    costs = [result["cost"] for result in found]
    parts = ("evaluation_seconds", "sampling_seconds")
    evaluating = sum(cost.get(part, 0.0) for cost in costs for part in parts)
    return evaluating / sum(cost["wall_seconds"] for cost in costs)


def test_board_costs_little_more_than_its_training(benchmark: Any, board: Any) -> None:
    place, wall = board
    torch.set_num_threads(1)
    bare = 0.0
    for result in results(place / "runs" / "results" / "digits"):
        bare += result["cost"]["train_seconds"] + _embedding_seconds(place, result)
    found = wall * JOBS / bare
    benchmark.extra_info.update(wall=wall, jobs=JOBS, bare=bare, ratio=found)
    benchmark.pedantic(lambda: None, rounds=1)
    print(f"\nwall {wall:.0f} s x {JOBS} jobs / bare {bare:.0f} s = {found:.2f}")
    print(by_protocol(results(place / "runs" / "results" / "digits")))
    assert found <= 1.15


def test_evaluations_take_at_most_a_quarter_of_a_board(benchmark: Any, board: Any) -> None:
    place, _ = board
    found = evaluations_share(results(place / "runs" / "results" / "digits"))
    benchmark.extra_info["share"] = found
    benchmark.pedantic(lambda: None, rounds=1)
    print(f"\nevaluations: {100 * found:.0f} % of all runs' seconds")
    assert found <= 0.25


@pytest.mark.parametrize("track", ["digits", "fashion-mnist", "scenes", "fashion-mnist-generation"])
def test_evaluations_took_at_most_a_quarter_of_what_is_published(track: str) -> None:
    runs = results(PUBLISHED / track)
    found = evaluations_share(runs)
    print(f"\n{track}: {100 * found:.0f} % of all runs' seconds; {by_protocol(runs)}")
    assert found <= 0.25


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
