"""`bench tune`: the same number of trials for every method, scored on validation."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.errors import UserError
from bench.exits import OK, SOME_FAILED
from bench.options import POSITIVE, SECONDS, leaderboards_dir, on_bad_image, runs_dir


@click.command()
@click.argument("track")
@click.argument("methods", nargs=-1, required=True)
@click.option("--jobs", type=POSITIVE, help="Runs at a time; default by cores and memory.")
@click.option("--timeout", type=SECONDS, default=86_400.0, help="Seconds that a run may take.")
@click.option("--stall", type=SECONDS, default=900.0, help="Seconds that a step may take.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--processes", type=POSITIVE, default=1, show_default=True, help="Of one run.")
@on_bad_image
@click.option("--stale", is_flag=True, help="Run trials again that other code ran.")
@runs_dir
@leaderboards_dir
def tune(
    track: str,
    methods: tuple[str, ...],
    jobs: int | None,
    timeout: float,
    stall: float,
    device: str,
    processes: int,
    on_bad_image: str,
    stale: bool,
    runs_dir: Path,
    leaderboards_dir: Path,
) -> int:
    """Tune METHODS (names or files) on TRACK by equal trials; runs of the track use what wins.

    Each gets the track's number of full-budget trials with the same Sobol points, on seeds that
    never report. They are scored on validation; the test split is never opened. Goes on where it
    was stopped.
    """
    from bench import judge, manager, tuning
    from bench.commands.running import device_of
    from bench.console import Console
    from bench.expected import expected
    from bench.runner import Options, carry_out

    requests = list(dict.fromkeys(methods))
    names = [manager.method_name(request) for request in requests]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"METHODS names {', '.join(repeated)} twice; name each method once")
    session = tuning.prepare(
        requests,
        track=track,
        device=device_of(device),
        processes=processes,
        on_bad_image=on_bad_image,
        runs_dir=runs_dir,
    )
    options = Options(
        runs_dir=runs_dir,
        device=device_of(device),
        processes=processes,
        jobs=jobs or session.track.jobs,
        timeout=timeout,
        stall=stall,
        stale=stale,
        dev=True,
        on_bad_image=on_bad_image,
        results_dir=tuning.trials_folder(runs_dir),
        leaderboards_dir=leaderboards_dir,
        needed=frozenset({session.protocol["hash"]}),
    )
    # Trial by trial over all methods, so that a tuning that is stopped is as far with each.
    runs = [spec for turn in zip(*session.specs.values(), strict=True) for spec in turn]
    takes = expected(runs, [runs_dir, leaderboards_dir], judge.processor(), options.device)
    live = sys.stdout.isatty()
    with Console(len(runs), click.echo, live=live, seconds=takes.seconds) as console:
        status = carry_out(runs, options, finished=console.finished, watching=console.watching)
    if status not in (OK, SOME_FAILED):
        return status
    for line in tuning.write_recipes(session, options, leaderboards_dir):
        click.echo(line)
    return status
