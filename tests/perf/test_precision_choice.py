"""What `precision = "auto"` takes on this machine against both precisions, by the trial's own step.

The choice is made as a plan makes it; then fp32, bf16 and the choice take turns anew.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ratios import ratio

from bench import precision, trial

NARROW = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
STEM = {"kernel": 3, "stride": 2, "max_pool": False}
BACKBONES = {
    "residual": {"name": "resnet18", "args": NARROW, "stem": STEM},
    "depthwise": {"name": "test_convnext", "args": {}, "stem": None},
    "attention": {"name": "test_vit", "args": {"patch_size": 4}, "stem": None},
}
BATCH, SIZE, ROUNDS = 64, 32, 15


@pytest.mark.parametrize("name", BACKBONES)
def test_the_choice_is_not_below_0_95_of_the_better_precision(benchmark: Any, name: str) -> None:
    torch.set_num_threads(1)
    step = trial.Step(BACKBONES[name], SIZE, BATCH)
    found = precision.decide(precision.rounds_of(step))
    (other,) = set(precision.PRECISIONS) - {found.precision}
    benchmark.extra_info["choice"] = found.precision
    print(f"\n{name}: {found.precision}; {found.why}")
    again = ratio(
        benchmark, lambda: step.window(found.precision, 5), lambda: step.window(other, 5), ROUNDS
    )
    assert again >= precision.NEVER_BELOW
