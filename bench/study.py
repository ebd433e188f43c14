"""The runs that a claim needs: its cells, the trials that tune them, and what is there already.

Imports no torch. Runs are planned as a board's are and have the same ids, so that a board's run is
a study's run; what differs from the track's recipe is a variant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import budgets, precision, pricing, records, results, runner, session
from bench.claim import Claim, Metric, Side, Tune
from bench.columns import is_distance
from bench.errors import UserError
from bench.ground import Ground, ground, holds, method_of, protocol_hash
from bench.plan import RunSpec, load_track, override, plan
from bench.records import CellRecord, Tuned

if TYPE_CHECKING:
    from bench.results import Result
    from bench.runner import Options
    from bench.track import Track


@dataclass(frozen=True)
class Cell:
    """One method at one side of one contrast.

    Attributes:
        contrast, side: their places in the claim. track: with the side's changes.
        method: its probe, `config` being what the cell starts from; None if it is not installed.
        ground: of the track without the changes.
    """

    contrast: int
    side: int
    name: str
    wanted: Side
    track: Track
    method: dict[str, Any] | None
    ground: Ground


@dataclass(frozen=True)
class Prepared:
    """A claim's cells, and what planning them needs.

    Attributes:
        asked: {`Metric.key`: {"name", "overrides"}} of the evaluations; protocols: their hashes.
        holds: what boards say of the claim's tracks. seeds: of every cell.
    """

    claim: Claim
    cells: list[Cell]
    asked: dict[str, dict[str, Any]]
    protocols: dict[str, str]
    seeds: list[int]
    holds: str
    device: str
    runs_dir: Path = Path("runs")
    leaderboards_dir: Path = Path("leaderboards")


def prepare(
    claim: Claim,
    *,
    device: str = "cpu",
    runs_dir: Path = Path("runs"),
    leaderboards_dir: Path = Path("leaderboards"),
) -> Prepared:
    """Return the cells of a claim; nothing is trained.

    Raises:
        UserError: a track is missing, a setting does not fit its method, or the claim's tracks have
            other settings of its evaluations.
    """
    wanted = [(i, j, side) for i, c in enumerate(claim.contrasts) for j, side in enumerate(c.sides)]

    def where(side: Side) -> str:
        return side.track or claim.track

    names = {where(side) for _, _, side in wanted}
    ordered = sorted(names, key=lambda name: (name != claim.track, name))
    tracks = {name: precision.pin(load_track(name), device) for name in ordered}
    seeds = seeds_of(next(iter(tracks.values())), claim.seeds)
    trial_seeds = {seed for _, _, side in wanted if side.tune for seed in side.tune.seeds}
    every = [*seeds, *sorted(trial_seeds)]
    asked = {key: _asked(claim, metric, tracks) for key, metric in metrics_of(claim).items()}
    grounds = {
        name: ground(
            track,
            [method for _, _, side in wanted if where(side) == name for method in side.methods],
            every,
            {evaluation["name"]: evaluation["overrides"] for evaluation in asked.values()},
            runs_dir=runs_dir,
            leaderboards_dir=leaderboards_dir,
        )
        for name, track in tracks.items()
    }
    known: dict[str, dict[str, Any]] = {}
    cells = []
    for i, j, side in wanted:
        on = grounds[where(side)]
        track = changed(on.track, side)
        for name in side.methods:
            cells.append(Cell(i, j, name, side, track, method_of(on, name, side, known), on))
    return Prepared(
        claim=claim,
        cells=cells,
        asked=asked,
        protocols={key: protocol_hash(evaluation, runs_dir) for key, evaluation in asked.items()},
        seeds=seeds,
        holds="; ".join(holds(track) for track in tracks.values()),
        device=device,
        runs_dir=runs_dir,
        leaderboards_dir=leaderboards_dir,
    )


def metrics_of(claim: Claim) -> dict[str, Metric]:
    """Return the metrics that a claim's runs need, one for each evaluation, by `Metric.key`."""
    metrics = [claim.metric, *claim.beside]
    for contrast in claim.contrasts:
        metrics += [contrast.select, *(side.metric for side in contrast.sides)]
    found = [m for m in metrics if m is not None and m.protocol != "cost"]
    return {metric.key: metric for metric in found}


