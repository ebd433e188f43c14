"""Logistic regression on many small sets of features at once, in the span of each set's images.

The objective is that of `bench.evaluations.logistic`. Its minimum lies in the span of the centred
images, whose n - 1 dimensions are fewer than the D features when labels are scarce: an
eigendecomposition of their Gram matrix (n, n) turns each set into coordinates (n, R), R < n, and
the solution in these is the solution in the features, for l2 sees no rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.evaluations.logistic import descend

_NOISE = 1e-7  # share of the largest variance under which directions hold float32 rounding only
_SLACK = 1e-6  # what a variance may be wrong by, as a share of the largest


@dataclass(frozen=True)
class Sets:
    """B sets of n images each, in coordinates of their own.

    Attributes:
        design: float32 (B, n, R + 1), centred; the last column is 1, for the bias.
        variances: of the coordinates, and 1 for the bias, (B, R + 1).
        directions: what maps weights on coordinates to weights on features, (B, R, D).
        means: of each set's features, (B, D).
        targets: float32 one-hot labels (B, C, n).
    """

    design: Tensor
    variances: Tensor
    directions: Tensor
    means: Tensor
    targets: Tensor


def sets(features: Tensor, labels: Tensor, num_classes: int) -> Sets:
    """Return the coordinates of features (B, n, D) with labels int64 (B, n) in [0, C)."""
    means = features.mean(1, dtype=torch.float64)
    centred = features.double() - means[:, None]
    small = centred.shape[1] <= centred.shape[2]
    gram = centred @ centred.mT if small else centred.mT @ centred
    values, vectors = torch.linalg.eigh(gram)  # ascending
    held = values > _NOISE * values[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
    first = values.shape[1] - int(held.sum(1).max())
    values, vectors, held = values[:, first:], vectors[..., first:], held[:, first:]
    lengths = values.clamp_min(0).sqrt()
    inverse = torch.where(held, 1 / lengths, 0.0)
    if small:
        directions = inverse[..., None] * (vectors.mT @ centred)  # (B, R, D), orthonormal rows
        coordinates = vectors * (lengths * held)[:, None]
    else:
        directions = vectors.mT * held[..., None]
        coordinates = centred @ directions.mT
    ones = coordinates.new_ones(*coordinates.shape[:2], 1)
    variances = torch.cat([values * held / centred.shape[1], ones[:, 0]], 1)
    targets = torch.nn.functional.one_hot(labels, num_classes).mT.float().contiguous()
    design = torch.cat([coordinates, ones], 2).float()
    return Sets(design, variances.float(), directions.float(), means.float(), targets)


@dataclass(frozen=True)
class Fit:
    """One classifier per set and problem, on coordinates."""

    point: Tensor  # (C, B * Q, R + 1), the bias last
    converged: Tensor  # (B, Q) bool
    iterations: int


def fit(
    of: Sets,
    weights: Tensor,
    l2: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float,
    max_iterations: int,
) -> Fit:
    """Fit Q problems on each of B sets.

    Args:
        weights: of the images in each problem's mean, (B, Q, n), summing to 1 over n.
        l2: strengths (B, Q), each positive.
        start: a `point` to begin from.
        tolerance: on the Euclidean norm of a problem's gradient.
    """
    num_sets, num_problems, _ = weights.shape
    num_classes, width = of.targets.shape[1], of.design.shape[2]
    penalty = l2.flatten()[:, None].expand(-1, width).clone()  # (B * Q, R + 1)
    penalty[:, -1] = 0
    slack = _SLACK * of.variances.amax(1, keepdim=True)
    share = weights.amax(2) * weights.shape[2]  # a fold's Gram matrix is at most this much larger
    bound = share[..., None] * (of.variances + slack)[:, None] / 2
    rate = 1 / (bound.reshape(penalty.shape) + penalty)

    def gradient_at(point: Tensor, active: Tensor) -> Tensor:
        busy, place = torch.unique(active // num_problems, return_inverse=True)  # sets at work
        slot = place * num_problems + active % num_problems
        whole = point.new_zeros(num_classes, len(busy) * num_problems, width)
        whole[:, slot] = point
        design = of.design[busy]
        residual = _logits(design, whole).softmax(1).sub_(of.targets[busy, :, None])
        residual.mul_(weights[busy, None])
        flat = (residual.flatten(1, 2) @ design).view(len(busy), num_classes, num_problems, width)
        gradient = flat.transpose(0, 1).reshape(whole.shape)[:, slot]
        return gradient + penalty[active] * point

    if start is None:
        start = of.design.new_zeros(num_classes, num_sets * num_problems, width)
    point, converged, iterations = descend(
        gradient_at,
        start,
        rate,
        largest_entry=lambda gradient, active: gradient.square().sum((0, 2)).sqrt(),
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return Fit(point, converged.view(num_sets, num_problems), iterations)


def _logits(design: Tensor, point: Tensor) -> Tensor:
    """Return (B, C, Q, n) for points (C, B * Q, R + 1)."""
    num_classes, _, width = point.shape
    grouped = point.view(num_classes, len(design), -1, width).transpose(0, 1)  # (B, C, Q, R + 1)
    flat = grouped.reshape(len(design), -1, width) @ design.mT
    return flat.view(len(design), num_classes, -1, design.shape[1])


def own_logits(of: Sets, point: Tensor) -> Tensor:
    """Return each set's logits of its own images, (B, C, Q, n)."""
    return _logits(of.design, point)


def classifier(of: Sets, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (B, C, D) and biases (B, C) on features, of points (C, B, R + 1)."""
    weight = point[..., :-1].transpose(0, 1) @ of.directions
    bias = point[..., -1].T - (weight @ of.means[..., None]).squeeze(2)
    return weight, bias
