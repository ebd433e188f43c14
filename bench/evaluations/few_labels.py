"""Few labels: logistic regression on K labelled training images per class, averaged over draws.

No label outside a draw is used, not even for a choice (Oliver et al. 2018, Section 4.6,
https://arxiv.org/abs/1804.09170). With K >= 5, stratified folds inside the draw choose l2, and for
the metrics "best" the stage too; with fewer, l2 is a constant. Features are standardised by mean
and variance of all training images, which takes no label.

The constant `l2_few` was fixed on `digits` for all other tracks: validation top-1 in percent at K
labels per class, mean over 5 seeds and 25 draws, last stage of an untrained net and of one trained
on labels (the track's ResNet):

    l2               1e-5   1e-4   1e-3   1e-2   1e-1      1     10    100   1000
    untrained  K=1  51.67  52.15  52.00  51.96  51.86  51.87  52.02  51.17  50.94
               K=3  69.72  71.01  70.92  70.97  71.06  70.68  67.74  65.40  65.22
    labels     K=1  98.90  98.88  98.86  98.83  98.84  98.82  98.84  98.52  98.48
               K=3  99.10  99.12  99.16  99.16  99.18  99.25  99.33  99.25  99.24

From 1e-4 to 1 nothing differs by more than 0.4 points. The value is the middle of that range.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError
from bench.evaluations import Evaluation
from bench.evaluations.logistic import Standardiser, standardiser
from bench.evaluations.settings import (
    COUNT,
    POSITIVE,
    Range,
    refuse_no_interval,
    refuse_outside,
)
from bench.evaluations.small_sets import Sets, classifier, fit, own_logits, sets
from bench.features import Features
from bench.identity import canonical_json

ID = "few_labels"
VERSION = 1
SETTINGS = {
    "labels_per_class": [1, 5, 10, 100],
    "draws": [25, 25, 25, 10],
    "l2_few": 1e-2,
    "folds": 5,
    "l2_low": 1e-4,
    "l2_high": 1e1,
    "l2_count": 6,
    "fold_gradient_norm": 3e-3,
    "gradient_norm": 1e-4,
    "max_iterations": 1000,
}
RANGES = {
    "labels_per_class": COUNT,
    "draws": Range(1, 255),  # an image's right answers are counted in one byte
    "l2_few": POSITIVE,
    "folds": Range(2),
    "l2_low": POSITIVE,
    "l2_high": POSITIVE,
    "l2_count": COUNT,
    "fold_gradient_norm": POSITIVE,
    "gradient_norm": POSITIVE,
    "max_iterations": COUNT,
}
RULE = "few/1"
_ELEMENTS = 1 << 23  # features of draws held at once: 64 MiB in float64


def check(settings: dict) -> None:
    """Raise UserError if a K has no number of draws, or a setting is out of its range."""
    refuse_outside(ID, settings, RANGES)
    refuse_no_interval(ID, settings)
    per_class, draws = settings["labels_per_class"], settings["draws"]
    if len(per_class) != len(draws):
        raise UserError(
            f"{ID}.labels_per_class is {per_class!r} and {ID}.draws {draws!r}; give both, for "
            "each K its number of draws"
        )
    if len(set(per_class)) < len(per_class):
        raise UserError(f"{ID}.labels_per_class is {per_class!r}; expected each K once")


def evaluate(features: Features, settings: dict, seed: int) -> Evaluation:
    """Return top-1 and its spread over draws for every K that the classes allow.

    Metrics: `k<K>_top1`, the mean over draws on the last stage in percent; `k<K>_best_top1`, on the
    stage that each draw's folds choose (K >= folds; ties: the later); `k<K>_spread` and
    `k<K>_best_spread`, the standard deviation over draws in points.
    """
    present, labels = features.train_labels.unique(return_inverse=True)
    smallest = int(torch.bincount(labels).min())
    scales = {name: standardiser(values) for name, values in features.train.items()}
    stamps = [f"{name}: {s.dead} dead features dropped" for name, s in scales.items() if s.dead]
    found: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    chosen, shares, draws = {}, {}, {}
    for per_class, count in zip(settings["labels_per_class"], settings["draws"], strict=True):
        if per_class > smallest:
            stamps.append(f"K = {per_class} skipped: the smallest class has {smallest} images")
            continue
        rows = torch.stack([draw(labels, per_class, number) for number in range(count)])
        columns = {f"k{per_class}": ["last"] * count}
        strengths = {"last": torch.full((count,), settings["l2_few"])}
        if per_class >= settings["folds"]:
            strengths, hits = _fold(features, scales, labels, rows, settings)
            best = [max(hits, key=lambda stage: int(hits[stage][i])) for i in range(count)]
            columns[f"k{per_class}_best"] = best
        right: dict[tuple[str, str, int], Tensor] = {}  # split, stage, draw -> bool (N,)
        for stage, scale in scales.items():
            members = [i for i in range(count) if any(s[i] == stage for s in columns.values())]
            if not members:
                continue
            weight, bias, late = _fit(
                features.train[stage],
                scale,
                labels,
                rows[members],
                strengths[stage][members],
                settings,
            )
            if late:
                stamps.append(f"{stage}, K = {per_class}: {late} draws not converged")
            for split in found:
                if getattr(features, split):  # a parity track has no validation images
                    images, truth = getattr(features, split), getattr(features, f"{split}_labels")
                    of_draws = _right(scale, images[stage], truth, present, weight, bias)
                    right |= {(split, stage, i): r for i, r in zip(members, of_draws, strict=True)}
        for name, stages in columns.items():
            l2 = [float(f"{strengths[stage][i]:.6g}") for i, stage in enumerate(stages)]
            chosen[name] = {"l2": l2}
            if name.endswith("_best"):
                chosen[name] |= {"stage": Counter(stages).most_common(1)[0][0], "stages": stages}
            for split in {split for split, _, _ in right}:
                named = torch.stack([right[split, s, i] for i, s in enumerate(stages)])  # (B, N)
                percent = 100 * named.double().mean(1)
                found[split][f"{name}_top1"] = float(percent.mean())
                found[split][f"{name}_spread"] = float(percent.std()) if count > 1 else 0.0
                if split == "test":
                    shares[f"{name}_top1"] = named.sum(0).numpy()
                    draws[f"{name}_top1"] = count
    return Evaluation(found["test"], found["validation"], chosen, {}, tuple(stamps), shares, draws)


def draw(labels: Tensor, per_class: int, number: int) -> Tensor:
    """Return the rows (C * K,) of draw `number`: K of each class, class by class.

    It takes the images with the smallest raw words of a PCG64 stream, which NumPy promises never to
    change, addressed by the labels and the number alone: every method on this split has the same
    draw, and a smaller K takes the first of a larger one.
    """
    values = labels.numpy().astype("<i8")
    address = canonical_json([RULE, hashlib.sha256(values.tobytes()).hexdigest(), number])
    stream = np.random.PCG64(int.from_bytes(hashlib.sha256(address.encode()).digest(), "big"))
    order = np.argsort(stream.random_raw(len(values)), kind="stable")
    order = order[np.argsort(values[order], kind="stable")]  # by class, then by word
    starts = np.searchsorted(values[order], np.unique(values))
    return torch.from_numpy(order[starts[:, None] + np.arange(per_class)].ravel())


def _sets(features: Tensor, scale: Standardiser, labels: Tensor, rows: Tensor) -> Iterator[Sets]:
    """Yield a few draws at a time of `rows` (B, C * K), from all training features (N, D)."""
    for some in rows.split(max(1, _ELEMENTS // (rows.shape[1] * features.shape[1]))):
        images = scale(features[some.flatten()]).view(*some.shape, -1)  # (B, C * K, D)
        yield sets(images, labels[some], int(labels.max()) + 1)


def _fold(
    features: Features,
    scales: dict[str, Standardiser],
    labels: Tensor,
    rows: Tensor,
    settings: dict,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return per stage, the last first, each draw's l2 (B,) and its right answers (B,) by folds."""
    strengths, hits = {}, {}
    per_class = rows.shape[1] // (int(labels.max()) + 1)
    for stage, scale in reversed(scales.items()):
        of_draws = _sets(features.train[stage], scale, labels, rows)
        parts = [_cross_validate(of, per_class, settings) for of in of_draws]
        strengths[stage], hits[stage] = map(torch.cat, zip(*parts, strict=True))
    return strengths, hits