def _asked(claim: Claim, metric: Metric, tracks: Mapping[str, Track]) -> dict[str, Any]:
    """Return the evaluation of a metric: by the tracks' settings, and the metric's sampling."""
    settings = {name: track.evaluations.get(metric.protocol, {}) for name, track in tracks.items()}
    overrides = next(iter(settings.values()))
    if any(other != overrides for other in settings.values()):
        raise UserError(
            f"claim {claim.id}: {' and '.join(settings)} have other settings of {metric.protocol}"
        )
    sampling = {"sampling": dict(metric.sampling)} if metric.sampling else {}
    return {"name": metric.protocol, "overrides": overrides | metric.settings | sampling}


def seeds_of(track: Track, count: int) -> list[int]:
    """Return the first seeds of the track's list, and whole numbers after it where it is short."""
    listed = list(track.seeds[:count])
    more = (seed for seed in range(1000) if seed not in listed)
    return listed + [next(more) for _ in range(count - len(listed))]


def changed(track: Track, side: Side) -> Track:
    """Return the track with a side's changes; the same one where there are none.

    Raises:
        UserError: another number of epochs is asked of a track whose budget is none.
    """
    changes = side.changes
    epochs = None
    if changes.epochs_times != 1 or changes.batch_size is not None:
        if "epochs" not in track.budget:
            raise UserError(
                f"track {track.id} has a budget of {next(iter(track.budget))}; the claim needs "
                "one of epochs"
            )
        epochs = max(1, round(track.budget["epochs"] * changes.epochs_times))
    return override(track, batch_size=changes.batch_size, epochs=epochs, backbone=changes.backbone)


def trial_specs(prepared: Prepared, cell: Cell) -> dict[float, list[RunSpec]]:
    """Return the runs that tune a cell, by factor; none where nothing is tuned.

    Raises:
        UserError: the recipe has no number above 0 to multiply.
    """
    tune = cell.wanted.tune
    if tune is None or cell.method is None:
        return {}
    metric = cell.wanted.metric or prepared.claim.metric
    assert metric is not None  # a claim with sides has one
    return {
        factor: specs(
            prepared, cell, tune.seeds, {tune.field: scaled(cell, tune, factor)}, [metric.key]
        )
        for factor in tune.factors
    }


