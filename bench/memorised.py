"""Are generated images copies of training images? Two tests against images that cannot be copies.

An image is placed by how much nearer it lies to a training image than to a held-out one. Test
images, which no generator has seen, say what is usual: duplicates in the data and the sizes of both
sets weigh on them alike. Exact for samples that are distributed as the test images; samples far
from all data have places of their own, so read the numbers beside recall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Copies:
    """What the places of samples, beside those of test images, say of copying.

    Attributes:
        leading: samples that lie nearer to training, in places, than every test image.
        leading_p: probability of as many if nothing was copied: finds few, close copies.
        shift_p: of the one-sided Mann-Whitney test: finds many, even if not close.
        place: median place of the samples; 0 on a training image, 1 on a held-out one.
        usual_place: that of the test images.
    """

    leading: int
    leading_p: float
    shift_p: float
    place: float
    usual_place: float


def copies(samples: Tensor, train: Tensor, held_out: Tensor, test: Tensor) -> Copies:
    """Compare samples with test images: do they lie nearer to the training images?

    Args:
        samples, train, held_out, test: (N, D) each, pixels or features; of images, `mirrored`
            training and held-out ones, so that a mirrored copy is one too. No image is in two of
            train, held_out and test.

    Raises:
        ValueError: a set is empty, or they differ in D.
    """
    sets = (samples, train, held_out, test)
    if any(x.ndim != 2 or len(x) == 0 or x.shape[1] != samples.shape[1] for x in sets):
        shapes = ", ".join(str(tuple(x.shape)) for x in sets)
        raise ValueError(f"expected four sets (N, D) of one D, none empty, got {shapes}")
    from scipy.stats import mannwhitneyu

    own, usual = places(samples, train, held_out), places(test, train, held_out)
    leading = int((own < usual.min()).sum())
    shift = mannwhitneyu(own.numpy(), usual.numpy(), alternative="less")
    return Copies(
        leading=leading,
        leading_p=leading_probability(leading, len(own), len(usual)),
        shift_p=float(shift.pvalue),
        place=float(own.median()),
        usual_place=float(usual.median()),
    )


def places(points: Tensor, train: Tensor, held_out: Tensor) -> Tensor:
    """Return a / (a + b), float64 (N,): a and b the distances to the nearest of either set."""
    a, b = nearest(points, train), nearest(points, held_out)
    return torch.where(a + b > 0, a / (a + b), torch.full_like(a, 0.5))  # on both: a duplicate


def nearest(points: Tensor, others: Tensor, rows: int = 1024) -> Tensor:
    """Return the Euclidean distance of each point to the nearest of the others, float64 (N,)."""
    wide = others.double()
    squares = wide.square().sum(1)
    parts = []
    for some in points.double().split(rows):
        index = (squares - 2 * some @ wide.T).argmin(1)
        # From the pair itself: the product cancels where the distance is 0, at a copy.
        parts.append((some - wide[index]).norm(dim=1))
    return torch.cat(parts)


def leading_probability(leading: int, samples: int, test: int) -> float:
    """Return the probability that the `leading` foremost of all are samples, if any order of
    samples and test images is as likely as any other."""
    if leading == 0:
        return 1.0
    everyone = samples + test
    log = math.lgamma(samples + 1) - math.lgamma(samples - leading + 1)
    log -= math.lgamma(everyone + 1) - math.lgamma(everyone - leading + 1)
    return math.exp(log)


def mirrored(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) and their mirror images as rows, (2N, C * H * W)."""
    return torch.cat([images, images.flip(3)]).flatten(1)
