"""Precision, recall, density and coverage: do samples lie among images, and images among samples?

Papers:  precision and recall, Kynkaanniemi et al., NeurIPS 2019, Eq. 1 and 2, k = 3;
         density and coverage, Naeem et al., ICML 2020, Eq. 4 and 5, k = 5.

Each row carries a closed ball that reaches to its k-th nearest other row of its own set. All four
depend on N and M: compare at equal sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.metrics import pair

_ROWS = 1024  # rows of distances held at a time
_NOTHING = 1e-12  # of the squared norms: squared distances below are rounding, between equal rows


@dataclass(frozen=True)
class Coverage:
    """Shares, 0 to 1; density may exceed 1.

    Attributes:
        precision: samples in the ball of some reference image.
        recall: reference images in the ball of some sample.
        density: reference balls that a sample lies in, mean, over k; 1 if sets are alike.
        coverage: reference images whose ball holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def measure(
    samples: Tensor, reference: Tensor, *, k_recall: int = 3, k_coverage: int = 5
) -> Coverage:
    """Return all four for features (N, D) and (M, D).

    Args:
        k_recall: neighbour to which balls reach for precision and recall.
        k_coverage: for density and coverage.

    Raises:
        ValueError: shapes do not fit, a set has no more rows than k, numbers are not finite, or k
            is not positive.
    """
    if min(k_recall, k_coverage) < 1:
        raise ValueError(f"expected k of 1 or more, got {k_recall} and {k_coverage}")
    x, y = pair(samples, reference, least=max(k_recall, k_coverage) + 1)
    centre = y.mean(0)
    x, y = x - centre, y - centre  # distances lose least to rounding near the origin
    narrow, wide = radii(y, (k_recall, k_coverage))
    (own,) = radii(x, (k_recall,))
    recalled = torch.zeros(len(y), dtype=torch.bool)
    covered = torch.zeros(len(y), dtype=torch.bool)
    precise, dense = 0, 0
    for first in range(0, len(x), _ROWS):
        distances = squared_distances(x[first : first + _ROWS], y)  # (rows, M)
        precise += int((distances <= narrow).any(1).sum())
        inside = distances <= wide
        dense += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (distances <= own[first : first + _ROWS, None]).any(0)
    return Coverage(
        precision=precise / len(x),
        recall=float(recalled.double().mean()),
        density=dense / (k_coverage * len(x)),
        coverage=float(covered.double().mean()),
    )


def radii(features: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """Return, for each k, squared distances (N,) of rows (N, D) to their k-th nearest other."""
    parts = []
    for first in range(0, len(features), _ROWS):
        distances = squared_distances(features[first : first + _ROWS], features)
        distances.diagonal(first).fill_(torch.inf)  # not the row itself; an equal row counts
        parts.append(distances.topk(max(ks), largest=False).values)  # ascending
    nearest = torch.cat(parts)
    return [nearest[:, k - 1] for k in ks]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared Euclidean distances (N, M) of rows (N, D) and (M, D); 0 between equal rows."""
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    distances = norms - 2 * x @ y.T
    return torch.where(distances > _NOTHING * norms, distances, 0.0)
