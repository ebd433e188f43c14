"""Commands about published boards and this machine: `leaderboard`, `publish`, `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bench import display
from bench.errors import UnknownName, UserError
from bench.exits import BAD_BOARD, OK, SOME_FAILED
from bench.options import as_json, leaderboards_dir, runs_dir


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 4 if a board would change.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["markdown", "csv", "json", "latex"]),
    help="Write nothing; print the tables with their protocols.",
)
@click.option("--track", help="With --format: this track alone.")
@click.option("--row", metavar="METHOD", help="With --format: the rows of one method.")
@click.option("--count", is_flag=True, help="First count training FLOPs that rows lack.")
@leaderboards_dir
@runs_dir
def leaderboard(
    check: bool,
    form: str | None,
    track: str | None,
    row: str | None,
    count: bool,
    leaderboards_dir: Path,
    runs_dir: Path,
) -> int:
    """Render the published boards from their result files, or print them.

    With --format and --runs-dir what is printed are one's own, of that working folder.
    """
    from bench import ENGINE, counting, session
    from bench import publish as boards

    source = click.get_current_context().get_parameter_source("runs_dir")
    own = form is not None and source is ParameterSource.COMMANDLINE
    if not own and not (leaderboards_dir / "results").is_dir():
        raise UserError(f"no published results in {leaderboards_dir}; `bench publish` copies them")
    now = {"current": session.current_code(), "engine": ENGINE}
    if form is None and (track or row):
        raise UserError(f"--{'track' if track else 'row'} is for --format; leave it out")
    if form is not None:
        if check:
            raise UserError("--check compares the files and --format prints; give one of them")
        folder = runs_dir if own else leaderboards_dir
        click.echo(_printed(folder / "results", leaderboards_dir, form, track, row, now))
        return OK
    if check and count:
        raise UserError("--check writes nothing and --count does; give one of them")
    if count:
        for line in counting.complete(leaderboards_dir, runs_dir):
            click.echo(line, err=True)
    if not check:
        written = boards.render_all(leaderboards_dir / "results", leaderboards_dir, **now)
        click.echo("\n".join(str(path) for path in written))
        return OK
    differences = boards.check(leaderboards_dir, **now)
    for line in differences:
        click.echo(line, err=True)
    return BAD_BOARD if differences else OK


def _printed(
    results_dir: Path,
    leaderboards_dir: Path,
    form: str,
    track: str | None,
    row: str | None,
    now: dict[str, Any],
) -> str:
    from bench import beside, formats, page_files

    names = [page.track["id"] for page in page_files.read_pages(results_dir)]
    if track is not None and track not in {*names, *(name.partition("~")[0] for name in names)}:
        kind = "published track" if results_dir.parent == leaderboards_dir else "track"
        raise UnknownName(kind, track, names)
    pages = page_files.chosen_pages(results_dir, [track] if track else None)
    return formats.show(pages, form, method=row, beside=beside.read(leaderboards_dir), **now)


@click.command()
@click.option("--track", "tracks", multiple=True, help="Only this track; may be given again.")
@click.option("--include-local", is_flag=True, help="Also rows of plugins that are bare files.")
@click.option("--study", "studies", multiple=True, help="Instead, this claim's; may be repeated.")
@click.option("--force", is_flag=True, help="Replace published results that differ.")
@runs_dir
@leaderboards_dir
def publish(
    tracks: tuple[str, ...],
    studies: tuple[str, ...],
    include_local: bool,
    force: bool,
    runs_dir: Path,
    leaderboards_dir: Path,
) -> int:
    """Check finished results, copy them to the published boards and render those."""
    from bench import ENGINE, session
    from bench import publish as boards

    if studies:
        from bench.published_studies import publish_studies

        if tracks or include_local:
            raise UserError("--study publishes a claim's study alone; leave the others out")
        copied = publish_studies(runs_dir, leaderboards_dir, studies, force=force)
        now = {"current": session.current_code(), "engine": ENGINE}
        rendered = boards.render_all(leaderboards_dir / "results", leaderboards_dir, **now)
        click.echo("\n".join(str(path) for path in [*copied, *rendered]))
        return OK
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
    line = "" if include_local else boards.kept_back(runs_dir / "results", list(tracks) or None)
    if line:
        click.echo(line, err=True)
    return OK


@click.command()
@runs_dir
@leaderboards_dir
@as_json
def doctor(runs_dir: Path, leaderboards_dir: Path, json: bool) -> int:
    """Show versions, devices, data sets, plugins that do not load, and a broken ledger."""
    from bench import inventory

    found = inventory.report(runs_dir, leaderboards_dir)
    click.echo(display.json(found) if json else display.report(found))
    return SOME_FAILED if found["problems"] else OK
