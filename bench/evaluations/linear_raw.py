"""Linear probe whose features keep their relative scales; otherwise `linear_probe`.

Features are centred and divided by one number, the root mean square of their standard deviations.
That changes nothing but the unit of l2, which is l2 on raw features divided by the number's square.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from bench.evaluations import Evaluation, linear_probe
from bench.evaluations.logistic import Standardiser, standardiser
from bench.features import Features

ID = "linear_raw"
VERSION = 1
SETTINGS = dict(linear_probe.SETTINGS)


def check(settings: dict) -> None:
    """Raise UserError where `linear_probe` does."""
    linear_probe.check(settings, ID)


def evaluate(features: Features, settings: dict, seed: int) -> Evaluation:
    """Return top-1 (and top-5 above five classes) of the last and of the best stage."""
    return linear_probe.probe(features, settings, common_scale)


def common_scale(features: Tensor) -> Standardiser:
    """Measure features (N, D): their means, and one deviation for all; dead ones are dropped."""
    measured = standardiser(features)
    common = measured.std.square().mean().sqrt()
    return dataclasses.replace(measured, std=common.expand_as(measured.std))
