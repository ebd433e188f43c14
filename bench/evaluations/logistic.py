"""Multinomial logistic regression for many strengths of l2 at once, to a gradient norm.

For each l2 the minimised function of weights W (C, D) and biases b (C,) is

    mean over images of cross-entropy(W x + b, label)  +  l2 / 2 * ||W||^2        (b is free)

Its Hessian is at most 1/2 (I - 11^T / C) kron X^T X / N + l2 (Boehning 1992, "Multinomial logistic
regression algorithm"). One eigendecomposition of the Gram matrix X^T X / N makes that bound
diagonal for every l2. All of them take L-BFGS steps (Nocedal & Wright 2006, Algorithm 7.4) that
start from the bound's inverse, and share one pair of matrix products per iteration; an l2 leaves
the products when it has converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 19  # logits held at once: 2 MiB in float32 stay in a core's cache
_NOISE = 1e-9  # share of the largest variance under which float32 directions hold rounding only
_MEMORY = 8  # steps that L-BFGS remembers
_OVERSHOOT = 0.8  # share of the slope that may turn positive at the end of a step: 1 - 2 * 0.1
_SLACK = 1e-6  # what a float32 Gram matrix may be wrong by, as a share of its largest eigenvalue


@dataclass(frozen=True)
class Standardiser:
    """Mean 0 and variance 1 per feature of one set of images, and which features live."""

    mean: Tensor  # (D,) float64
    std: Tensor  # (D,) float64
    alive: Tensor  # (D,) bool

    @property
    def dead(self) -> int:
        """Count the features that are dropped."""
        return int((~self.alive).sum())

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (N, D) to float32 (N, alive features)."""
        mean, std = self.mean[self.alive], self.std[self.alive]
        chunks = [((rows[:, self.alive] - mean) / std).float() for rows in features.split(4096)]
        return torch.cat(chunks)


def standardiser(features: Tensor) -> Standardiser:
    """Measure features (N, D) in float64.

    A feature is dead if its standard deviation is below 1e-6 of the median one, or if all of its
    values are the same.
    """
    mean = features.mean(0, dtype=torch.float64)
    squares = torch.stack([(rows - mean).square().sum(0) for rows in features.split(4096)])
    std = (squares.sum(0) / len(features)).sqrt()
    dead = (std < 1e-6 * std.median()) | (features.amax(0) == features.amin(0))
    return Standardiser(mean, std, ~dead)


@dataclass(frozen=True)
class Solution:
    """One classifier per l2, over standardised features."""

    weight: Tensor  # (L, C, D)
    bias: Tensor  # (L, C)
    converged: Tensor  # (L,) bool: the gradient's norm fell to the tolerance
    iterations: int

    def logits(self, features: Tensor) -> Tensor:
        """Return (L, N, C) for standardised features (N, D)."""
        return torch.einsum("nd,lcd->lnc", features, self.weight) + self.bias[:, None]


