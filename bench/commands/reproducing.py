"""`bench reproduce`: train a published run again and compare."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench import display
from bench.errors import UserError
from bench.exits import OK, SOME_FAILED
from bench.options import FILE, FOLDER, as_json, leaderboards_dir

if TYPE_CHECKING:
    from bench.results import Result


@click.command()
@click.argument("result", required=False, type=FILE)
@click.option("--random", is_flag=True, help="Draw a published run by the date.")
@click.option("--track", help="With --random: draw from this track alone.")
@click.option("--date", "day", metavar="YYYY-MM-DD", help="With --random; default today in UTC.")
@click.option("--dataset", help="Where the data lie, npz:PATH or imagefolder:PATH.")
@click.option("--plugin", help="The file of a method that is not installed.")
@click.option("--stale-ok", is_flag=True, help="Go on although plugin or engine have changed.")
@click.option("--device", help="auto, cpu or cuda; default: as the run had it.")
@click.option("--record", is_flag=True, help="Add the outcome to the boards' reproduced.jsonl.")
@click.option(
    "--runs-dir",
    type=FOLDER,
    default=Path("runs/reproduced"),
    show_default=True,
    help="Where the run is trained again; not where `bench run` works.",
)
@leaderboards_dir
@as_json
def reproduce(
    result: Path | None,
    random: bool,
    track: str | None,
    day: str | None,
    dataset: str | None,
    plugin: str | None,
    stale_ok: bool,
    device: str | None,
    record: bool,
    runs_dir: Path,
    leaderboards_dir: Path,
    json: bool,
) -> int:
    """Train the run in RESULT again from its spec: the same bytes, or numbers that fit the row.

    Exits with 0 if it came out the same, with 1 if not.
    """
    from bench import reproduce as reproducing
    from bench import verdict
    from bench.commands.running import device_of
    from bench.results import TERMINAL, read
    from bench.runner import Options

    if random == (result is not None):
        raise UserError("expected the file of one result, or --random")
    if not random and (track or day):
        raise UserError(f"--{'track' if track else 'date'} is for --random; leave it or RESULT out")
    say = _to_stderr if json else click.echo
    if result is None:
        result = _drawn(leaderboards_dir, day, track, device, say)
    run = read(result)
    reproducing.check_published(run)
    if record:
        _refuse_record(result, run, leaderboards_dir, stale_ok)
    recorded = "cpu" if run.machine.device == "cpu" else "cuda"
    options = Options(
        runs_dir,
        device=device_of(device or recorded),
        processes=run.machine.processes,
        jobs=1,
        dev=reproducing.validation_only(run),
        on_bad_image=reproducing.on_bad_image(run),
        leaderboards_dir=leaderboards_dir,
    )
    row = verdict.published_row(result, run)
    spec = reproducing.rebuild(
        run, row, plugin=plugin, dataset=dataset, stale_ok=stale_ok, runs_dir=runs_dir
    )
    if changed := reproducing.stale(run, spec.code["plugin_sha256"]):
        say(f"stale: {changed}")
    live = sys.stdout.isatty() and not json
    again, status = reproducing.carry_out(spec, options, say=say, live=live)
    if again is None:
        return status or SOME_FAILED
    found = verdict.compare(run, again, row)
    differences = verdict.differences(run, again)
    if json:
        said = {"run_id": run.run_id, "track": run.track, "verdict": found.kind, "said": found.said}
        click.echo(display.json(said | {"differences": differences}))
    else:
        click.echo("\n".join([*differences, found.said]))
    if record and again.status in TERMINAL:
        say(f"recorded in {_record(run, again, found.kind, leaderboards_dir)}; render the boards")
    return OK if found.holds else SOME_FAILED


def _drawn(
    leaderboards_dir: Path,
    day: str | None,
    track: str | None,
    device: str | None,
    say: Callable[[str], None],
) -> Path:
    from bench import draw, session
    from bench.commands.running import device_of

    try:
        chosen = date.fromisoformat(day) if day else _today()
    except ValueError:
        raise UserError(f"--date {day!r}: expected a day as YYYY-MM-DD") from None
    path, said = draw.choose(
        leaderboards_dir,
        chosen,
        track=track,
        cuda=device_of(device or "cpu") == "cuda",
        current=session.current_code(),
    )
    say(said)
    return path


def _today() -> date:
    return datetime.now(UTC).date()


def _refuse_record(path: Path, run: Result, leaderboards_dir: Path, stale_ok: bool) -> None:
    """Refuse a record that would say nothing of the published boards, before anything is trained.

    Raises:
        UserError: the result is no published one, or today's code may be another.
    """
    from bench import reproductions

    if stale_ok:
        raise UserError("--record: what other code made is not recorded; leave --stale-ok out")
    published = leaderboards_dir / "results" / run.track / path.name
    if path.resolve() != published.resolve():
        raise UserError(f"--record: {path} does not lie in {published.parent}; publish it first")
    reproductions.read(leaderboards_dir)


def _record(run: Result, again: Result, kind: str, leaderboards_dir: Path) -> Path:
    from importlib.metadata import version

    from bench import reproductions

    record = reproductions.Record(
        date=_today().isoformat(),
        run_id=run.run_id,
        track=run.track,
        verdict=kind,  # type: ignore[arg-type]
        published=reproductions.backbone_sha256(run),
        backbone=reproductions.backbone_sha256(again),
        machine=again.machine,
        version=version("pretrain-bench"),
    )
    return reproductions.append(leaderboards_dir, record)


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)
