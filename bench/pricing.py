"""What methods make of a budget that counts FLOPs, before a run of theirs is planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import training_flops
from bench.budgets import Price, words
from bench.errors import UserError
from bench.plan import RunSpec, Track, plan
from bench.training_flops import Training

if TYPE_CHECKING:
    from bench.calibration import Rate


def trainings(
    specs: Iterable[RunSpec], track: Track, data: Mapping[str, Any]
) -> dict[str, Training]:
    """Return what is trained in each method's first run, by name; floors train nothing.

    Args:
        data: facts and splits, as for `bench.plan.plan`.
    """
    facts, found = data["facts"], {}
    for spec in specs:
        name = spec.spec["method"]
        if name in found or spec.plugin is None or spec.row["role"] == "floor":
            continue
        split = data["splits"].get(spec.spec["seed"]) or data["splits"][str(spec.spec["seed"])]
        most = facts["sizes"].get("unlabeled", split["train"])
        found[name] = Training(
            plugin=spec.plugin,
            spec=spec.spec,
            code=spec.code["plugin_sha256"],
            images=min(most, track.data["limit"] or most),
            classes=facts["classes"],
            gray=facts["channels"] == 1,
        )
    return found


def prices(
    track: Track,
    methods: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    *,
    seed: int,
    runs_dir: Path,
    boards: Iterable[Path],
    device: str = "cpu",
) -> dict[str, Price]:
    """Return each method's price where the track's budget counts FLOPs or seconds, or where the
    track is open.

    Args:
        methods, data: as for `bench.plan.plan`.
        boards: folders in which FLOPs may have been counted already. What is counted here is kept
            in `runs_dir`, and so are the speeds that seconds need.
        device: "cpu" or "cuda", where the runs will be.

    Raises:
        UserError: a method's step cannot be counted, or measured.
    """
    timed = "device_seconds" in track.budget
    if not (timed or track.is_open or "flops" in track.budget):
        return {}
    short = replace(track, budget={"steps": 1}, division="closed")
    wanted = trainings(plan(short, methods, data, seeds=[seed], device=device), track, data)
    found: dict[str, Price] = {}
    if track.is_open or not timed:
        found = _by_flops(wanted, runs_dir, boards)
    if timed:
        from bench import calibration

        measured, _ = calibration.rates(wanted, device=device, folder=runs_dir)
        for name, rate in measured.items():
            price = found.get(name, Price(0.0))  # an open track's, for its ceilings
            speed = rate.images_per_second
            found[name] = replace(price, images_per_unit=speed, note=_note(track, rate))
    return found


def _by_flops(
    wanted: Mapping[str, Training], runs_dir: Path, boards: Iterable[Path]
) -> dict[str, Price]:
    counts, problems = counted(wanted.values(), runs_dir, boards)
    for name, training in wanted.items():
        if (problem := problems.get(training_flops.key(training.spec))) is not None:
            raise UserError(
                f"{problem}; {name} has no steps for a budget of FLOPs. Leave it out, or take a "
                "budget that counts images"
            )
    return {
        name: counts[training_flops.key(training.spec)].price for name, training in wanted.items()
    }


def _note(track: Track, rate: Rate) -> str:
    """Return what a row says of the steps that it got for a budget of seconds."""
    doubt = f"; {rate.doubt}" if rate.doubt else ""
    return (
        f"{words(track.budget)} at {rate.images_per_second:.4g} images/s (quartiles {rate.low:.4g} "
        f"to {rate.high:.4g}), measured in turns on {rate.machine} before the run{doubt}"
    )


def counted(
    wanted: Iterable[Training], runs_dir: Path, boards: Iterable[Path]
) -> tuple[dict[str, training_flops.Count], dict[str, str]]:
    """Return all counts that are known, with those of `wanted`; and why some could not be made.

    Raises:
        UserError: a file of counts is damaged.
    """
    own = training_flops.read(runs_dir)
    known: dict[str, training_flops.Count] = {}
    for folder in boards:
        known |= training_flops.read(folder)
    known |= own
    new, problems = training_flops.count(wanted, known)
    if new:
        training_flops.write(runs_dir, own | new)
    return known | new, problems
