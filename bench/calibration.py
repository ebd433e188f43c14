"""How fast methods train on a machine, measured before a budget of device-seconds is planned.

Each method's real step, views included, runs in a process of its own; they take turns (A B C A B C)
so that a machine that slows down slows all of them. What was measured is kept and not measured
again: the steps that it gives are part of a run's identity, and a resumed board asks for the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import ENGINE, costs, kept
from bench.costing import here
from bench.costs import Spec
from bench.errors import UserError
from bench.identity import digest
from bench.results import Code
from bench.training_flops import COUNTED, Training
from bench.turns import Cell, Place, holds_for, measure

FILE = "rates.json"
SETTINGS: dict[str, Any] = {"window_steps": 20, "cpu_window_seconds": 2.0, "warm_limit": 6}
STALL = 900.0  # seconds that a window may take


@dataclass(frozen=True)
class Rate:
    """One method's speed on one machine: the median of its windows, and their quartiles; and what
    makes them doubtful, "" for nothing."""

    method: str
    machine: str
    images_per_second: float
    low: float
    high: float
    doubt: str = ""


def rates(
    wanted: Mapping[str, Training], *, device: str, folder: Path
) -> tuple[dict[str, Rate], bool]:
    """Return each method's speed, and whether any was measured now.

    If one has to be, all are: speeds are compared in turns. One that was known stays as it was.

    Args:
        wanted: by method, with the precision and threads of their specs.
        device: "cpu" or "cuda".
        folder: keeps `rates.json`.

    Raises:
        UserError: the file is damaged, or a method cannot be measured.
    """
    known = kept.read(folder / FILE, Rate, positive="images_per_second")
    if not wanted:
        return {}, False
    threads = max(training.spec["threads"] for training in wanted.values())
    place = here(device, threads)
    keys = {name: _key(training, device, place) for name, training in wanted.items()}
    if all(key in known for key in keys.values()):
        return {name: known[key] for name, key in keys.items()}, False
    found = _measure(wanted, device, place)
    known = kept.read(folder / FILE, Rate, positive="images_per_second")  # others' meanwhile, too
    known = {keys[name]: rate for name, rate in found.items()} | known
    kept.write(folder / FILE, known)
    return {name: known[key] for name, key in keys.items()}, True


def _measure(wanted: Mapping[str, Training], device: str, place: Place) -> dict[str, Rate]:
    first = next(iter(wanted.values()))
    protocol = costs.protocol(SETTINGS | {"num_images": first.images, "num_classes": first.classes})
    cells = [
        Cell(
            training.plugin,
            name,
            _spec(training, device),
            Code(plugin_sha256=training.code, engine=ENGINE),
            channels=1 if training.gray else 3,
            stored_side=_stored_side(training),
        )
        for name, training in wanted.items()
    ]
    found = {}
    for cell, cost in measure(cells, place, protocol, STALL):
        if cost.status != costs.MEASURED:
            raise UserError(
                f"{cell.spec.method} has no steps for a budget of device-seconds: {cost.status}: "
                f"{cost.reason}"
            )
        if cost.notes:
            raise UserError(
                f"{cell.spec.method} {cost.notes[0]}; it has no steps for a budget of "
                "device-seconds. Leave it out, or take a budget of flops or images"
            )
        mode = cost.modes["pipeline"]
        found[cell.spec.method] = Rate(
            cell.spec.method,
            holds_for(cell, place.machine),
            mode.images_per_second,
            mode.low,
            mode.high,
            _doubt(cost, protocol.settings),
        )
    return found


def _doubt(cost: costs.Cost, settings: Mapping[str, Any]) -> str:
    """Return why the steps that a speed gives may be too few or too many; "" for nothing."""
    found = []
    if not cost.modes["pipeline"].warm:
        found.append("its windows had not settled")
    if (cost.busy_cores or 0.0) > settings["busy_cores"]:
        found.append(f"others kept {cost.busy_cores:.1f} cores busy")
    return "; ".join([*found, *cost.others])


def _spec(training: Training, device: str) -> Spec:
    spec = training.spec
    return Spec(
        cards=1,
        recipe="",
        device=device,  # type: ignore[arg-type]
        **{key: spec[key] for key in ("method", "config", "backbone", "image_size", "batch_size")},
        **{key: spec[key] for key in ("precision", "threads")},
        chunk=spec.get("chunk"),
        checkpointing=bool(spec.get("checkpointing")),
        compile=bool(spec.get("compile")),
    )


def _key(training: Training, device: str, place: Place) -> str:
    spec, machine = training.spec, place.machine
    more = ("precision", "threads", "compile")
    named = {name: spec[name] for name in (*COUNTED, *more) if name in spec}
    named |= {"gray": training.gray, "stored": _stored_side(training)}
    where = [device, machine.device, machine.processor, machine.cores, machine.torch, machine.timm]
    code = [training.code, ENGINE]
    said = {"training": named, "images": training.images, "where": where, "code": code}
    return digest(said | {"as": SETTINGS})[:12]


def _stored_side(training: Training) -> int:
    """Return the side of the images that views crop from."""
    return int(training.spec["data"].get("store_size") or training.spec["image_size"])
