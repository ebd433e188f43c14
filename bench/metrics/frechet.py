"""Frechet distance of two sets of features, taken as Gaussians, in float64.

Paper:   Dowson & Landau 1982, Eq. 4; as a score of generators Heusel et al., NeurIPS 2017, Eq. 6.
Bias:    Chong & Forsyth, CVPR 2020: the distance at N samples is its limit + K / N, and K depends
         on the generator; hence `extrapolate`.

With covariances S = F^T F the distance is |m1 - m2|^2 + tr S1 + tr S2 - 2 |F1 F2^T|_*, the nuclear
norm. F may be the centred features themselves, divided by sqrt(N - 1), or the R of their QR
decomposition. That holds at any rank, and is taken when N <= D. When N > D on both sides and S1 has
a Cholesky factor L, the nuclear norm is the sum of the roots of the eigenvalues of L^T S2 L, which
is faster; where these eigenvalues are too small for their roots to be trusted, R serves again.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.metrics import pair

_EPS = torch.finfo(torch.float64).eps
_ROUNDING = 1e-9  # of the traces: what the roots of the eigenvalues may be wrong by
_BLOCK = 256  # columns of a triangular matrix multiplied at a time
_NEGATIVE = 1e-9  # of the traces: below minus this a distance is an error, not rounding


def distance(samples: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance, >= 0, of features (N, D) and (M, D), in squared feature units.

    Covariances are divided by N - 1. The value is biased upwards by about 1 / N: compare at equal
    N, and see `extrapolate`.

    Raises:
        ValueError: shapes do not fit, a set has fewer than two rows, or numbers are not finite or
            too large to be squared.
        ArithmeticError: the terms do not add up to a distance.
    """
    x, y = pair(samples, reference)
    means = x.mean(0), y.mean(0)
    x, y = x - means[0], y - means[1]
    degrees = len(x) - 1, len(y) - 1
    spread = sum(float(f.square().sum()) / n for f, n in zip((x, y), degrees, strict=True))
    between = float((means[0] - means[1]).square().sum())
    if not math.isfinite(spread + between):
        raise ValueError("features are too large: their variance is not finite in float64")
    found = between + spread - 2 * _shared(x, y, degrees, spread)
    if not found >= -_NEGATIVE * spread:
        raise ArithmeticError(f"the Frechet distance came out at {found:g}, traces {spread:g}")
    return max(found, 0.0)


def _shared(x: Tensor, y: Tensor, degrees: tuple[int, int], spread: float) -> float:
    """Return the trace of (S1 S2)^(1/2) of centred features, N - 1 and M - 1 the degrees.

    `spread`, tr S1 + tr S2, says what is precise.
    """
    if spread > 0 and min(len(x), len(y)) > x.shape[1]:
        covariances = (_gram(f) / (n * spread) for f, n in zip((x, y), degrees, strict=True))
        found, error = root_trace(*covariances)
        if error <= _ROUNDING:
            return found * spread
    x, y = (torch.linalg.qr(f, mode="r").R if len(f) > f.shape[1] else f for f in (x, y))
    return float(torch.linalg.svdvals(x @ y.T).sum()) / math.sqrt(degrees[0] * degrees[1])


def root_trace(s1: Tensor, s2: Tensor) -> tuple[float, float]:
    """Return the trace of (S1 S2)^(1/2) and a bound on its error.

    The error is infinite, and the trace 0, where S1 is not positive definite.

    Args:
        s1, s2: covariances (D, D) in float64.
    """
    factor, info = torch.linalg.cholesky_ex(s1)
    if int(info):
        return 0.0, math.inf
    width = len(s1)
    right = torch.empty_like(s1)  # S2 L, of an L that is nothing above its diagonal
    for first in range(0, width, _BLOCK):
        block = slice(first, first + _BLOCK)
        right[:, block] = s2[:, first:] @ factor[first:, block]
    product = torch.zeros_like(s1)  # L^T S2 L, on and below the diagonal's blocks: all that is read
    for first in range(0, width, _BLOCK):
        block = slice(first, first + _BLOCK)
        product[block, : first + _BLOCK] = factor[first:, block].T @ right[first:, : first + _BLOCK]
    values = torch.linalg.eigvalsh(product, UPLO="L")
    rounding = _EPS * float(values.abs().max())  # of each eigenvalue
    roots = values.clamp_min(rounding).sqrt()
    return float(values.clamp_min(0).sqrt().sum()), float((rounding / roots).sum())