def _fit(
    features: Tensor,
    scale: Standardiser,
    labels: Tensor,
    rows: Tensor,
    strengths: Tensor,
    settings: dict,
) -> tuple[Tensor, Tensor, int]:
    """Return weights (B, C, D) and biases (B, C) of draws, and how many did not converge."""
    fitted, late, first = [], 0, 0
    for of in _sets(features, scale, labels, rows):
        num_sets, num_images = of.design.shape[:2]
        solution = fit(
            of,
            torch.full((num_sets, 1, num_images), 1 / num_images),
            strengths[first : first + num_sets, None],
            tolerance=settings["gradient_norm"],
            max_iterations=settings["max_iterations"],
        )
        fitted.append(classifier(of, solution.point))
        late += int((~solution.converged).sum())
        first += num_sets
    weight, bias = map(torch.cat, zip(*fitted, strict=True))
    return weight, bias, late


def _cross_validate(of: Sets, per_class: int, settings: dict) -> tuple[Tensor, Tensor]:
    """Return each draw's l2, ties to the larger, and how many held-out images it had right."""
    num_sets, num_images = of.design.shape[:2]
    fold = torch.arange(num_images) % per_class % settings["folds"]  # each class is spread evenly
    inside = fold != torch.arange(settings["folds"])[:, None]  # (Q, n)
    weights = (inside / inside.sum(1, keepdim=True)).expand(num_sets, -1, -1)
    truth = of.targets.argmax(1)  # (B, n)
    best, strengths, point = torch.full((num_sets,), -1), torch.zeros(num_sets), None
    for l2 in grid(settings):
        point = fit(
            of,
            weights,
            torch.full(weights.shape[:2], l2),
            start=point,
            tolerance=settings["fold_gradient_norm"],
            max_iterations=settings["max_iterations"],
        ).point
        guesses = own_logits(of, point).argmax(1)  # (B, Q, n)
        hits = ((guesses == truth[:, None]) & ~inside).sum((1, 2))
        strengths = torch.where(hits > best, l2, strengths)
        best = best.maximum(hits)
    return strengths, best


def grid(settings: dict) -> list[float]:
    """Return the strengths of l2 to choose from, strongest first: its fit starts the next."""
    ends = np.log10([settings["l2_high"], settings["l2_low"]])
    return [float(f"{l2:.6g}") for l2 in np.logspace(*ends, settings["l2_count"])]


def _right(
    scale: Standardiser,
    images: Tensor,
    truth: Tensor,
    present: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Return whether each draw's classifier names each image's class, (B, N)."""
    parts = []
    for rows, labels in zip(images.split(2048), truth.split(2048), strict=True):
        logits = scale(rows) @ weight.flatten(0, 1).T + bias.flatten()  # (N, B * C)
        guesses = present[logits.view(len(rows), *bias.shape).argmax(2)]  # (N, B)
        parts.append((guesses == labels[:, None]).T)
    return torch.cat(parts, 1)
