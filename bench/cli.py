"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json as json_
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import display
from bench.errors import UnknownName, UserError
from bench.options import (
    FILE,
    FOLDER,
    POSITIVE,
    SECONDS,
    as_json,
    leaderboards_dir,
    runs_dir,
    selecting,
)

OK, SOME_FAILED, USAGE, NOTHING_LOADED, BAD_BOARD, INTERRUPTED = 0, 1, 2, 3, 4, 130


class _Commands(click.Group):
    """A group that answers an unknown command with the nearest one, whatever click's version."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UnknownName("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status; every user's error is one line on stderr.

    0 ok, 1 some runs failed, 2 usage, 3 no requested plugin could be loaded, 4 a stale or invalid
    board, 130 and 143 interrupted.
    """
    try:
        with bench.make_context("bench", list(sys.argv[1:] if args is None else args)) as context:
            status = bench.invoke(context)
        sys.stdout.flush()
        return status
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return USAGE
    except click.ClickException as error:
        return _refuse(error.format_message())
    except UserError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; run the same command again to go on.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return USAGE


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pretrain-bench")
def bench() -> None:
    """Train vision pretraining methods beside each other and render boards that can be trusted."""


@bench.command()
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
        from bench import manager

        carried["observers"] = tuple(manager.select(observers))
    if (results_dir := options.pop("results_dir")) is not None:
        carried["results_dir"] = results_dir
    prepared = _prepare(options)
    if prepared is None:
        return NOTHING_LOADED
    carried["jobs"] = carried["jobs"] or prepared.track.jobs
    for key in ("device", "processes", "on_bad_image", "runs_dir"):
        carried[key] = options[key]
    carrying = Options(**carried)
    live = sys.stdout.isatty() and not json
    status = session.execute(prepared, carrying, say=_to_stderr if json else click.echo, live=live)
    page = session.render(prepared, carrying)
    if json:
        runs = inventory.outcomes(prepared.specs, carrying)
        said = {"status": status, "page": str(page), "broken": prepared.broken, "runs": runs}
        click.echo(display.json(said))
    else:
        click.echo(f"board: {page}")
    broken = set(prepared.broken) & set(_requested(options["plugins"]))
    return SOME_FAILED if status == OK and broken else status


@bench.command()
@selecting
@as_json
def plan(json: bool, **options: Any) -> int:
    """Show what `bench run` would do, without doing it."""
    from bench import inventory, session
    from bench.runner import Options

    prepared = _prepare(options)
    if prepared is None:
        return NOTHING_LOADED
    if json:
        click.echo(session.as_json(prepared.specs))
        return OK
    page = prepared.page
    click.echo(f"{page['id']}: {page['data']} at {page['image_size']} px, {page['backbone']},")
    click.echo(f"{page['budget']}, batch {page['batch_size']}, precision {page['precision']}\n")
    outcomes = inventory.outcomes(prepared.specs, Options(runs_dir=options["runs_dir"]))
    rows = [
        (spec.run_id, spec.spec["budget"]["steps"], spec.row["variant"], outcome["status"])
        for spec, outcome in zip(prepared.specs, outcomes, strict=True)
    ]
    click.echo(display.table(("run", "steps", "variant", "state"), rows))
    return OK


@bench.command("list")
@click.option("--load", is_flag=True, help="Import each plugin, in a child, and say which fail.")
@as_json
def list_(load: bool, json: bool) -> int:
    """List the installed methods."""
    from bench import inventory

    found = inventory.methods(load=load)
    click.echo(display.json(found) if json else display.methods(found))
    return OK


@bench.command()
@click.argument("name")
@as_json
def info(name: str, json: bool) -> int:
    """Show a method's card: an installed NAME or a file."""
    from bench import inventory, manager

    found = manager.find(name)
    answer = inventory.describe([name])[name]
    if answer["error"]:
        click.echo(f"Error: {answer['error']}", err=True)
        return NOTHING_LOADED
    file = found if isinstance(found, Path) else found.file
    click.echo(display.json(answer) if json else display.card(answer, str(file)))
    return OK


@bench.command()
@click.argument("run_dir", type=FOLDER)
def worker(run_dir: Path) -> int:
    """Carry out one run's orders, RUN_DIR/run.json; what a scheduler calls on another machine."""
    from bench.worker import main as work

    return work(run_dir)


@bench.command("eval")
@click.argument("run", required=False)
@click.option("--evaluations", help="Protocols, split by commas; default all.")
@click.option("--track", help="A track that gives backbone, data and image size.")
@click.option("--backbone", help="The name of a timm model.")
@click.option("--backbone-args", default="{}", help="Its arguments as a JSON object.")
@click.option("--weights", type=FILE, help="A checkpoint: .safetensors, or .pt with tensors only.")
@click.option("--data", help="A data set: a name, npz:PATH or imagefolder:PATH.")
@click.option("--image-size", type=POSITIVE, help="Side of the images in pixels; default 32.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Picks the validation split.")
@runs_dir
@as_json
def eval_(
    run: str | None, evaluations: str | None, runs_dir: Path, json: bool, **options: Any
) -> int:
    """Evaluate a finished RUN further, or any checkpoint: --backbone, --weights, --data."""
    from bench.evaluations import NAMES

    names = [name.strip() for name in evaluations.split(",")] if evaluations else list(NAMES)
    if unknown := [name for name in names if name not in NAMES]:
        raise UnknownName("evaluation", unknown[0], NAMES)
    if run is not None:
        if given := [key for key in ("track", "backbone", "weights", "data") if options[key]]:
            raise UserError(f"--{given[0]} is for checkpoints from elsewhere; leave it or RUN out")
        from bench.external import evaluate_run

        result, notes = evaluate_run(run, names, runs_dir), []
    else:
        seed = options.pop("seed")
        backbone, weights, where = _checkpoint(**options)
        from bench.external import evaluate_checkpoint

        result, notes = evaluate_checkpoint(
            backbone, weights, names=names, runs_dir=runs_dir, seed=seed, **where
        )
    if json:
        click.echo(display.json(result.document()))
        return OK
    for note in [*result.row.notes, *(note for note in notes if note not in result.row.notes)]:
        click.echo(note)
    metrics = [
        (entry.id, key, f"{entry.metrics[key]:.2f}")
        for entry in result.evaluations.values()
        for key in entry.metrics
    ]
    click.echo(display.table(("evaluation", "metric", "percent"), metrics))
    return OK


