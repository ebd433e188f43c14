"""Time of training steps on a card, measured: end-to-end training beside a queue.

The lecture's table has 65 and 53 hours for 200 ImageNet epochs (Chen et al. 2020, Table 3) at 32
images per card of eight. Here both methods' real steps take turns on one card (`bench.turns`), with
its share of the batch; the ratio is that of bare steps, the one with the views made beside it. A
seed changes nothing.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import torch

from bench import costing, costs, turns
from bench.costs import Cost
from bench.errors import UserError
from bench.studies import Observation

ID = "cost_time"
VERSION = 1
READS_RUNS = False
HOLDS = "one card of eight, whose exchanges have no traffic; the claim's own were V100"
SETTINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
STALL = 900.0  # seconds that a window may take


def observe(seed: int, settings: dict[str, Any]) -> Observation:
    """Return the ratio of the seconds of a step, end to end over queue.

    Raises:
        UserError: no card is here, or one of the two could not be measured on it.
    """
    if not torch.cuda.is_available():
        raise UserError("times of steps on a card: no card is here; run the study where one is")
    request = costing.Request(
        plugins=(settings["end_to_end"], settings["queue"]),
        backbone=settings["backbone"],
        image_size=settings["image_size"],
        batch_sizes=(settings["batch"],),
        leaderboards_dir=Path(),  # nothing is written
        device="cuda",
        cards=settings["cards"],
        precision=settings["precision"],
    )
    cells, missing = costing.plan(request)
    if missing:
        raise UserError(missing[0])
    measured = turns.measure(cells, costing.here("cuda", 1), costs.protocol(), STALL)
    return compare(settings, {cell.spec.method: cost for cell, cost in measured})


def compare(settings: dict[str, Any], found: dict[str, Cost]) -> Observation:
    """As `observe`, of cells that were measured in turns, by method."""
    for name, cost in found.items():
        if cost.status != costs.MEASURED:
            raise UserError(f"{name} was not measured: {cost.status}: {cost.reason}")
    one, other = found[settings["end_to_end"]], found[settings["queue"]]
    if other.spec.label not in one.turns_with:
        raise UserError(f"{one.spec.label} and {other.spec.label} did not fit beside each other")

    def ratio(mode: str) -> float:
        return other.modes[mode].images_per_second / one.modes[mode].images_per_second

    gib = {name: (cost.memory.peak or 0) / 2**30 for name, cost in found.items()}
    shown = {f"{name}_gib": value for name, value in gib.items()} | {
        "time_ratio_with_views": ratio("pipeline"),
        "memory_ratio_measured": gib[settings["end_to_end"]] / gib[settings["queue"]],
    }
    unsettled = [
        f"{name}: {mode}: the warm-up did not settle"
        for name, cost in found.items()
        for mode, measured in cost.modes.items()
        if not measured.warm
    ]
    stamps = (f"measured on {one.machine.device}", *one.others, *other.others, *unsettled)
    return Observation({"time_ratio": ratio("step")}, shown, stamps=stamps)