def _gram(x: Tensor) -> Tensor:
    """Return x^T x (D, D) of rows (N, D); half of it is computed, and mirrored."""
    product = x.new_zeros(x.shape[1], x.shape[1])
    for first in range(0, x.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        product[block, : first + _BLOCK] = x[:, block].T @ x[:, : first + _BLOCK]
        product[:first, block] = product[block, :first].T
    return product


@dataclass(frozen=True)
class Extrapolation:
    """A line through distances over 1 / N.

    Attributes:
        limit: the line's value at 1 / N = 0. An estimate, which chance may take below 0 where both
            sets have one distribution; it is left there, as an unbiased estimate must be.
        slope: K, the bias times N.
        residual: root mean square of what the line misses, over points less the two it is fitted
            with. Large beside `limit`: the bias is not K / N here, do not trust it.
        sizes, distances: the points, largest N first.
    """

    limit: float
    slope: float
    residual: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolate(samples: Tensor, reference: Tensor, *, seed: int, points: int = 4) -> Extrapolation:
    """Extrapolate the distance of features (N, D) and (M, D) in 1 / N.

    Point k = 1, 2, ... has min(N, M) // k rows on both sides: the mean over k disjoint blocks of
    the shuffled rows. So sizes are evenly spaced in 1 / N, all rows count in each point, and the
    bias of both sides is taken off.

    Args:
        seed: of the shuffle; the same for all generators of a board.
        points: at least 3.

    Raises:
        ValueError: as `distance`; fewer than 3 points or than 2 rows in a block.
    """
    x, y = pair(samples, reference)
    count = min(len(x), len(y))
    if points < 3 or count // points < 2:
        raise ValueError(f"expected 3 points or more of 2 rows or more, got {points} of {count}")
    generator = torch.Generator().manual_seed(seed)
    x, y = (f[torch.randperm(len(f), generator=generator)[:count]] for f in (x, y))
    sizes = [count // k for k in range(1, points + 1)]
    distances = []
    for size in sizes:
        blocks = zip(x.split(size), y.split(size), strict=True)
        found = [distance(a, b) for a, b in blocks if len(a) == size]
        distances.append(sum(found) / len(found))
    inverse = torch.tensor([1 / size for size in sizes], dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], 1)  # (points, 2)
    heights = torch.tensor(distances, dtype=torch.float64)
    limit, slope = torch.linalg.lstsq(design, heights[:, None]).solution[:, 0].tolist()
    missed = heights - limit - slope * inverse
    residual = float((missed.square().sum() / (points - 2)).sqrt())
    return Extrapolation(limit, slope, residual, tuple(sizes), tuple(distances))


@dataclass(frozen=True)
class Directions:
    """Principal directions of a training reference, on which every generator is measured.

    Attributes:
        basis: float32 (D, K), orthonormal columns, largest variance first.
        explained: share of the reference's variance along them, 0 to 1.
        sha256: of the basis, so that two boards know whether they measured the same thing.
    """

    basis: Tensor
    explained: float
    sha256: str

    def __call__(self, features: Tensor) -> Tensor:
        """Return features (N, D) along the directions, float64 (N, K)."""
        return features.double() @ self.basis.double()


def principal_directions(reference: Tensor, count: int = 64) -> Directions:
    """Return the `count` directions of largest variance of a reference's features (N, D).

    A covariance of 64 dimensions is known from a thousand images where one of 1,280 is not: the
    distance along them ("FD64") has a small bias. The largest entry of each direction is positive.

    Raises:
        ValueError: as `distance`, or the features vary along fewer than `count` directions.
    """
    x, _ = pair(reference, reference)
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    total = float(values.clamp_min(0).sum())
    rank = int((values > x.shape[1] * _EPS * values[-1]).sum()) if total > 0 else 0
    if rank < count:
        raise ValueError(f"the reference's features vary along {rank} directions, not {count}")
    basis = vectors.flip(1)[:, :count]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))  # (1, K)
    basis = (basis * largest.sign()).float().contiguous()
    explained = float(values.flip(0)[:count].sum()) / total
    return Directions(basis, explained, hashlib.sha256(basis.numpy().tobytes()).hexdigest())