@bench.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 4 if a board would change.")
@leaderboards_dir
def leaderboard(check: bool, leaderboards_dir: Path) -> int:
    """Render the published boards from their result files."""
    from bench import ENGINE, session
    from bench import publish as boards

    if not (leaderboards_dir / "results").is_dir():
        raise UserError(f"no published results in {leaderboards_dir}; `bench publish` copies them")
    now = {"current": session.current_code(), "engine": ENGINE}
    if not check:
        written = boards.render_all(leaderboards_dir / "results", leaderboards_dir, **now)
        click.echo("\n".join(str(path) for path in written))
        return OK
    differences = boards.check(leaderboards_dir, **now)
    for line in differences:
        click.echo(line, err=True)
    return BAD_BOARD if differences else OK


@bench.command()
@click.option("--track", "tracks", multiple=True, help="Only this track; may be given again.")
@click.option("--include-local", is_flag=True, help="Also rows of plugins that are bare files.")
@click.option("--force", is_flag=True, help="Replace published results that differ.")
@runs_dir
@leaderboards_dir
def publish(
    tracks: tuple[str, ...],
    include_local: bool,
    force: bool,
    runs_dir: Path,
    leaderboards_dir: Path,
) -> int:
    """Check finished results, copy them to the published boards and render those."""
    from bench import ENGINE, session
    from bench import publish as boards

    written = boards.publish(
        runs_dir,
        leaderboards_dir,
        list(tracks) or None,
        include_local=include_local,
        force=force,
        current=session.current_code(),
        engine=ENGINE,
    )
    click.echo("\n".join(str(path) for path in written))
    return OK


@bench.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check; may be repeated.")
@click.option("--expect", multiple=True, metavar="CHECK=WHY", help="A check that fails, and why.")
@as_json
def check(
    names: tuple[str, ...], only: tuple[str, ...], expect: tuple[str, ...], json: bool
) -> int:
    """Check that plugins keep the contract: installed NAMES or files."""
    from bench.checks import main as conform

    expected = dict(_pair(text, "--expect", "CHECK=WHY") for text in expect)
    return conform(list(names), expected_failures=expected, as_json=json, only=only or None)


@bench.command()
@runs_dir
@as_json
def doctor(runs_dir: Path, json: bool) -> int:
    """Show versions, devices, data sets, and plugins that do not load."""
    from bench import inventory

    found = inventory.report(runs_dir)
    click.echo(display.json(found) if json else display.report(found))
    return OK


def _prepare(options: dict[str, Any]) -> Any:
    """Return the session of the options, or None if no requested plugin could be loaded."""
    from bench import session

    keys = ("dataset", "backbone", "image_size", "epochs", "batch_size", "limit")
    overrides = {key: options[key] for key in (*keys, "precision", "threads")}
    options["device"] = _device(options["device"])
    kept = ("plugins", "track", "seeds", "settings", "device", "processes", "on_bad_image")
    given = {key: options[key] for key in (*kept, "runs_dir")}
    prepared = session.prepare(**given, overrides=overrides, dev=options.get("dev", False))
    for line in prepared.broken.values():
        click.echo(f"Error: {line}", err=True)
    return None if set(_requested(options["plugins"])) <= set(prepared.broken) else prepared


def _requested(plugins: str) -> list[str]:
    from bench import manager

    return [manager.method_name(request) for request in manager.select(plugins)]


def _device(name: str) -> str:
    """Return "cuda" or "cpu" for `auto`: without torch, by the driver and what it may show."""
    from bench.session import cuda_is_asked

    if name == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
        return "cuda" if Path("/proc/driver/nvidia").exists() and not hidden else "cpu"
    if name not in ("cpu", "cuda"):
        raise UnknownName("device", name, ("auto", "cpu", "cuda"))
    cuda_is_asked(name)
    return name


def _checkpoint(
    *,
    track: str | None,
    backbone: str | None,
    backbone_args: str,
    weights: Path | None,
    data: str | None,
    image_size: int | None,
) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """Return the backbone's spec, the file, and the data set's name and size for `bench eval`."""
    spec = {"name": backbone, "args": _json_object(backbone_args), "stem": None}
    if track is not None:
        from bench.track import load_track

        chosen = load_track(track)
        spec = chosen.backbone if backbone is None else spec
        data, image_size = data or chosen.data["name"], image_size or chosen.image_size
    if weights is None or data is None or spec["name"] is None:
        raise UserError(
            "expected a RUN, or --weights with --backbone and --data or with --track; "
            "see `bench eval --help`"
        )
    return spec, weights, {"dataset_name": data, "image_size": image_size or 32}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json_.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f'--backbone-args {text!r}: expected a JSON object, {{"patch_size": 4}}')
    return value


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{option} {text!r}: expected {form}")
    return name, value


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)