def solve(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    l2: list[float],
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> Solution:
    """Fit one classifier per value of `l2`.

    Args:
        features: float (N, D) with mean 0 per column, so that the bias decouples in the bound.
        labels: int64 (N,) in [0, num_classes).
        l2: strengths, each positive.
        tolerance: on the gradient's largest absolute entry over weights and biases, where
            scikit-learn's lbfgs stops too.
        max_iterations: after which what has not converged is returned as it is.
    """
    rotated, rotation, variances = _principal(features)  # (N, R), (D, R), (R,)
    design = torch.cat([rotated, rotated.new_ones(len(rotated), 1)], 1)  # the bias is column R
    strengths = design.new_tensor(l2)
    penalty = strengths[:, None].expand(-1, design.shape[1]).clone()  # (L, R + 1)
    penalty[:, -1] = 0
    slack = _SLACK * variances.max() if len(variances) else 0.0
    curvature = torch.cat([variances + slack, variances.new_ones(1)]) / 2
    rate = 1 / (curvature + penalty)  # (L, R + 1), the bound's inverse
    targets = design.new_zeros(num_classes, design.shape[1])
    targets.index_add_(0, labels, design).div_(len(design))  # (C, R + 1)

    def gradient_at(point: Tensor, active: Tensor) -> Tensor:
        return _mean_outer(design, point) - targets[:, None] + penalty[active] * point

    fitted, converged, iterations = descend(
        gradient_at,
        design.new_zeros(num_classes, len(l2), design.shape[1]),  # (C, L, R + 1)
        rate,
        largest_entry=lambda gradient, active: _largest_entry(gradient, rotation),
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    weight = torch.einsum("clr,dr->lcd", fitted[..., :-1], rotation)
    return Solution(weight, fitted[..., -1].T.contiguous(), converged, iterations)


def descend(
    gradient_at: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    rate: Tensor,
    *,
    largest_entry: Callable[[Tensor, Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, int]:
    """Minimise L convex functions side by side by L-BFGS.

    Args:
        gradient_at: gradients (C, A, W) at points (C, A, W) of the functions (A,) still at work.
        start: where each begins, (C, L, W).
        rate: the inverse of a diagonal bound on each Hessian, (L, W).
        largest_entry: what of the gradients (C, A, W) must fall to `tolerance`, (A,).

    Returns:
        The points (C, L, W), which of them converged (L,), and the iterations.
    """
    fitted = start.clone()
    converged = torch.zeros(len(rate), dtype=torch.bool)
    active = torch.arange(len(rate))
    point, gradient = fitted, gradient_at(fitted, active)
    direction, length = -rate * gradient, rate.new_ones(len(rate))  # the bound's step descends
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    iteration = 0
    while True:
        done = largest_entry(gradient, active) <= tolerance
        converged[active[done]] = True
        leaving = done if iteration < max_iterations else torch.ones_like(done)
        if leaving.any():
            going = ~leaving
            fitted[:, active[leaving]] = point[:, leaving]
            active, rate, length = (values[going] for values in (active, rate, length))
            point, gradient, direction = (v[:, going] for v in (point, gradient, direction))
            history = [(s[:, going], y[:, going], scale[going]) for s, y, scale in history]
        if not len(active):
            return fitted, converged, iteration
        iteration += 1
        trial = point + length[:, None] * direction
        trial_gradient = gradient_at(trial, active)
        slope, trial_slope = _dot(gradient, direction), _dot(trial_gradient, direction)
        # Hager & Zhang 2005, Eq. 4.1: Armijo's test without the loss, which float32 rounds away
        accepted = trial_slope <= -_OVERSHOOT * slope
        step = torch.where(accepted[:, None], trial - point, 0.0)
        change = torch.where(accepted[:, None], trial_gradient - gradient, 0.0)
        curvature_along = _dot(step, change)
        scale = torch.where(curvature_along > 0, 1 / curvature_along, 0.0)
        history = [*history, (step, change, scale)][-_MEMORY:]
        point = torch.where(accepted[:, None], trial, point)
        gradient = torch.where(accepted[:, None], trial_gradient, gradient)
        newer = _quasi_newton(gradient, history, rate)
        direction = torch.where(accepted[:, None], newer, direction)
        shorter = length * (slope / (slope - trial_slope)).clamp(0.1, 0.9)  # the secant's root
        length = torch.where(accepted, 1.0, shorter)


def _largest_entry(gradient: Tensor, rotation: Tensor) -> Tensor:
    """Return the largest absolute entry (L,) of a rotated gradient, in the features' own axes."""
    weight, bias = gradient[..., :-1] @ rotation.T, gradient[..., -1:]
    return torch.cat([weight, bias], -1).abs().amax((0, 2))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product (L,) per l2 of two tensors (C, L, R + 1)."""
    return torch.linalg.vecdot(left, right).sum(0)


def _quasi_newton(
    gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], rate: Tensor
) -> Tensor:
    """Return the L-BFGS direction (C, L, R + 1).

    Args:
        history: per iteration, oldest first: step and change of the gradient, (C, L, R + 1), and
            1 / their inner product, (L,); all zero where an l2 did not move.
        rate: the inverse of the Hessian's bound, (L, R + 1).
    """
    direction, shares = gradient, []
    for step, change, scale in reversed(history):
        share = scale * _dot(step, direction)
        direction = direction - share[:, None] * change
        shares.append(share)
    _, change, scale = history[-1]
    looseness = scale * _dot(rate * change, change)  # of the bound along the newest step
    direction = rate / torch.where(looseness > 0, looseness, 1.0)[:, None] * direction
    for (step, change, scale), share in zip(history, reversed(shares), strict=True):
        direction = direction + (share - scale * _dot(change, direction))[:, None] * step
    return -direction


def _principal(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate features (N, D) onto the R principal directions that hold more than rounding.

    Returns the rotated features (N, R), the rotation (D, R) and the variances (R,).
    """
    gram = (features.T @ features).double() / len(features)
    rotation = torch.linalg.eigh(gram).eigenvectors.to(features.dtype)
    rotated = features @ rotation
    variances = rotated.square().mean(0)
    if len(variances):
        held = variances > _NOISE * variances.max()
        rotated, rotation, variances = rotated[:, held], rotation[:, held], variances[held]
    return rotated.contiguous(), rotation, variances


def _mean_outer(design: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over images of outer(softmax over C of weight x, x), shaped like weight."""
    num_classes, num_l2, width = weight.shape
    flat = weight.reshape(num_classes * num_l2, width)
    total = torch.zeros_like(flat)
    for rows in design.split(max(128, _CHUNK_ELEMENTS // len(flat))):  # (B, R + 1)
        logits = (flat @ rows.T).view(num_classes, num_l2, len(rows))
        total.addmm_(logits.softmax(0).view(len(flat), len(rows)), rows)
    return total.div_(len(design)).view_as(weight)
