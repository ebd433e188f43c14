"""Memory of training steps, estimated: end-to-end training beside a queue, and a large batch.

The lecture's table is MoCo v2's (Chen et al. 2020, Table 3), of 8 cards: 5.0 GB for the queue and
7.4 GB end to end at batch 256, and an estimate of 93.0 GB end to end at 4,096. Each figure here is
the peak on one card of a method's own step (`bench.memory`), in GB of 10^9 bytes. A seed changes
nothing. Steps are told apart by where BatchNorm normalises: as the plugin has it, which for the
end-to-end method is over all cards, and over each card's own images, as one process with them has.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.memory import Ask, Step, estimator
from bench.studies import Observation

ID = "cost"
VERSION = 1
READS_RUNS = False
HOLDS = "a step's tensors by their shapes, with no workspaces, fragmentation or context of a card"
SETTINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def observe(seed: int, settings: dict[str, Any]) -> Observation:
    """Return the ratio at the small batch, and the large one's difference from the claim's GB in
    percent."""
    with estimator() as first, estimator() as second:  # a process for each method's code
        asks = {settings["end_to_end"]: first, settings["queue"]: second}
        return compare(settings, lambda step: asks[step.plugin](step))


def compare(settings: dict[str, Any], ask: Ask) -> Observation:
    """As `observe`, by the estimates that `ask` gives."""
    shared = {key: settings[key] for key in ("backbone", "image_size", "cards", "precision")}
    small, large = settings["small_batch"], settings["large_batch"]
    end_to_end = Step(settings["end_to_end"], batch_size=small, **shared)
    queue = replace(end_to_end, plugin=settings["queue"])
    many = replace(end_to_end, batch_size=large)
    alone = replace(many, batch_size=many.batch_per_card, cards=1)
    small_alone = replace(end_to_end, batch_size=end_to_end.batch_per_card, cards=1)
    found = {
        "end_to_end": ask(end_to_end),
        "queue": ask(queue),
        "large": ask(many),
        "end_to_end_alone": ask(small_alone),
        "large_alone": ask(alone),
    }
    gb = {name: estimate.total / 1e9 for name, estimate in found.items()}
    claimed = settings["claimed_gb"]
    values = {
        "memory_ratio": gb["end_to_end"] / gb["queue"],
        "memory_against_93": 100 * (gb["large"] / claimed - 1),
    }
    shown = {f"{name}_gb": value for name, value in gb.items()} | {
        "memory_ratio_alone": gb["end_to_end_alone"] / gb["queue"],
        "memory_against_93_alone": 100 * (gb["large_alone"] / claimed - 1),
        "large_gib": found["large"].total / 2**30,
    }
    stamp = (
        "BatchNorm over all cards, as the method has it; over each card's own images "
        f"{shown['memory_ratio_alone']:.2f} and {shown['memory_against_93_alone']:+.1f} %"
    )
    return Observation(values, shown, stamps=(stamp,))
