"""Results as a run would leave them, with answers drawn from a seeded generator."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from bench.identity import protocol_hash, run_id
from bench.packing import pack_bits, pack_counts, pack_predictions, unpack_bits
from bench.results import Result, parse

LINEAR = protocol_hash("linear_probe", 1, {"values": 13})
FEW = protocol_hash("few_labels", 1, {"folds": 5})
KNN = protocol_hash("knn", 1, {"temperature": 0.07})
NUM_IMAGES = 4400
LABELS = np.arange(NUM_IMAGES) % 10


def track(**changes: Any) -> dict[str, Any]:
    """Return a track that ranks, on five seeds."""
    return {
        "id": "clothes",
        "title": "Clothes",
        "description": "Small gray pictures of clothes in ten classes.",
        "smoke": False,
        "seeds": [0, 1, 2, 3, 4],
        "trials": 0,
        "data": "fashion-mnist",
        "licence": "MIT",
        "backbone": "resnet18, one block per stage, stem 3x3 stride 2",
        "image_size": 32,
        "budget": "216 steps",
        "batch_size": 128,
        "precision": "fp32",
        "floors": ["pixels", "untrained"],
        "reference": "labels",
        "protocols": [
            {"id": "linear_probe", "version": 1, "hash": LINEAR, "headline": "best"},
            {"id": "knn", "version": 1, "hash": KNN},
        ],
    } | changes


def result(
    method: str,
    seed: int,
    accuracy: float = 0.9,
    *,
    status: str = "done",
    reason: str = "",
    config: dict[str, Any] | None = None,
    row: dict[str, Any] | None = None,
    cost: dict[str, Any] | None = None,
    track_id: str = "clothes",
    linear: str = LINEAR,
    linear_version: int = 1,
    draw: str | None = None,
    **changes: Any,
) -> Result:
    """Return a run whose answers are right with chance `accuracy`; `draw` names their stream."""
    spec = {
        "schema": 1,
        "method": method,
        "config": config or {"temperature": 0.2},
        "seed": seed,
        "data": {"name": "fashion-mnist", "sha256": "d" * 64, "split": f"{seed % 5:064d}"},
        "image_size": 32,
        "budget": {"steps": 216},
        "batch_size": 128,
        "precision": "fp32",
        "threads": 1,
    }
    generator = np.random.default_rng([zlib.crc32((draw or method).encode()), seed])
    hardness = np.random.default_rng(0).uniform(size=NUM_IMAGES)
    evaluations = {}
    if status == "done":
        best, best_entry = _answers(generator, hardness, accuracy)
        last, last_entry = _answers(generator, hardness, accuracy - 0.02)
        near, near_entry = _answers(generator, hardness, accuracy - 0.05)
        evaluations[linear] = {
            "id": "linear_probe",
            "version": linear_version,
            "settings": {"values": 13},
            "chosen": {"last": {"l2": 0.01}, "best": {"stage": "layer3", "l2": 0.01}},
            "metrics": {"best_top1": best, "last_top1": last, "best_top5": 100.0},
            "predictions": {"best": best_entry[0], "last": last_entry[0]},
            "correct": {"best": best_entry[1], "last": last_entry[1]},
        }
        evaluations[KNN] = {
            "id": "knn",
            "version": 1,
            "chosen": {"k": 5},
            "metrics": {"top1": near, "k20_top1": near},
            "predictions": {"top1": near_entry[0], "k20_top1": near_entry[0]},
            "correct": {"top1": near_entry[1], "k20_top1": near_entry[1]},
        }
    document = {
        "run_id": run_id(spec),
        "track": track_id,
        "spec": spec,
        "status": status,
        "reason": reason,
        "row": {"title": method} | (row or {}),
        "code": {"plugin_sha256": "a" * 64, "engine": 1, "distribution": "example"},
        "cost": {
            "train_seconds": 30.0 + seed,
            "images_per_second": 1800.0,
            "peak_memory_gib": 0.61,
            "passes_with_grad": 2.0,
            "passes_without_grad": 0.0,
        }
        | (cost or {}),
        "machine": {"device": "cpu", "processor": "Xeon", "cores": 2, "torch": "2.14.1"},
        "data": {
            "test_images": NUM_IMAGES,
            "class_counts_test": np.bincount(LABELS).tolist(),
        },
        "evaluations": evaluations,
    } | changes
    return parse(Result.model_validate(document).document())


def _answers(
    generator: np.random.Generator, hardness: np.ndarray, accuracy: float
) -> tuple[float, tuple[str, str]]:
    """Return the percentage of right answers, and packed predictions and truths."""
    correct = 0.8 * hardness + 0.2 * generator.uniform(size=NUM_IMAGES) < 0.9 * accuracy + 0.05
    predictions = np.where(correct, LABELS, (LABELS + 1) % 10)
    return 100 * float(correct.mean()), (pack_predictions(predictions), pack_bits(correct))


def with_few_labels(run: Result, draws: int = 20) -> Result:
    """Return a run with few labels beside the rest: its linear probe's answers, made unsure."""
    generator = np.random.default_rng([zlib.crc32(run.run_id.encode()), draws])
    right = unpack_bits(run.evaluations[LINEAR].correct["best"], NUM_IMAGES)
    names = ("k1_top1", "k5_top1", "k10_top1", "k100_top1")
    counts = {
        name: generator.binomial(draws, np.where(right, 0.9 + step / 50, 0.02))
        for step, name in enumerate(names)
    }
    document = run.document()
    document["evaluations"][FEW] = {
        "id": "few_labels",
        "version": 1,
        "metrics": {name: 100 * float(found.mean()) / draws for name, found in counts.items()},
        "shares": {name: pack_counts(found) for name, found in counts.items()},
        "draws": dict.fromkeys(counts, draws),
    }
    return parse(Result.model_validate(document).document())


def board(seeds: int = 5) -> list[Result]:
    """Return a whole page's runs: floors, reference, three methods."""
    floor = {"role": "floor", "family": "floor"}
    still = {"train_seconds": 0.0, "images_per_second": 0.0, "passes_with_grad": 0.0}
    rows: list[tuple[str, float, dict[str, Any], dict[str, Any]]] = [
        ("untrained", 0.55, floor | {"title": "Random initialisation"}, still),
        (
            "labels",
            0.97,
            {"role": "ceiling", "uses_labels": True, "title": "Supervised"},
            {"passes_with_grad": 1.0},
        ),
        (
            "contrast_net",
            0.90,
            {"title": "ContrastNet", "paper": "https://arxiv.org/abs/2002.05709v3"},
            {},
        ),
        (
            "queue_net",
            0.898,
            {"title": "QueueNet v2", "paper": "https://example.org/a(b)", "departs": "queue | 256"},
            {"passes_with_grad": 1.0, "passes_without_grad": 1.0},
        ),
        ("turn_net", 0.75, {"title": "TurnNet"}, {"passes_with_grad": 4.0}),
    ]
    results = [
        result(method, seed, accuracy, row=row, cost=cost)
        for method, accuracy, row, cost in rows
        for seed in range(seeds)
    ]
    harness = {"role": "floor", "origin": "floor", "title": "Raw pixels"}
    return [*results, result("pixels", 0, 0.70, row=harness, cost=still)]
