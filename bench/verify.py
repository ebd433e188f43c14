"""Does a result agree with itself? What publishing and reproducing ask before they trust a file."""

from __future__ import annotations

import numpy as np

from bench.errors import UserError
from bench.identity import run_id
from bench.packing import unpack_bits, unpack_counts, unpack_predictions
from bench.results import TERMINAL, EvaluationEntry, Result


def verify(result: Result, track_id: str) -> str:
    """Return the first way in which a result contradicts itself, or ""."""
    if result.track != track_id:
        return f"is of the track {result.track}"
    if result.run_id != run_id(result.spec):
        return f"its spec gives the run id {run_id(result.spec)}"
    if result.status not in TERMINAL:
        return f"ended as {result.status}; run it again, or remove it"
    for protocol_hash, entry in result.evaluations.items():
        for part, packed in entry.correct.items():
            try:
                fault = _contradiction(result, entry, part, packed)
            except UserError as error:
                fault = str(error)
            if fault:
                return f"{entry.id} {protocol_hash}, {part}: {fault}"
        for metric in sorted(entry.shares.keys() | entry.draws.keys()):
            fault = _contradicting_share(result, entry, metric)
            if fault:
                return f"{entry.id} {protocol_hash}, {metric}: {fault}"
    return ""


def _contradicting_share(result: Result, entry: EvaluationEntry, metric: str) -> str:
    """Return how a metric over draws contradicts its counts per image, or ""."""
    if metric not in entry.shares or metric not in entry.draws or metric not in entry.metrics:
        return "needs a metric, shares and a number of draws"
    draws = entry.draws[metric]
    try:
        counts = unpack_counts(entry.shares[metric], result.data.test_images)
    except UserError as error:
        return str(error)
    if len(counts) and counts.max() > draws:
        return f"an image is right in {counts.max()} of {draws} draws"
    accuracy = 100 * float(counts.mean()) / draws if len(counts) else 0.0
    if abs(accuracy - entry.metrics[metric]) > 1e-3:
        return f"is {entry.metrics[metric]!r}, its answers give {accuracy!r}"
    return ""


def _contradiction(result: Result, entry: EvaluationEntry, part: str, packed: str) -> str:
    num_images, counts = result.data.test_images, result.data.class_counts_test
    correct = unpack_bits(packed, num_images)
    metric = part if part in entry.metrics else f"{part}_top1"
    if metric not in entry.metrics:
        return f"has answers and no metric {metric}"
    accuracy = 100 * float(correct.mean()) if num_images else 0.0
    if abs(accuracy - entry.metrics[metric]) > 1e-3:
        return f"{metric} is {entry.metrics[metric]!r}, its answers give {accuracy!r}"
    if part not in entry.predictions:
        return "has answers and no predictions"
    predictions = unpack_predictions(entry.predictions[part], num_images)
    if not counts:
        return ""
    if sum(counts) != num_images or (num_images and predictions.max() >= len(counts)):
        return f"predictions do not fit {len(counts)} classes of {num_images} test images"
    right = np.bincount(predictions[correct], minlength=len(counts))
    if (right > np.array(counts)).any():
        return "more images of a class are right than there are"
    return ""
