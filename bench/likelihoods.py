"""Likelihoods of 8-bit images and divergences between normal distributions, in nats.

Images are float (B, C, H, W) in [-1, 1] on the grid that 8-bit values give, v / 127.5 - 1. A
density over them is no likelihood of the data: it may be made as large as one likes. Here each of
the 256 values has the mass of its bin, the first and the last with all that lies beyond, so that
the masses sum to 1 (Salimans et al. 2017, Section 2.1; Ho et al. 2020, Eq. 13).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

HALF_BIN = 1 / 255  # half of the distance between two 8-bit values


def discretised_logistic(images: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return -log p of each value under a logistic distribution, in nats, shaped as `images`.

    The mass of a bin is sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), which does not
    cancel where both are near 0 or 1.

    Args:
        mean, log_scale: of the distribution, broadcast against `images`.
    """
    upper, lower = _edges(images, mean, log_scale)
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
    return -_with_tails(images, F.logsigmoid(upper), inside, F.logsigmoid(-lower))


def discretised_normal(images: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return -log p of each value under a normal distribution, as `discretised_logistic`."""
    upper, lower = _edges(images, mean, log_std)
    above = upper + lower > 0  # a bin above the mean has the mass of its mirror image below
    near, far = torch.where(above, -lower, upper), torch.where(above, -upper, lower)
    log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    inside = log_near + torch.log(-torch.expm1(log_far - log_near))
    first, last = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    return -_with_tails(images, first, inside, last)


def _edges(images: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the values' bins end and begin, in scales from the mean."""
    inverse = torch.exp(-log_scale)
    offset = images - mean
    return (offset + HALF_BIN) * inverse, (offset - HALF_BIN) * inverse


def _with_tails(images: Tensor, first: Tensor, inside: Tensor, last: Tensor) -> Tensor:
    edge = 1 - HALF_BIN
    return torch.where(images < -edge, first, torch.where(images > edge, last, inside))


def kl_normal(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """Return KL(N(mean0, var0) || N(mean1, var1)) of each dimension, in nats, not below 0."""
    ratio = log_var0 - log_var1
    distance = (mean0 - mean1).square() * torch.exp(-log_var1)
    return 0.5 * (torch.expm1(ratio) - ratio + distance)


def kl_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, var) || N(0, I)) of rows (B, D), in nats: (B,).

    Kingma & Welling 2014, Appendix B.
    """
    return kl_normal(mean, log_var, torch.zeros_like(mean), torch.zeros_like(mean)).sum(1)


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Return what `nats` per image are in bits per value; a uniform guess of 8 bits has 8.

    Args:
        dimensions: values of an image, C * H * W. Gray data shown as three equal channels count
            three times, as values and as dimensions.
    """
    return nats / (dimensions * math.log(2))
