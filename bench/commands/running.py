"""Commands that plan and run: `bench run`, `bench plan`, `bench worker`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench import display
from bench.errors import UnknownName
from bench.exits import NOTHING_LOADED, OK, SOME_FAILED
from bench.options import FOLDER, POSITIVE, SECONDS, as_json, json_object, selecting

if TYPE_CHECKING:
    from bench.expected import Expected


@click.command()
@selecting
@click.option("--results-dir", type=FOLDER, help="Where results go; default RUNS_DIR/results.")
@click.option("--jobs", type=POSITIVE, help="Runs at a time; default by cores and memory.")
@click.option("--timeout", type=SECONDS, default=86_400.0, help="Seconds that a run may take.")
@click.option("--stall", type=SECONDS, default=900.0, help="Seconds that a step may take.")
@click.option("--force", is_flag=True, help="Run again what is finished.")
@click.option("--stale", is_flag=True, help="Run again what other code produced.")
@click.option("--dev", is_flag=True, help="Never open the test split; show validation scores.")
@click.option("--observers", default="", help="Plugins told of each finished run, by commas.")
@as_json
def run(json: bool, **options: Any) -> int:
    """Train and evaluate what is not finished yet, and render the board."""
    from bench import inventory, session
    from bench.runner import Options

    carried = {key: options.pop(key) for key in ("jobs", "timeout", "stall")}
    carried |= {"dev": options["dev"]} | {key: options.pop(key) for key in ("force", "stale")}
    if observers := options.pop("observers"):
        from bench.observers import load

        carried["observers"] = load(observers)
    if (results_dir := options.pop("results_dir")) is not None:
        carried["results_dir"] = results_dir
    prepared = _prepare(options)
    if prepared is None:
        return NOTHING_LOADED
    carried["jobs"] = carried["jobs"] or prepared.track.jobs
    for key in ("device", "processes", "on_bad_image", "runs_dir", "leaderboards_dir"):
        carried[key] = options[key]
    carrying = Options(**carried)
    live, say = sys.stdout.isatty() and not json, _to_stderr if json else click.echo
    takes, line = _to_come(prepared.specs, carrying)
    if line:
        say(line)
    status = session.execute(prepared, carrying, say=say, live=live, seconds=takes.seconds)
    page = session.render(prepared, carrying)
    if json:
        runs = inventory.outcomes(prepared.specs, carrying)
        said = {"status": status, "page": str(page), "broken": prepared.broken, "runs": runs}
        click.echo(display.json(said))
    else:
        click.echo(f"board: {page}")
    broken = set(prepared.broken) & set(_requested(options["plugins"]))
    return SOME_FAILED if status == OK and broken else status


@click.command()
@selecting
@as_json
def plan(json: bool, **options: Any) -> int:
    """Show what `bench run` would do, without doing it."""
    from bench import inventory
    from bench.runner import Options

    prepared = _prepare(options)
    if prepared is None:
        return NOTHING_LOADED
    if json:
        keys = ("run_id", "track", "spec", "row")
        click.echo(display.json([{k: getattr(s, k) for k in keys} for s in prepared.specs]))
        return OK
    page = prepared.page
    click.echo(f"{page['id']}: {page['data']} at {page['image_size']} px, {page['backbone']},")
    click.echo(f"{page['budget']}, batch {page['batch_size']}, precision {page['precision']}\n")
    planned = {key: options[key] for key in ("runs_dir", "leaderboards_dir", "device")}
    outcomes = inventory.outcomes(prepared.specs, Options(**planned))
    rows = [
        (spec.run_id, spec.spec["budget"]["steps"], spec.row["variant"], outcome["status"])
        for spec, outcome in zip(prepared.specs, outcomes, strict=True)
    ]
    click.echo(display.table(("run", "steps", "variant", "state"), rows))
    if line := _to_come(prepared.specs, Options(**planned))[1]:
        click.echo(f"\n{line}")
    return OK


def _to_come(specs: list[Any], options: Any) -> tuple[Expected, str]:
    """Return what the runs that are to do will take, and a line on that; "" where nothing tells."""
    from bench import judge, session
    from bench.expected import expected
    from bench.runner import kept_result

    waiting = [spec for spec in specs if kept_result(spec, options) is None]
    boards = session.published_folder().parent
    folders = [options.runs_dir, options.leaderboards_dir, boards]
    takes = expected(waiting, folders, judge.processor(), options.device)
    return takes, f"{len(waiting)} of {len(specs)} runs to do: {takes}" if takes.earlier else ""


@click.command()
@click.argument("run_dir", type=FOLDER)
def worker(run_dir: Path) -> int:
    """Carry out one run's orders, RUN_DIR/run.json; what a scheduler calls on another machine."""
    from bench.worker import main as work

    return work(run_dir)


def _prepare(options: dict[str, Any]) -> Any:
    """Return the session of the options, or None if no requested plugin could be loaded."""
    from bench import budgets, compiled, session
    from bench.plan import parse_counts, parse_sampling

    keys = ("dataset", "backbone", "stem", "image_size", "epochs", "batch_size", "limit", "chunk")
    overrides = {key: options[key] for key in (*keys, "precision", "threads", "samples")}
    if options["backbone_args"]:
        overrides["backbone_args"] = json_object("--backbone-args", options["backbone_args"])
    overrides |= {key: options[key] or None for key in ("allow_small", "checkpointing", "compile")}
    overrides["budget"] = budgets.parse(options["budget"]) if options["budget"] else None
    overrides["sampling"] = parse_sampling(options["sampling"]) or None
    options["device"] = device_of(options["device"])
    kept = ("plugins", "track", "seeds", "settings", "device", "processes", "on_bad_image")
    given = {key: options[key] for key in (*kept, "runs_dir", "leaderboards_dir")}
    given["hand_tuned"] = parse_counts(options["hand_tuned"], _requested(options["plugins"]))
    prepared = session.prepare(**given, overrides=overrides, dev=options.get("dev", False))
    if prepared.track.compile:
        compiled.refuse(options["device"])
    for line in prepared.broken.values():
        click.echo(f"Error: {line}", err=True)
    return None if set(_requested(options["plugins"])) <= set(prepared.broken) else prepared


def _requested(plugins: str) -> list[str]:
    from bench import manager

    return [manager.method_name(request) for request in manager.select(plugins)]


def device_of(name: str) -> str:
    """Return "cuda" or "cpu" for `auto`: without torch, by the driver and what it may show."""
    from bench.driver import card_is_there, cuda_is_asked

    if name == "auto":
        return "cuda" if card_is_there() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UnknownName("device", name, ("auto", "cpu", "cuda"))
    cuda_is_asked(name)
    return name


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)