def scaled(cell: Cell, tune: Tune, factor: float) -> float:
    """Return a factor of the recipe's value, to six digits; the value itself for a factor of 1."""
    assert cell.method is not None
    value = cell.method["config"].get(tune.field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(
            f"the recipe of {cell.name} has {tune.field} = {value!r}; the claim multiplies it and "
            "needs a number above 0"
        )
    return value if factor == 1 else float(f"{value * factor:.6g}")


def chosen(
    prepared: Prepared, cell: Cell, tried: Mapping[float, Sequence[RunSpec]], folder: Path
) -> Tuned:
    """Return what a cell's trials choose, their results read from a folder of tracks.

    Raises:
        UserError: a trial left no result, or no factor has a score.
    """
    tune, metric = cell.wanted.tune, cell.wanted.metric or prepared.claim.metric
    assert tune is not None  # or nothing was tried
    assert metric is not None  # a claim with sides has one
    found = {}
    for factor, of in tried.items():
        files = [_file(folder, spec) for spec in of]
        for file in files:
            if not file.exists():
                raise UserError(
                    f"{file.stem} left no result; see its folder, and run the command again"
                )
        found[factor] = [results.read(file) for file in files]
    return choose(tune, cell, found, metric, prepared.protocols[metric.key])


def _file(folder: Path, spec: RunSpec) -> Path:
    return folder / spec.track / f"{spec.run_id}.json"


def choose(
    tune: Tune, cell: Cell, trials: Mapping[float, Sequence[Result]], metric: Metric, protocol: str
) -> Tuned:
    """Return the factor with the best mean on validation; of equals, the one nearest to 1.

    Raises:
        UserError: no factor has a score.
    """
    scores: dict[float, float | None] = {}
    for factor, found in trials.items():
        values = [
            entry.validation[metric.name]
            for result in found
            if (entry := result.evaluations.get(protocol)) and metric.name in entry.validation
        ]
        whole = len(values) == len(tune.seeds)
        scores[factor] = sum(values) / len(values) if whole else None
    scored = {factor: score for factor, score in scores.items() if score is not None}
    if not scored:
        raise UserError(f"{cell.name}: none of its trials has a score; see their results")
    sign = -1 if is_distance(metric.protocol, metric.name) else 1
    best = max(scored, key=lambda f: (sign * scored[f], -abs(math.log(f)), -f))
    return Tuned(
        field=tune.field,
        scores={f"{factor:g}": score for factor, score in scores.items()},
        factor=best,
        value=scaled(cell, tune, best),
        at_edge=best in (min(tune.factors), max(tune.factors)),
    )


def specs(
    prepared: Prepared,
    cell: Cell,
    seeds: Iterable[int],
    settings: Mapping[str, Any],
    keys: Iterable[str],
) -> list[RunSpec]:
    """Return a cell's runs, evaluated by no more than the claim needs: by these `Metric.key`s."""
    assert cell.method is not None
    method = cell.method | {"config": cell.method["config"] | dict(settings)}
    asked: dict[str, Any] = {"seeds": list(seeds), "device": prepared.device}
    prices = pricing.prices(
        cell.track,
        {cell.name: method},
        cell.ground.data,
        seed=asked["seeds"][0],
        runs_dir=prepared.runs_dir,
        boards=[prepared.leaderboards_dir, session.published_folder().parent],
        device=prepared.device,
    )
    planned = plan(cell.track, {cell.name: method}, cell.ground.data, prices=prices, **asked)
    tuning = cell.method.get("tuning", "0")
    more = f"+{len(cell.wanted.tune.factors)}" if cell.wanted.tune else ""
    source, evaluations = cell.track.data["name"], [prepared.asked[key] for key in keys]
    return [
        replace(
            session.with_source(spec, source),
            evaluations=evaluations,
            row=spec.row | ({"tuning": f"{tuning}{more}"} if spec.plugin else {}),
        )
        for spec in planned
    ]


def cell_record(
    cell: Cell, runs: Sequence[RunSpec], trials: Iterable[RunSpec], tuned: Tuned | None
) -> CellRecord:
    """Return what the record says of a cell."""
    place = {"contrast": cell.contrast, "side": cell.side, "method": cell.name}
    if cell.method is None:
        return CellRecord(**place, absent=True)
    return CellRecord(
        **place,
        title=cell.method["card"]["title"],
        variant=runs[0].row["variant"],
        track=runs[0].track,
        batch_size=cell.track.batch_size,
        budget=budgets.words(cell.track.budget),
        runs={str(spec.spec["seed"]): spec.run_id for spec in runs},
        trials=[spec.run_id for spec in trials],
        tuned=tuned,
    )


def missing(runs: Iterable[RunSpec], options: Options, protocols: Iterable[str]) -> list[RunSpec]:
    """Return the runs that neither a board nor a study has finished with today's code."""
    needed, lacking = set(protocols), {}
    for spec in runs:
        files = records.result_files(
            records.studies_folder(options.runs_dir), spec.track, spec.run_id
        )
        if options.force or not any(will_do(file, spec, needed) for file in files):
            lacking[spec.run_id, spec.track] = spec
    return list(lacking.values())


def to_do(prepared: Prepared, options: Options) -> tuple[list[RunSpec], list[RunSpec]]:
    """Return the trials and the runs that are still to come.

    Which setting a cell's trials choose is not known before they end: until then its runs are those
    of its recipe.
    """
    folder = records.studies_folder(options.runs_dir) / "trials"
    trials: dict[str, RunSpec] = {}
    runs: list[RunSpec] = []
    needed = set(prepared.protocols.values())
    for cell in (cell for cell in prepared.cells if cell.method is not None):
        tried = trial_specs(prepared, cell)
        lacking = [
            spec
            for of in tried.values()
            for spec in of
            if not will_do(_file(folder, spec), spec, set())
        ]
        trials |= {spec.run_id: spec for spec in lacking}
        settings: dict[str, Any] = {}
        if tried and not lacking:
            tuned = chosen(prepared, cell, tried, folder)
            settings = {tuned.field: tuned.value}
        planned = specs(prepared, cell, prepared.seeds, settings, prepared.asked)
        runs += planned if lacking else missing(planned, options, needed)
    return list(trials.values()), list({(s.run_id, s.track): s for s in runs}.values())


def will_do(file: Path, spec: RunSpec, needed: set[str]) -> bool:
    """Return whether a result file has what is needed of a run, by today's code."""
    try:
        kept = results.read(file)
    except UserError:
        return False
    if kept.status not in results.TERMINAL or runner.is_stale(kept, spec):
        return False
    return kept.status != "done" or needed <= set(kept.evaluations)
