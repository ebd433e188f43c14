"""`bench study`: run what a claim needs, and say what comes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.exits import OK, SOME_FAILED
from bench.options import POSITIVE, SECONDS, leaderboards_dir, runs_dir


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...|all")
@click.option("--list", "listed", is_flag=True, help="Say which claims there are, and stop.")
@click.option("--jobs", type=POSITIVE, help="Runs at a time; default by cores and memory.")
@click.option("--timeout", type=SECONDS, default=86_400.0, help="Seconds that a run may take.")
@click.option("--stall", type=SECONDS, default=900.0, help="Seconds that a step may take.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--force", is_flag=True, help="Run again what is finished.")
@click.option("--plan", "plan_only", is_flag=True, help="Say which runs there would be, and stop.")
@runs_dir
@leaderboards_dir
def study(
    names: tuple[str, ...],
    listed: bool,
    jobs: int | None,
    timeout: float,
    stall: float,
    device: str,
    force: bool,
    plan_only: bool,
    runs_dir: Path,
    leaderboards_dir: Path,
) -> int:
    """Run what registered claims NAME... (or all that a CPU can) still need; say the verdicts.

    Runs are shared with boards. `bench publish --study NAME` publishes a claim's verdict.
    """
    from bench import studying
    from bench.claim import load_claim, shipped
    from bench.commands.running import device_of
    from bench.errors import UserError
    from bench.runner import Options

    if listed:
        for name in shipped():
            claim = load_claim(name)
            click.echo(f"{name}: {claim.quote} ({claim.scale})")
        return OK
    if not names:
        raise UserError("expected the NAME of a claim, or all; --list names them")
    options = Options(
        runs_dir=runs_dir,
        device=device_of(device),
        jobs=jobs,
        timeout=timeout,
        stall=stall,
        force=force,
        leaderboards_dir=leaderboards_dir,
    )
    every = "all" in names
    claims = [load_claim(name) for name in dict.fromkeys(names) if name != "all"]
    if every:
        claims = [load_claim(name) for name in shipped()]
    status = OK
    for claim in claims:
        if every and (reason := studying.why_not(claim)):
            click.echo(f"{claim.id}: {reason}")
            continue
        try:
            if plan_only:
                for line in studying.plan_lines(claim, options):
                    click.echo(line)
                continue
            live = sys.stdout.isatty()
            ended = studying.carry_out(claim, options, say=click.echo, live=live)
        except UserError as error:
            if not every:
                raise
            click.echo(f"{claim.id}: {error}")
            continue
        if ended not in (OK, SOME_FAILED):
            return ended
        status = max(status, ended)
        for line in studying.verdict_lines(claim, runs_dir):
            click.echo(line)
    return status
