"""Commands about published boards and this machine: `leaderboard`, `publish`, `doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from bench import display
from bench.errors import UserError
from bench.exits import BAD_BOARD, OK
from bench.options import as_json, leaderboards_dir, runs_dir


@click.command()
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


@click.command()
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


@click.command()
@runs_dir
@leaderboards_dir
@as_json
def doctor(runs_dir: Path, leaderboards_dir: Path, json: bool) -> int:
    """Show versions, devices, data sets, plugins that do not load, and a broken ledger."""
    from bench import inventory

    found = inventory.report(runs_dir, leaderboards_dir)
    click.echo(display.json(found) if json else display.report(found))
    return OK
