"""From the options of `bench run` and `bench plan` to runs, and from results to a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ENGINE, budgets, manager, precision, pricing, recipes
from bench.errors import UserError
from bench.exits import OK, SOME_FAILED
from bench.plan import (
    RAW_PIXELS,
    RAW_PIXELS_METHOD,
    RunSpec,
    Track,
    absolute_name,
    data_name,
    load_track,
    override,
    parse_seeds,
    parse_settings,
    pin_data,
    plan,
    refuse_sampling,
    with_floors,
)
from bench.probe import probe, start_server
from bench.track import recipes_id
from bench.training_flops import Training

if TYPE_CHECKING:
    from bench.results import Result
    from bench.runner import Options

QUICK_SEEDS = 3
PARITY = (
    " Parity with published tables: pretraining and evaluations train on all training images, none "
    "is set aside for validation, and nothing was selected."
)
CHUNK = (
    " Methods embed {} images at a time, with the gradient of the whole batch's loss; BatchNorm "
    "normalises one such chunk at a time. Floors and references are not chunked."
)
COMPILED = " Networks are compiled."
CHECKPOINTING = " Backbones keep no activations of their blocks and compute them twice."


@dataclass(frozen=True)
class Session:
    """A plan, and what the boards say of its track.

    Attributes:
        broken: why each method that cannot run cannot, by name.
        page: what `bench.leaderboard` is told of the track.
        trained: what each method trains, by name, for counting its FLOPs.
    """

    track: Track
    specs: list[RunSpec]
    broken: dict[str, str]
    page: dict[str, Any]
    trained: dict[str, Training] = field(default_factory=dict)


def prepare(
    plugins: str,
    *,
    track: str = "digits",
    overrides: Mapping[str, Any] | None = None,
    seeds: str | None = None,
    settings: tuple[str, ...] = (),
    device: str = "cpu",
    processes: int = 1,
    on_bad_image: str = "error",
    dev: bool = False,
    runs_dir: Path = Path("runs"),
    leaderboards_dir: Path = Path("leaderboards"),
    hand_tuned: Mapping[str, int] | None = None,
) -> Session:
    """Return the runs that a board of these methods needs; nothing is trained.

    Args:
        plugins: names and files, split by commas, or `all`; the floors and reference come too.
        overrides: what replaces parts of the track, see `bench.track.override`.
        seeds: a number or a list; the first three of the track's list if not given.
        settings: METHOD.FIELD=VALUE each.
        dev: whether the test split must stay closed.
        leaderboards_dir: where tuned recipes are looked for first.
        hand_tuned: method -> trials that its author says were made by hand.

    Raises:
        UserError: an option is refused.
    """
    standard = load_track(track)
    chosen = override(standard, **(overrides or {}))
    if chosen.parity and dev:
        raise UserError(
            f"track {standard.id} has no validation images, and --dev reports nothing else; "
            "leave --dev out, or take a track that sets some aside"
        )
    asked = manager.select(plugins)
    named = {manager.method_name(request): request for request in asked}
    floors = [name for name in with_floors(chosen, named) if name not in (*named, RAW_PIXELS)]
    requests = [*asked, *(name for name in floors if name in manager.installed())]
    wanted = parse_seeds(seeds) if seeds else list(chosen.seeds[:QUICK_SEEDS])
    by_method = parse_settings(settings, [manager.method_name(r) for r in asked])
    names = [manager.method_name(request) for request in requests]
    start_server("bench.console", "bench.publish")  # which `execute` needs
    if set(names) - {RAW_PIXELS}:
        found = precision.resolve(chosen, device)  # before an open track's rows choose
        chosen = override(standard, **{**(overrides or {}), "precision": found})
    changed = chosen.id != standard.id
    places = recipe_folders(leaderboards_dir)
    source_of = recipes_id(chosen)
    kept = {n: r for n in names if (r := recipes.find(places, source_of, n)) is not None}
    answer = probe(
        requests,
        recipe=chosen.recipe,
        overrides=by_method,
        headline=chosen.headline,
        tuned={name: recipe.config for name, recipe in kept.items()},
        data={
            "name": chosen.data["name"],
            "image_size": chosen.image_size,
            "store_size": chosen.store_size,
            "parity": chosen.parity,
            "on_bad_image": on_bad_image,
            "test": not dev,
            "backbone": chosen.backbone,
            "checkpointing": chosen.checkpointing,
        },
        seeds=wanted,
        runs_dir=runs_dir,
        evaluations=chosen.evaluations,
    )
    refuse_sampling((overrides or {}).get("sampling"), [answer["methods"][r] for r in asked])
    every = "all" in map(str.strip, plugins.split(","))  # observers among them are not meant
    broken = {
        manager.method_name(request): error
        for request in requests
        if (error := answer["methods"][request]["error"])
        and not (every and answer["methods"][request].get("observer"))
    }
    broken |= {
        name: f"the track's {name!r} is not installed; its row is missing"
        for name in floors
        if name not in requests
    }
    methods: dict[str, Any] = {}
    if RAW_PIXELS in chosen.floors:
        methods[RAW_PIXELS] = RAW_PIXELS_METHOD
    for request in requests:
        described = answer["methods"][request]
        if described["error"] is None:
            name = manager.method_name(request)
            found = described | {"plugin": request}
            if name in kept:
                pinned = pin_data(chosen, answer["data"]["facts"])
                found = tuned(found, kept[name], pinned, answer["protocols"])
            if name in (hand_tuned or {}):
                found |= {"tuning": f"hand:{hand_tuned[name]}"}
            methods[name] = found
    data, facts = answer["data"], answer["data"]["facts"]
    source = chosen.data["name"]
    boards = [leaderboards_dir, published_folder().parent]
    priced = pricing.prices(
        chosen, methods, data, seed=wanted[0], runs_dir=runs_dir, boards=boards, device=device
    )
    chosen = pin_data(chosen, facts)
    specs = plan(
        chosen, methods, data, seeds=wanted, device=device, processes=processes, prices=priced
    )
    trained = pricing.trainings(specs, chosen, data)
    specs = [with_source(spec, source) for spec in specs]
    # Words of the page alone: the track's id is a hash of the track's content.
    words = {"title": chosen.title, "description": chosen.description}
    if changed:
        words = _adhoc_words(standard, (overrides or {}) | _precision_change(standard, chosen))
    common = replace(chosen, budget=standard.budget) if chosen.is_open else chosen
    page = _page(common, words, facts, answer["protocols"])
    page |= {"recipes": source_of} if source_of not in (chosen.id, chosen.recipes_of) else {}
    return Session(chosen, specs, broken, page, trained)


def recipe_folders(leaderboards_dir: Path) -> list[Path]:
    """Return where tuned recipes are looked for: one's own boards, the checkout, the package."""
    places = [leaderboards_dir / recipes.FOLDER, published_folder().parent / recipes.FOLDER]
    packaged = find_spec("bench_recipes")  # what a wheel carries of leaderboards/recipes
    places += map(Path, packaged.submodule_search_locations or ()) if packaged else []
    return list(dict.fromkeys(place.resolve() for place in places))


