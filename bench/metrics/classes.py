"""Does a conditional generator draw the class it is asked for, and all of that class?

Two measures, to be read together. The accuracy of an independent classifier on samples asks whether
each looks like its class; one prototype per class scores 100. The classification accuracy score
(Ravuri & Vinyals, NeurIPS 2019, Section 3) trains a classifier on samples and tests it on real
images: a prototype teaches it nothing of what varies within a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.evaluations.logistic import solve, standardiser

STRENGTHS = tuple(10.0**exponent for exponent in range(-6, 2))  # of l2, chosen on samples alone
HELD_OUT = 5  # one sample in five is held out to choose l2


@dataclass(frozen=True)
class ClassAccuracy:
    """Percent of images named as the class they stand for.

    Attributes:
        top1: over all images.
        least: of the class with the lowest; a mean hides a class that is never drawn.
        least_class: its index; the first of several.
        by_class: one per class.
    """

    top1: float
    least: float
    least_class: int
    by_class: tuple[float, ...]


def accuracy(predictions: Tensor, labels: Tensor, *, num_classes: int) -> ClassAccuracy:
    """Return the accuracy of a classifier on images, over all and by class.

    Args:
        predictions: class indices, int64 (N,), of a classifier that was trained on real images and
            shares nothing with the generator.
        labels: what the generator was asked for, int64 (N,) in [0, num_classes).

    Raises:
        ValueError: shapes differ, a label is out of range, or a class has no image.
    """
    if predictions.shape != labels.shape or labels.ndim != 1:
        shapes = f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected predictions and labels (N,), got {shapes}")
    counts = _counts(labels, num_classes)
    if empty := torch.nonzero(counts == 0).flatten().tolist():
        raise ValueError(f"no image was asked for of class {empty[0]}; draw all {num_classes}")
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    by_class = (100 * right.double() / counts).tolist()
    least = min(range(num_classes), key=by_class.__getitem__)
    top1 = 100 * int(right.sum()) / len(labels)
    return ClassAccuracy(top1, by_class[least], least, tuple(by_class))


@dataclass(frozen=True)
class AccuracyScore:
    """What a classifier that was trained on samples makes of real images.

    Attributes:
        accuracy: on the real images, percent, over all and by class.
        on_samples: on the samples held out to choose l2, percent; far above `accuracy.top1` where
            samples lack what varies in a class.
        l2: the strength chosen, the largest of the best.
        converged: whether the last fit did.
    """

    accuracy: ClassAccuracy
    on_samples: float
    l2: float
    converged: bool


def accuracy_score(
    samples: Tensor,
    sample_labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    *,
    num_classes: int,
    seed: int,
) -> AccuracyScore:
    """Train a logistic probe on features of samples (N, D), test it on those of real images (M, D).

    Nothing of the real images enters the probe: mean, scale and l2 come from samples. Called with
    as many real training images for samples it gives what the score is to be compared with.

    Args:
        sample_labels, real_labels: int64 (N,) and (M,) in [0, num_classes).
        seed: of the samples that are held out to choose l2.

    Raises:
        ValueError: shapes do not fit, numbers are not finite, labels are out of range, a class has
            no real image, or there are fewer than ten samples.
    """
    if samples.ndim != 2 or real.ndim != 2 or samples.shape[1] != real.shape[1]:
        shapes = f"{tuple(samples.shape)} and {tuple(real.shape)}"
        raise ValueError(f"expected features (N, D) and (M, D), got {shapes}")
    if (len(samples), len(real)) != (len(sample_labels), len(real_labels)) or len(samples) < 10:
        rows = f"{len(samples)} and {len(sample_labels)}, {len(real)} and {len(real_labels)}"
        raise ValueError(f"expected a label for each row and ten samples or more, got {rows}")
    if not bool(samples.isfinite().all()) or not bool(real.isfinite().all()):
        raise ValueError("features of samples or of real images hold a NaN or an infinity")
    _counts(sample_labels, num_classes)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    held, kept = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    guesses, _ = _named(samples[kept], sample_labels[kept], samples[held], num_classes, STRENGTHS)
    shares = (guesses == sample_labels[held]).double().mean(1).tolist()
    best = max(range(len(STRENGTHS)), key=lambda index: (shares[index], STRENGTHS[index]))
    named, converged = _named(samples, sample_labels, real, num_classes, STRENGTHS[best : best + 1])
    return AccuracyScore(
        accuracy=accuracy(named[0], real_labels, num_classes=num_classes),
        on_samples=100 * shares[best],
        l2=STRENGTHS[best],
        converged=converged,
    )


def _named(
    features: Tensor, labels: Tensor, others: Tensor, num_classes: int, l2: tuple[float, ...]
) -> tuple[Tensor, bool]:
    """Return the classes (L, M) that probes of features (N, D) give to others (M, D)."""
    scale = standardiser(features)
    solution = solve(scale(features), labels, num_classes=num_classes, l2=list(l2))
    return solution.logits(scale(others)).argmax(2), bool(solution.converged.all())


def _counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return how many images each class has, int64 (num_classes,)."""
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"expected labels in [0, {num_classes}), one image or more")
    return torch.bincount(labels, minlength=num_classes)
