"""Equal tuning: the same number of full-budget trials for every method, scored on validation.

Trial 0 is the plugin's own recipe; the others are the first points of one Sobol sequence, the same
for every method, laid over its search space. Trials have seeds that never report, and the data set
is loaded without its test arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import manager, precision, recipes
from bench.cards import MAX_SEARCH
from bench.columns import is_distance
from bench.errors import UserError
from bench.plan import load_track, plan
from bench.probe import probe
from bench.session import with_source
from bench.track import pin_data, recipes_id

if TYPE_CHECKING:
    from bench.plan import RunSpec
    from bench.results import Result
    from bench.runner import Options
    from bench.track import Track

FIRST_SEED = 1000  # of trial 0; a track's own seeds are small
ATTEMPTS = 2  # of a trial that fails
DIGITS = 4  # significant digits of a value that is drawn


def points(trials: int) -> list[list[float]]:
    """Return trials 1 .. `trials` - 1 of the sequence, each `MAX_SEARCH` numbers in (0, 1).

    Sobol's sequence with the direction numbers of Joe and Kuo (2008), unscrambled: its first
    point, the origin, is left out, so the second, the middle of every dimension, comes first.
    """
    from scipy.stats import qmc

    if trials < 2:
        return []
    sequence = qmc.Sobol(MAX_SEARCH, scramble=False)
    sequence.fast_forward(1)
    exponent = math.ceil(math.log2(trials))
    drawn = [sequence.random(1)[0].tolist() for _ in range(2**exponent - 1)]
    return drawn[: trials - 1]


def changes(
    search: Mapping[str, Sequence[Any]], standard: Mapping[str, Any], trials: int
) -> list[dict[str, Any]]:
    """Return what each trial changes of the standard recipe; nothing in trial 0.

    A dimension whose field is None in the standard recipe is left alone: an absolute rate where
    the recipe has one per 256 images.

    Args:
        search: the card's, {field: [kind, *arguments]}.
        standard: every field of the recipe.
    """
    used = {field: law for field, law in search.items() if standard[field] is not None}
    drawn = [
        {
            field: _value(law, number, standard[field])
            for (field, law), number in zip(used.items(), point, strict=False)
        }
        for point in points(trials)
    ]
    return [{}, *drawn]


def _value(law: Sequence[Any], number: float, like: Any) -> Any:
    """Return the value at `number` in (0, 1) of a dimension, an integer where the field is one."""
    kind, *arguments = law
    if kind == "choice":
        return arguments[min(int(number * len(arguments)), len(arguments) - 1)]
    low, high = (math.log(float(bound)) for bound in arguments)
    value = float(f"{math.exp(low + number * (high - low)):.{DIGITS}g}")
    return round(value) if isinstance(like, int) and not isinstance(like, bool) else value


def trial_specs(
    track: Track,
    methods: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    *,
    device: str = "cpu",
    processes: int = 1,
) -> dict[str, list[RunSpec]]:
    """Return the runs of every trial by method, planned for the headline protocol alone.

    Args:
        methods: as for `bench.plan.plan`; `standard` in each is the plugin's own recipe.
        data: as for `bench.plan.plan`, with a split for each trial's seed.

    Raises:
        UserError: a method has no search space.
    """
    found: dict[str, list[RunSpec]] = {}
    headline = track.headline_protocol
    for name, method in methods.items():
        if not method["card"]["search"]:
            raise UserError(
                f"{name} has no search space in its card; nothing can be tuned. "
                'Declare one, such as search={"lr": ("log_uniform", 5e-4, 8e-3)}'
            )
        standard = method["standard"]
        found[name] = []
        for number, changed in enumerate(changes(method["card"]["search"], standard, track.trials)):
            tried = dict(method) | {"config": standard | changed}
            (spec,) = plan(
                track,
                {name: tried},
                data,
                seeds=[FIRST_SEED + number],
                device=device,
                processes=processes,
            )
            kept = [e for e in spec.evaluations if e["name"] == headline]
            row = spec.row | {"tuning": "trial"}
            found[name].append(replace(spec, evaluations=kept, row=row))
    return found


def seeds(trials: int) -> list[int]:
    """Return the seeds of the trials."""
    return [FIRST_SEED + number for number in range(trials)]


def conclude(
    track: Track,
    method: Mapping[str, Any],
    specs: Sequence[RunSpec],
    results: Sequence[Result],
    protocol: Mapping[str, Any],
) -> recipes.Recipe:
    """Return the recipe that the trials' results make.

    Args:
        method: the method's probe, with `standard` and `base`.
        specs, results: of the trials, in order.
        protocol: of the headline, {"id", "version", "hash", "headline"}.

    Raises:
        UserError: no trial has a score.
    """
    trials, standard = [], method["standard"]
    tuned = [field for field in method["card"]["search"] if standard[field] is not None]
    for number, (spec, result) in enumerate(zip(specs, results, strict=True)):
        entry = result.evaluations.get(protocol["hash"])
        score = None
        if result.status == "done" and entry is not None:
            score = entry.validation.get(protocol["headline"])
        config = spec.spec["config"]
        trials.append(
            recipes.Trial(
                number=number,
                seed=result.seed,
                changed={field: config[field] for field in tuned},
                score=score,
                status=result.status,
                seconds=round(result.cost.train_seconds, 2),
                run_id=result.run_id,
            )
        )
    scored = [trial for trial in trials if trial.score is not None]
    name = specs[0].spec["method"]
    if not scored:
        raise UserError(f"{name}: none of {len(trials)} trials has a score; see their results")
    best = min if is_distance(protocol["id"], protocol["headline"]) else max
    score = best(trial.score for trial in scored)
    winner = next(trial for trial in scored if trial.score == score)
    return recipes.Recipe(
        track=track.id,
        track_sha256=recipes.training_sha256(track),
        method=name,
        base=method["base"],
        search=method["card"]["search"],
        standard=dict(method["standard"]),
        config=dict(specs[winner.number].spec["config"]),
        headline={
            "id": protocol["id"],
            "version": protocol["version"],
            "hash": protocol["hash"],
            "metric": protocol["headline"],
        },
        code={
            "plugin_sha256": specs[0].code["plugin_sha256"],
            "engine": specs[0].code["engine"],
        },
        winner=winner.number,
        trials=tuple(trials),
    )


@dataclass(frozen=True)
class Session:
    """The trials of some methods on a track.

    Attributes:
        track: with a data set that a path names pinned to its content.
        methods: the probes, each with `standard` and `base`.
        specs: the runs of every trial, in order, by method.
        protocol: of the headline, {"id", "version", "hash", "headline"}.
    """

    track: Track
    methods: dict[str, dict[str, Any]]
    specs: dict[str, list[RunSpec]]
    protocol: dict[str, Any]


def prepare(
    requests: Sequence[str],
    *,
    track: str,
    device: str = "cpu",
    processes: int = 1,
    on_bad_image: str = "error",
    runs_dir: Path = Path("runs"),
) -> Session:
    """Return the trials that tuning these methods needs; no test array is read.

    Args:
        requests: installed names, or files.

    Raises:
        UserError: a method cannot be loaded, has nothing to tune, or an option is refused.
    """
    chosen = load_track(track)
    if chosen.trials < 1:
        raise UserError(f"track {chosen.id} asks for no trials; nothing to tune")
    names = {manager.method_name(request): request for request in requests}
    if manager.RAW_PIXELS in names:
        raise UserError(f"{manager.RAW_PIXELS} has no parameters; nothing to tune")
    chosen = precision.pin(chosen, device)
    answer = probe(
        list(names.values()),
        recipe=chosen.recipe,
        overrides={},
        data={
            "name": chosen.data["name"],
            "image_size": chosen.image_size,
            "store_size": chosen.store_size,
            "parity": chosen.parity,
            "on_bad_image": on_bad_image,
            "test": False,
            "backbone": chosen.backbone,
        },
        seeds=seeds(chosen.trials),
        runs_dir=runs_dir,
        evaluations=chosen.evaluations,
        headline=chosen.headline,
    )
    methods = {}
    for name, request in names.items():
        described = answer["methods"][request]
        if described["error"]:
            raise UserError(described["error"])
        methods[name] = described | {"plugin": request}
    specs = trial_specs(chosen, methods, answer["data"], device=device, processes=processes)
    source = chosen.data["name"]
    specs = {name: [with_source(spec, source) for spec in runs] for name, runs in specs.items()}
    protocol = next(p for p in answer["protocols"] if p["headline"])
    return Session(pin_data(chosen, answer["data"]["facts"]), methods, specs, protocol)


def trials_folder(runs_dir: Path) -> Path:
    """Return where the trials' results lie, apart from all that is reported."""
    return runs_dir / "tuning"