def tuned(
    method: Mapping[str, Any],
    recipe: recipes.Recipe,
    track: Track,
    protocols: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return a probed method with its tuned configuration, or with a note why it has none."""
    headline = next(protocol for protocol in protocols if protocol["headline"])
    tuned_on = load_track(track.recipes_of) if track.recipes_of else track
    misfit = recipes.fits(
        recipe,
        track_sha256=recipes.training_sha256(tuned_on),
        trials=track.trials,
        search=method["card"]["search"],
        standard=method["standard"],
        headline=headline["hash"],
    )
    if misfit or method["tuned"] is None:
        reason = misfit or "its configuration does not fit the method"
        return dict(method) | {"notes": [f"its tuned recipe was not used: {reason}"]}
    code = {"plugin_sha256": method["sha256"], "engine": ENGINE}
    return dict(method) | {
        "config": method["tuned"],
        "from": recipe.config,
        "tuning": str(len(recipe.trials)),
        "notes": [] if recipe.code == code else [recipes.OTHER_CODE],
    }


def _adhoc_words(standard: Track, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Return title and description of a changed track: the standard ones are true no longer."""
    changes = ", ".join(
        f"{name.replace('_', ' ')} {_word(name, value)}"
        for name, value in sorted(overrides.items())
        if value is not None
    )
    return {
        "title": f"{standard.id}, changed",
        "description": (
            f"Ad-hoc track: {standard.id} with {changes}. Its rows stand beside no others."
        ),
    }


def _precision_change(standard: Track, chosen: Track) -> dict[str, str | None]:
    """Return what `auto` has become as an override; None where that is the standard's own."""
    own = "fp32" if standard.precision == "auto" else standard.precision  # as a track's id has it
    return {"precision": None if chosen.precision in (own, "auto") else chosen.precision}


def _word(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in sorted(value.items()))
    return data_name(value) if name == "dataset" else str(value)


def with_source(spec: RunSpec, source: str) -> RunSpec:
    """Return the spec with a relative path in the data set's name made absolute."""
    return replace(spec, dataset=absolute_name(source))


def _page(
    track: Track,
    words: Mapping[str, str],
    facts: Mapping[str, Any],
    protocols: list[dict[str, Any]],
) -> dict[str, Any]:
    gray = " Gray images: views of hue and saturation have no effect."
    stored = f" Stored at {track.store_size} px: views crop from that, evaluations see its centre."
    ceilings = {"flops": track.budget["flops"]} if track.is_open else {}
    ceilings |= {"parameters": track.max_parameters} if track.max_parameters else {}
    more = {"division": "open" * track.is_open, "ceilings": ceilings, "smaller": [*track.smaller]}
    free = {key: "free" for key in ("backbone", "batch_size") if track.is_open}
    return (
        {
            "id": track.id,
            "title": words["title"],
            "description": " ".join(words["description"].split())
            + gray * (facts["channels"] == 1)
            + stored * (track.store_size is not None)
            + PARITY * track.parity
            + (CHUNK.format(track.chunk) if track.chunk else "")
            + CHECKPOINTING * track.checkpointing
            + COMPILED * track.compile,
            "smoke": track.smoke,
            "seeds": list(track.seeds),
            "data": data_name(facts["name"]),
            "licence": facts["licence"],
            "backbone": backbone_words(track),
            "image_size": track.image_size,
            "budget": budgets.words(track.budget),
            "batch_size": track.batch_size,
            "precision": track.precision,
            "protocols": protocols,
            "floors": list(track.floors),
            "reference": track.reference,
            "data_sha256": facts["sha256"],
            "test_sha256": facts["test_sha256"],
            "trials": track.trials,
        }
        | free
        | {key: value for key, value in more.items() if value}
    )


def backbone_words(track: Track) -> str:
    """Return what a page says of the track's backbone."""
    args = ", ".join(f"{key}={value}" for key, value in sorted(track.backbone["args"].items()))
    stem = track.backbone["stem"]
    backbone = track.backbone["name"] + (f" ({args})" if args else "")
    if stem:
        pool = "" if stem["max_pool"] else ", no max-pool"
        backbone += f", {stem['kernel']}x{stem['kernel']} stride-{stem['stride']} stem{pool}"
    return backbone


def execute(
    session: Session,
    options: Options,
    *,
    say: Callable[[str], None],
    live: bool,
    seconds: Mapping[str, float] | None = None,
) -> int:
    """Run the plan; return the exit status of `bench run`. `seconds` are for the `Console`."""
    from bench.console import Console
    from bench.observers import notify
    from bench.page_files import write_track
    from bench.runner import carry_out, is_stale, outdated, result_path

    folder = options.results / session.track.id
    folder.mkdir(parents=True, exist_ok=True)
    write_track(folder, session.page)
    today = {protocol["id"]: protocol["hash"] for protocol in session.page["protocols"]}
    options = replace(options, protocols=today)
    bad: list[str] = []
    with Console(len(session.specs), say, live=live, seconds=seconds) as console:

        def finished(spec: RunSpec, result: Result | None, skipped: bool) -> None:
            console.finished(spec, result, skipped)
            if result is None:
                return
            bad.extend([spec.run_id] if result.status in ("diverged", "invalid") else [])
            if skipped and (older := outdated(result, today)):
                console.print(f"{spec.run_id}: an older {older} judged it; --stale judges it again")
            if skipped and is_stale(result, spec):
                console.print(f"{spec.run_id}: other code ran it; --stale runs today's")
            if not skipped:
                for line in notify(list(options.observers), result_path(spec, options)):
                    console.print(line)

        ended = carry_out(session.specs, options, finished=finished, watching=console.watching)
    return SOME_FAILED if ended == OK and bad else ended


def render(session: Session, options: Options) -> Path:
    """Render the working boards, published rows and the runs' sheets of images beside one's own;
    return the track's page."""
    from bench import beside, sheets
    from bench.leaderboard import page_name
    from bench.publish import render_all
    from bench.results import read_all

    published = {}
    committed = published_folder() / session.track.id
    if committed.is_dir() and not options.dev:
        published[session.track.id] = read_all(committed)[0]
    out = options.runs_dir / ("leaderboards-dev" if options.dev else "leaderboards")
    place = next((f for f in recipe_folders(options.leaderboards_dir) if f.is_dir()), None)
    own = [run for folder in sorted(options.results.glob("*/")) for run in read_all(folder)[0]]
    sheets.copy(out, sheets.planned(options.runs_dir, own))
    shown = beside.read(options.leaderboards_dir, recipes_folder=place)
    boards = [options.leaderboards_dir, published_folder().parent]
    counts, _ = pricing.counted(session.trained.values(), options.runs_dir, boards)
    render_all(
        options.results,
        out,
        published=published,
        current=current_code(),
        engine=ENGINE,
        beside=replace(shown, sheets=sheets.published(out), flops=counts),
        local={s.spec["method"]: s.spec["local"] for s in session.specs if "local" in s.spec},
    )
    return out / page_name(session.track.id)


def published_folder() -> Path:
    """Return where published results lie: of the checkout in use, else of the working folder."""
    spec = find_spec("bench")
    roots = [Path.cwd(), *([Path(spec.origin).parents[1]] if spec and spec.origin else [])]
    folders = [root / "leaderboards" / "results" for root in roots]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def current_code() -> dict[str, str]:
    """Return the sha256 of each installed method's source, without importing any."""
    hashes = {}
    for name, entry in manager.installed().items():
        file = manager.source_file(entry.module)
        if file is not None:
            hashes[name] = manager.source_sha256(file)
    return hashes
