"""What a claim's results say: from its record, result files and observations to verdicts.

A pure function of files; nothing is run, no torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench import contrasts, observations, records, results, studies
from bench.claim import Claim, Contrast, Metric, Side
from bench.columns import Column, is_distance
from bench.contrasts import Estimate
from bench.errors import UserError
from bench.records import CellRecord, Record
from bench.results import Result
from bench.verdicts import Verdict, judge


@dataclass(frozen=True, eq=False)
class Measured:
    """A side with its numbers.

    Attributes:
        cell: the runs that count, of the method that validation picked where there are several.
        picked_by: {method: mean on validation} where there are several. absent: those that are
            not installed.
        values: (n,) of the side's metric. images: (N,) its mean over seeds for each test image.
        beside: {metric: mean} of what is only shown.
        share: whether values are 100 or 0, for below a bar or not.
        ended: seeds that ended without a number and count as not below the bar, in words.
    """

    side: Side
    cell: CellRecord
    picked_by: dict[str, float]
    absent: tuple[str, ...]
    values: np.ndarray
    images: np.ndarray | None
    beside: dict[str, float]
    share: bool = False
    ended: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A contrast: its verdict, or why there is none.

    Attributes:
        state: "judged", "not run", "incomplete", "refused".
        reason: for all but "judged".
        shown: numbers of a study's observations, means over seeds.
    """

    contrast: Contrast
    state: str
    reason: str = ""
    estimate: Estimate | None = None
    verdict: Verdict | None = None
    sides: tuple[Measured, ...] = ()
    shown: dict[str, float] = field(default_factory=dict)
    holds: str = ""
    stamps: tuple[str, ...] = ()


BROKE_DOWN = ("diverged", "invalid")  # of the statuses that a repetition does not change


class Incomplete(Exception):
    """Runs or observations are missing, or did not end well."""


def find(claim: Claim, studies_folder: Path) -> tuple[Record | None, list[Finding]]:
    """Return the claim's record, if it has one, and a finding for each of its contrasts.

    Raises:
        UserError: a file is damaged.
    """
    file = records.path(studies_folder, claim.id)
    if not file.is_file():
        return None, [Finding(contrast, "not run") for contrast in claim.contrasts]
    record = records.read(file)
    if fault := records.fault(claim, record):
        return record, [Finding(contrast, "refused", fault) for contrast in claim.contrasts]
    found = []
    for number, contrast in enumerate(claim.contrasts):
        try:
            found.append(_finding(claim, number, contrast, record, studies_folder))
        except Incomplete as reason:
            state = "not run" if str(reason) == "" else "incomplete"
            found.append(Finding(contrast, state, str(reason)))
    return record, found


def _finding(
    claim: Claim, number: int, contrast: Contrast, record: Record, folder: Path
) -> Finding:
    if contrast.study is not None:
        return _of_study(number, contrast, record, folder)
    sides = [
        _measured(claim, number, at, side, contrast, record, folder)
        for at, side in enumerate(contrast.sides)
    ]
    try:
        found = _estimate(contrast, sides)
    except ValueError as error:
        raise Incomplete(str(error)) from None
    return Finding(
        contrast,
        "judged",
        estimate=found,
        verdict=_judge(contrast, found, of_runs=True),
        sides=tuple(sides),
        holds=record.holds,
    )


def _estimate(contrast: Contrast, sides: Sequence[Measured]) -> Estimate:
    if contrast.measure != "regret":
        return contrasts.estimate(_cells(sides, contrast.measure), contrast.measure)
    return contrasts.regret({(s.side.group, s.side.option): s.values for s in sides})


def _judge(contrast: Contrast, found: Estimate, *, of_runs: bool = False) -> Verdict:
    bounds = (contrast.range[0], contrast.range[1]) if contrast.range else None
    rule, delta = contrast.rule, contrast.delta
    return judge(found, rule=rule, delta=delta, bounds=bounds, of_runs=of_runs)


def _cells(sides: Sequence[Measured], measure: str = "difference") -> list[contrasts.Cell]:
    """Return the cells of a contrast; sides of the same runs are one cell, seed by seed.

    Raises:
        ValueError: a ratio of values that are not above 0.
    """
    merged: dict[tuple[str, ...], contrasts.Cell] = {}
    for side in (side for side in sides if side.side.weight):
        key = (side.cell.track, *side.cell.runs.values())
        weight = side.side.weight
        if key not in merged:
            merged[key] = contrasts.Cell(side.values, side.images, weight, side.share)
            continue
        before = merged[key]
        if measure != "difference":
            merged[key] = contrasts.quotient(before, contrasts.Cell(side.values, None, weight))
            continue
        images = None
        if before.images is not None and side.images is not None:
            images = before.weight * before.images + weight * side.images
        values = before.weight * before.values + weight * side.values
        merged[key] = contrasts.Cell(values, images, 1.0)
    return list(merged.values())