def write_recipes(session: Session, options: Options, leaderboards_dir: Path) -> list[str]:
    """Write the recipe of every method whose trials are all finished; return what is said.

    Raises:
        UserError: none of a method's trials has a score.
    """
    from bench.results import TERMINAL, read
    from bench.runner import is_stale, result_path

    said = []
    for name, specs in session.specs.items():
        paths = [result_path(spec, options) for spec in specs]
        found = [read(path) for path in paths if path.exists()]
        # One that failed twice has no score; it would fail for ever.
        done = [r for r in found if r.status in TERMINAL or r.attempts >= ATTEMPTS]
        if len(done) < len(specs):
            count = f"{len(done)} of {len(specs)} trials"
            said.append(f"{name}: {count} finished; run the command again")
            said += [f"{r.run_id} {r.status}: {r.reason}" for r in found if r not in done]
            continue
        other = sum(map(is_stale, found, specs))
        if other:
            count = f"{other} of {len(specs)} trials"
            said.append(f"{name}: other code than today's ran {count}; --stale runs them again")
            continue
        recipe = conclude(session.track, session.methods[name], specs, found, session.protocol)
        folder = leaderboards_dir / recipes.FOLDER
        file = recipes.path(folder, recipes_id(session.track), name)
        recipes.write(file, recipe)
        best = recipe.trials[recipe.winner]
        changed = ", ".join(f"{key}={value}" for key, value in best.changed.items())
        unit = "" if is_distance(recipe.headline["id"], recipe.headline["metric"]) else " %"
        said.append(f"{name}: trial {best.number}, {best.score:.2f}{unit} ({changed}) -> {file}")
    return said
