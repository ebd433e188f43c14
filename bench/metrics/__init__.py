"""Measures of generated images: functions of features or uint8 images, none of which knows methods.

Features are (N, D) tensors; all sums are taken in float64. A set that cannot be measured (other
shapes, too few rows, a NaN) is a ValueError, never a number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pair(samples: Tensor, reference: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return both sets of features, (N, D) and (M, D), in float64.

    Raises:
        ValueError: they are not two-dimensional, differ in D, have fewer than `least` rows, or hold
            a NaN or an infinity.
    """
    shapes = f"{tuple(samples.shape)} and {tuple(reference.shape)}"
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(f"expected features (N, D) and (M, D), got {shapes}")
    if min(len(samples), len(reference)) < least or samples.shape[1] == 0:
        raise ValueError(f"expected at least {least} rows and one feature, got {shapes}")
    for name, features in (("samples", samples), ("reference", reference)):
        bad = int((~features.isfinite()).any(1).sum())
        if bad:
            raise ValueError(f"{bad} of {len(features)} rows of the {name} are not finite")
    return samples.double(), reference.double()