def _measured(
    claim: Claim,
    number: int,
    at: int,
    side: Side,
    contrast: Contrast,
    record: Record,
    folder: Path,
) -> Measured:
    cells = [c for c in record.cells if (c.contrast, c.side) == (number, at)]
    absent = tuple(cell.method for cell in cells if cell.absent)
    present = [cell for cell in cells if not cell.absent]
    if not cells:
        raise Incomplete("")
    if not present:
        raise Incomplete(f"{', '.join(absent)} is not part of this version")
    metric = side.metric or claim.metric
    assert metric is not None  # a claim with sides has one
    share = metric.below is not None
    broken = share and len(side.methods) == 1  # none is picked by what it would lack
    runs = {cell.method: _runs(cell, record, folder, broken=broken) for cell in present}
    picked_by: dict[str, float] = {}
    chosen = present[0]
    if len(side.methods) > 1:
        choice = contrast.select or claim.metric
        assert choice is not None
        picked_by = {
            cell.method: float(
                np.mean([_on_validation(run, choice, record) for run in runs[cell.method]])
            )
            for cell in present
        }
        pick = min if is_distance(choice.protocol, choice.name) else max
        best = pick(picked_by, key=lambda name: picked_by[name])  # of equals, the first listed
        chosen = next(cell for cell in present if cell.method == best)
    picked = runs[chosen.method]
    done = [run for run in picked if run.status == "done"]
    beside = {}
    for other in claim.beside:
        numbers = [_value(run, other, record) for run in done] or [float("nan")]
        beside[f"{other.key} {other.name}"] = float(np.mean(numbers))
    return Measured(
        side=side,
        cell=chosen,
        picked_by=picked_by,
        absent=absent,
        values=np.array([_value(run, metric, record) for run in picked]),
        images=None if share else _images(picked, metric, record),
        beside=beside,
        share=share,
        ended=tuple(f"seed {run.seed} ended as {run.status}" for run in picked if run not in done),
    )


def _runs(cell: CellRecord, record: Record, folder: Path, *, broken: bool = False) -> list[Result]:
    """Return a cell's finished runs by seed.

    Args:
        broken: whether runs count that ended without numbers because training broke down.

    Raises:
        Incomplete: some are missing or ended otherwise.
    """
    found, faults = [], []
    for seed in record.seeds:
        run_id = cell.runs.get(str(seed), "")
        needed = record.protocols.values()
        file = records.find_result(folder, cell.track, run_id, needed) if run_id else None
        if file is None:
            faults.append(f"seed {seed} is missing")
            continue
        result = results.read(file)
        if broken and result.status in BROKE_DOWN:
            found.append(result)
        elif result.status != "done":
            faults.append(f"seed {seed} ended as {result.status}")
        elif result.run_id != run_id or result.seed != seed:
            faults.append(f"seed {seed} is another run")
        elif any(hashed not in result.evaluations for hashed in record.protocols.values()):
            faults.append(f"seed {seed} was evaluated by other protocols")
        else:
            found.append(result)
    if faults:
        name = cell.title or cell.method
        raise Incomplete(f"{len(found)} of {len(record.seeds)} runs of {name}: {faults[0]}")
    return found


def _entry(run: Result, metric: Metric, record: Record) -> results.EvaluationEntry:
    return run.evaluations[record.protocols[metric.key]]


def _value(run: Result, metric: Metric, record: Record) -> float:
    if metric.below is not None and run.status in BROKE_DOWN:
        return 0.0  # it is not below the bar
    if metric.protocol == "cost":
        cost = run.cost.model_dump()
        if metric.name not in cost:
            raise UserError(f"a result's cost has no {metric.name!r}; it has {', '.join(cost)}")
        return float(cost[metric.name])
    return _of(_entry(run, metric, record).metrics, metric, run)


def _on_validation(run: Result, metric: Metric, record: Record) -> float:
    return _of(_entry(run, metric, record).validation, metric, run)


def _of(numbers: dict[str, float], metric: Metric, run: Result) -> float:
    if metric.name not in numbers:
        raise UserError(
            f"{run.run_id}: {metric.protocol} has no {metric.name!r}; it has {', '.join(numbers)}"
        )
    value = numbers[metric.name]
    return value if metric.below is None else 100.0 * (value < metric.below)


def _images(runs: Sequence[Result], metric: Metric, record: Record) -> np.ndarray | None:
    """Return each test image's mean over seeds in points, (N,); None where none are stored."""
    if metric.protocol == "cost":
        return None
    seen = []
    for run in runs:
        entry = _entry(run, metric, record)
        hashed = record.protocols[metric.key]
        column = Column(entry.id, entry.version, hashed, metric.name, metric.name)
        seen.append(column.answers(entry, column.num_images(run)))
    sizes = {None if answers is None else len(answers) for answers in seen}
    return None if None in sizes or len(sizes) > 1 else 100.0 * np.mean(seen, axis=0)


def _of_study(number: int, contrast: Contrast, record: Record, folder: Path) -> Finding:
    name = str(contrast.study)
    if name not in studies.NAMES:
        raise Incomplete("")
    files = record.observations.get(str(number), [])
    seen = []
    for file_name in files:
        file = folder / "observations" / name / file_name
        if file.is_file():
            seen.append(observations.read(file))
    lacking = sorted(set(record.seeds) - {observed.seed for observed in seen})
    if lacking or not seen:
        raise Incomplete(f"{len(seen)} of {len(record.seeds)} observations")
    if len({observed.hash for observed in seen}) > 1:
        raise Incomplete("its observations are of several versions of the study")
    quantity = str(contrast.quantity)
    if any(quantity not in observed.values for observed in seen):
        raise Incomplete(f"its observations have no {quantity}")
    images = [observed.images(quantity) for observed in seen]
    whole = all(i is not None and len(i) == len(images[0]) for i in images)
    found = contrasts.estimate(
        [
            contrasts.Cell(
                np.array([observed.values[quantity] for observed in seen]),
                np.mean(images, axis=0) if whole else None,
            )
        ]
    )
    shown = {
        key: float(np.mean([observed.shown[key] for observed in seen])) for key in seen[0].shown
    }
    return Finding(
        contrast,
        "judged",
        estimate=found,
        verdict=_judge(contrast, found),
        shown=shown,
        holds=seen[0].holds or record.holds,
        stamps=tuple(sorted({stamp for observed in seen for stamp in observed.stamps})),
    )
