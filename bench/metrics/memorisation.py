"""Are generated images copies of training images? Two tests against images that cannot be copies.

An image is placed by how much nearer it lies to a training image than to a held-out one. Test
images, which no generator has seen, say what is usual: duplicates in the data and the sizes of both
sets weigh on them alike. Exact for samples that are distributed as the test images; samples far
from all data have places of their own, so read the numbers beside recall.

The Mann-Whitney test (as Meehan et al., AISTATS 2020, use it for data-copying) sees many samples
that are a little too near; it does not see one per cent of exact copies among honest samples. These
stand before nearly all test images in the order of places, which the second test counts: it needs
17 copies beside as many test images as samples, 7 beside five times as many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DEPTHS = (1, 2, 4, 8)  # test images in order of place: a few may have duplicates in training
LEVEL = 1e-4  # of both tests together: ten methods x three seeds are accused once in 300 boards
ENTRIES = 2**27  # of a matrix of products: 1 GiB in float64
EFFECT = 0.55  # AUC: thousands of samples make any difference significant; less is not copying


@dataclass(frozen=True)
class Copies:
    """What the places of samples, beside those of test images, say of copying.

    Attributes:
        auc: chance that a sample lies nearer to training, in places, than a test image does; 1/2
            for an honest generator, 1 for a copier.
        z, shift_p: of the one-sided Mann-Whitney test, normal with ties: finds many, even if not
            close.
        leading: samples that lie nearer to training, in places, than every test image.
        near: share of the samples before the test image at which that is least probable, less the
            share of test images there; 0 to 1. About the share of near copies.
        leading_p: probability of as many before one of the first test images, at the most
            improbable of four depths, times four: finds few, close copies.
        place: median place of the samples; 0 on a training image, 1 on a held-out one.
        usual_place: that of the test images.
    """

    auc: float
    z: float
    shift_p: float
    leading: int
    near: float
    leading_p: float
    place: float
    usual_place: float

    @property
    def accused(self) -> bool:
        """Whether training images were copied, by either test at half of `LEVEL`.

        A shift is an accusation only if it is as large as it is sure: `auc` of at least `EFFECT`.
        """
        shifted = self.shift_p < LEVEL / 2 and self.auc >= EFFECT
        return shifted or self.leading_p < LEVEL / 2


def copies(samples: Tensor, train: Tensor, held_out: Tensor, test: Tensor) -> Copies:
    """Compare samples with test images: do they lie nearer to the training images?

    Args:
        samples, train, held_out, test: (N, D) each, pixels or features; of images, `mirrored`
            training and held-out ones, so that a mirrored copy is one too. No image is in two of
            train, held_out and test.

    Raises:
        ValueError: a set is empty, they differ in D, or hold a NaN or an infinity.
    """
    sets = (samples, train, held_out, test)
    if any(x.ndim != 2 or len(x) == 0 or x.shape[1] != samples.shape[1] for x in sets):
        shapes = ", ".join(str(tuple(x.shape)) for x in sets)
        raise ValueError(f"expected four sets (N, D) of one D, none empty, got {shapes}")
    if not all(bool(x.isfinite().all()) for x in sets):
        raise ValueError("samples, train, held_out or test hold a NaN or an infinity")
    own, usual = places(samples, train, held_out), places(test, train, held_out)
    auc, z, shift_p = mann_whitney(own, usual)
    near, leading_p = foremost(own, usual)
    return Copies(
        auc=auc,
        z=z,
        shift_p=shift_p,
        leading=int((own < usual.min()).sum()),
        near=near,
        leading_p=leading_p,
        place=float(own.median()),
        usual_place=float(usual.median()),
    )


def places(points: Tensor, train: Tensor, held_out: Tensor) -> Tensor:
    """Return a / (a + b), float64 (N,): a and b the distances to the nearest of either set.

    The order is that of a / b, and a place is never infinite.
    """
    a, b = nearest(points, train), nearest(points, held_out)
    return torch.where(a + b > 0, a / (a + b), torch.full_like(a, 0.5))  # on both: a duplicate


def nearest(points: Tensor, others: Tensor, rows: int = 1024) -> Tensor:
    """Return the Euclidean distance of each point to the nearest of the others, float64 (N,).

    So many rows are taken at a time, or as many as make a matrix of `ENTRIES`.
    """
    rows = max(1, min(rows, ENTRIES // max(1, len(others))))
    wide = others.double()
    squares = wide.square().sum(1)
    parts = []
    for some in points.double().split(rows):
        index = (squares - 2 * some @ wide.T).argmin(1)
        # From the pair itself: the product cancels where the distance is 0, at a copy.
        parts.append((some - wide[index]).norm(dim=1))
    return torch.cat(parts)


def mann_whitney(own: Tensor, usual: Tensor) -> tuple[float, float, float]:
    """Return AUC, z and p: are values of `own` (N,) lower than those of `usual` (M,)?

    z is corrected for ties and, by 1/2, for continuity; p is its upper tail.
    """
    from scipy.stats import norm

    values, inverse, counts = torch.cat([own, usual]).unique(
        return_inverse=True, return_counts=True
    )
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[inverse]  # mean rank of each tie, from 1
    m, n = len(own), len(usual)
    lower = m * n + m * (m + 1) / 2 - float(ranks[:m].sum())  # pairs with own < usual, ties halved
    ties = float((counts.double() ** 3 - counts).sum()) / ((m + n) * (m + n - 1))
    deviation = math.sqrt(m * n / 12 * (m + n + 1 - ties))
    z = (lower - m * n / 2 - 0.5) / deviation if len(values) > 1 else 0.0
    return lower / (m * n), z, float(norm.sf(z))


def foremost(own: Tensor, usual: Tensor) -> tuple[float, float]:
    """Return the share of near copies and the probability that there are none.

    For each depth d, the samples before the d-th test image are counted. The least of the
    probabilities counts, times the number of depths (Bonferroni).
    """
    ordered = usual.sort().values
    depths = [depth for depth in DEPTHS if depth <= len(ordered)]
    before = [int((own < ordered[depth - 1]).sum()) for depth in depths]
    chances = [
        leading_probability(count, len(own), len(usual), depth)
        for count, depth in zip(before, depths, strict=True)
    ]
    least = min(range(len(depths)), key=chances.__getitem__)
    share = before[least] / len(own) - (depths[least] - 1) / len(usual)
    return max(share, 0.0), min(1.0, len(depths) * chances[least])


def leading_probability(leading: int, samples: int, test: int, depth: int = 1) -> float:
    """Return the probability that `leading` samples or more stand before the `depth`-th test
    image, if any order of samples and test images is as likely as any other.

    That is: fewer than `depth` of the first `leading + depth - 1` are test images, a hypergeometric
    count.
    """
    if leading == 0:
        return 1.0
    from scipy.stats import hypergeom

    drawn = leading + depth - 1
    return float(hypergeom.cdf(depth - 1, samples + test, test, drawn))


def mirrored(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) and their mirror images as rows, (2N, C * H * W)."""
    return torch.cat([images, images.flip(3)]).flatten(1)
