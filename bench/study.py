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

from bench import manager, recipes, records, results, runner, session
from bench.claim import Claim, Metric, Side, Tune
from bench.errors import UserError
from bench.plan import RAW_PIXELS, RAW_PIXELS_METHOD, RunSpec, load_track, override, plan
from bench.probe import probe
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
    """

    contrast: int
    side: int
    name: str
    wanted: Side
    track: Track
    method: dict[str, Any] | None


@dataclass(frozen=True)
class Prepared:
    """A claim's cells, and what planning them needs.

    Attributes:
        data: facts and splits, as `bench.plan.plan` takes them. protocols: {id: hash}.
        page: what boards say of the claim's track; seeds: of every cell.
    """

    claim: Claim
    track: Track
    cells: list[Cell]
    data: dict[str, Any]
    protocols: dict[str, str]
    seeds: list[int]
    holds: str
    device: str
    source: str


def prepare(
    claim: Claim,
    *,
    device: str = "cpu",
    runs_dir: Path = Path("runs"),
    leaderboards_dir: Path = Path("leaderboards"),
) -> Prepared:
    """Return the cells of a claim; nothing is trained.

    Raises:
        UserError: the track is missing, or a setting does not fit its method.
    """
    standard = load_track(claim.track)
    wanted = [(i, j, side) for i, c in enumerate(claim.contrasts) for j, side in enumerate(c.sides)]
    asked = dict.fromkeys(name for _, _, side in wanted for name in side.methods)
    names = [name for name in asked if name in manager.installed()]
    seeds = seeds_of(standard, claim.seeds)
    trial_seeds = {seed for _, _, side in wanted if side.tune for seed in side.tune.seeds}
    folders = session.recipe_folders(leaderboards_dir)
    kept = {name: r for name in names if (r := recipes.find(folders, standard.id, name))}
    evaluations = {name: standard.evaluations.get(name, {}) for name in protocol_names(claim)}
    asking: dict[str, Any] = {
        "recipe": standard.recipe,
        "tuned": {name: recipe.config for name, recipe in kept.items()},
        "runs_dir": runs_dir,
        "headline": standard.headline,
    }
    answer = probe(
        names,
        overrides={},
        seeds=[*seeds, *sorted(trial_seeds)],
        evaluations=standard.evaluations | evaluations,
        data={
            "name": standard.data["name"],
            "image_size": standard.image_size,
            "store_size": standard.store_size,
            "parity": standard.parity,
            "on_bad_image": "error",
            "test": True,
            "backbone": standard.backbone,
        },
        **asking,
    )
    methods: dict[tuple[str, str], dict[str, Any]] = {}

    def method(name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        if name == RAW_PIXELS:
            return dict(RAW_PIXELS_METHOD)
        if name not in names:
            return None
        key = (name, str(sorted(settings.items())))
        if key not in methods:
            found = answer["methods"][name]
            if settings:
                texts = {field: _text(value) for field, value in settings.items()}
                asked_again = probe([name], overrides={name: texts}, seeds=[], data=None, **asking)
                found = asked_again["methods"][name]
            if found["error"]:
                raise UserError(found["error"])
            found = found | {"plugin": name}
            if name in kept:
                found = session.tuned(found, kept[name], standard, answer["protocols"])
            methods[key] = found
        return methods[key]

    cells = [
        Cell(i, j, name, side, changed(standard, side), method(name, side.settings))
        for i, j, side in wanted
        for name in side.methods
    ]
    kind, amount = next(iter(standard.budget.items()))
    return Prepared(
        claim=claim,
        track=standard,
        cells=cells,
        data=answer["data"],
        protocols={p["id"]: p["hash"] for p in answer["protocols"] if p["id"] in evaluations},
        seeds=seeds,
        holds=f"{session.backbone_words(standard)}, {standard.id}, {amount} {kind}",
        device=device,
        source=standard.data["name"],
    )


def seeds_of(track: Track, count: int) -> list[int]:
    """Return the first seeds of the track's list, and whole numbers after it where it is short."""
    listed = list(track.seeds[:count])
    more = (seed for seed in range(1000) if seed not in listed)
    return listed + [next(more) for _ in range(count - len(listed))]


def protocol_names(claim: Claim) -> list[str]:
    """Return the evaluations that a claim's runs need."""
    metrics = [claim.metric, *claim.beside]
    for contrast in claim.contrasts:
        metrics += [contrast.select, *(side.metric for side in contrast.sides)]
    found = dict.fromkeys(m.protocol for m in metrics if m is not None and m.protocol != "cost")
    return list(found)


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


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
            prepared, cell, tune.seeds, {tune.field: scaled(cell, tune, factor)}, [metric.protocol]
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
    best = max(scored, key=lambda f: (scored[f], -abs(math.log(f)), -f))
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
    protocols: Iterable[str],
) -> list[RunSpec]:
    """Return a cell's runs, evaluated by no more than the claim needs."""
    assert cell.method is not None
    method = cell.method | {"config": cell.method["config"] | dict(settings)}
    planned = plan(
        cell.track, {cell.name: method}, prepared.data, seeds=seeds, device=prepared.device
    )
    tuning = cell.method.get("tuning", "0")
    more = f"+{len(cell.wanted.tune.factors)}" if cell.wanted.tune else ""
    evaluations = [
        {"name": name, "overrides": cell.track.evaluations.get(name, {})} for name in protocols
    ]
    return [
        replace(
            session.with_source(spec, prepared.source),
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
    kind, amount = next(iter(cell.track.budget.items()))
    return CellRecord(
        **place,
        title=cell.method["card"]["title"],
        variant=runs[0].row["variant"],
        track=runs[0].track,
        batch_size=cell.track.batch_size,
        budget=f"{amount} {kind}",
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


def will_do(file: Path, spec: RunSpec, needed: set[str]) -> bool:
    """Return whether a result file has what is needed of a run, by today's code."""
    try:
        kept = results.read(file)
    except UserError:
        return False
    if kept.status != "done":
        return kept.status in results.TERMINAL
    return needed <= set(kept.evaluations) and not runner.is_stale(kept, spec)
