"""Background probe: which photograph is behind the item, read from frozen features linearly.

High here and low on the object is the shortcut that misleads contrastive learning: two views of one
image share their background. Photographs are disjoint between the splits, so the probe is fitted
and measured inside the training split alone: one half fits it, the other half measures it. Both
halves, and the fifth of the first by which l2 is chosen, are fixed by a hash; no seed moves them.
The probe itself is `linear_probe`'s, on the last stage. No validation or test image is looked at.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from bench.evaluations import Evaluation, linear_probe
from bench.features import Features
from bench.identity import canonical_json

ID = "background_probe"
VERSION = 1
SETTINGS = dict(linear_probe.SETTINGS)
NEEDS_EXTRA = "background"


def check(settings: dict) -> None:
    """Raise UserError where `linear_probe` does."""
    linear_probe.check(settings, ID)


def evaluate(features: Features, settings: dict, seed: int) -> Evaluation:
    """Return top-1 over photographs in percent, on the training images that did not fit the probe.

    The same number stands in `metrics` and `validation`, for it is of neither split; without a test
    split it is in `validation` alone. `chosen` has l2, the number of photographs, chance_top1 (the
    percent of the most frequent photograph) and num_images, over how many it was measured.
    """
    used, photographs = features.extras[NEEDS_EXTRA].unique(return_inverse=True)
    fit, choose, measure = (torch.from_numpy(rows) for rows in divide(len(photographs)))
    last = features.train["last"]
    probed = linear_probe.evaluate(
        replace(
            features,
            train={"last": last[fit]},
            validation={"last": last[choose]},
            test={"last": last[measure]},
            train_labels=photographs[fit],
            validation_labels=photographs[choose],
            test_labels=photographs[measure],
            class_names=tuple(map(str, used.tolist())),
        ),
        settings,
        seed,
    )
    score = {"background_top1": probed.metrics["last_top1"]}
    chosen = {
        "l2": probed.chosen["last"]["l2"],
        "photographs": len(used),
        "chance_top1": 100.0 * int(photographs[measure].bincount().max()) / len(measure),
        "num_images": len(measure),
    }
    stamps = tuple(f"background, {stamp}" for stamp in probed.stamps)
    return Evaluation({} if features.test is None else score, score, chosen, stamps=stamps)


def divide(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows, int64 and sorted, that fit (2/5), choose l2 (1/10) and measure (1/2)."""
    address = canonical_json([ID, VERSION, count])
    stream = np.random.PCG64(int.from_bytes(hashlib.sha256(address.encode()).digest(), "big"))
    order = np.argsort(stream.random_raw(count), kind="stable")
    half, tenth = count // 2, count // 10
    fit, choose, measure = np.split(order, [half - tenth, half])
    return np.sort(fit), np.sort(choose), np.sort(measure)
