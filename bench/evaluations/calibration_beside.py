"""Calibration, beside: the sets of `calibration` in the features of a second network.

What `generation_beside` can be, and what its extractor notices.
"""

from __future__ import annotations

from bench.evaluations import Evaluation, Subject, calibration

ID = "calibration_beside"
VERSION = 1
SETTINGS = calibration.SETTINGS | {"extractor": "pixels"}
NEEDS = "nothing"


def check(settings: dict) -> None:
    """Refuse what `calibration` refuses."""
    calibration.check(settings)


def refuse_sizes(settings: dict, train: int, test: int) -> None:
    """Refuse what `calibration` refuses."""
    calibration.refuse_sizes(settings, train, test)


def evaluate(subject: Subject, settings: dict, seed: int) -> Evaluation:
    """Return the metrics of `calibration`, of the very same sets."""
    return calibration.evaluate(subject, settings, seed)
