"""Calibration, beside: the sets of `calibration` in the features of a second network.

What `generation_beside` can be, and what its extractor notices.
"""

from __future__ import annotations

from bench.evaluations import calibration

ID = "calibration_beside"
VERSION = 1
SETTINGS = calibration.SETTINGS | {"extractor": "pixels"}
NEEDS = "nothing"
check, refuse_sizes, evaluate = calibration.check, calibration.refuse_sizes, calibration.evaluate
