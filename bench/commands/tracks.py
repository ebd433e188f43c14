"""`bench track check`: whether floors and labels let a track rank, column by column."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Any

import click

from bench.errors import UserError
from bench.exits import OK, SOME_FAILED
from bench.options import as_json, leaderboards_dir, runs_dir


@click.group("track")
def track() -> None:
    """Questions about tracks."""


@track.command()
@click.argument("name")
@click.option("--dev", is_flag=True, help="By the validation scores of `bench run --dev`.")
@runs_dir
@leaderboards_dir
@as_json
def check(name: str, dev: bool, runs_dir: Path, leaderboards_dir: Path, json: bool) -> int:
    """Say whether track NAME (or a TOML file) may rank, from its floors and reference alone.

    Reads finished results, one's own before published ones; ends with 1 unless the track's
    headline may rank.
    """
    from bench import display
    from bench.ranking import check_track
    from bench.rows import build
    from bench.track import load_track

    chosen = load_track(name)
    results = _results(chosen.id, runs_dir / ("results-dev" if dev else "results"))
    if not dev:
        results = results or _results(chosen.id, leaderboards_dir / "results")
    kept = [r for r in results if r.row.role in ("floor", "ceiling") and not r.row.variant]
    if not kept:
        raise UserError(
            f"no results of floors or reference on {chosen.id} in {runs_dir} or "
            f"{leaderboards_dir}; `bench run --track {name} --plugins {chosen.reference or '...'} "
            f"--seeds {len(chosen.seeds)}` makes them"
        )
    board = build({"id": chosen.id, "seeds": list(chosen.seeds)}, kept)
    found = {column: check_track(board.rows, column) for column in board.columns}
    headline = f"{chosen.headline_protocol}.{chosen.headline_metric}"
    said: list[dict[str, Any]] = [
        {
            "column": f"{column.protocol}.{column.metric}",
            "title": column.title,
            "headline": f"{column.protocol}.{column.metric}" == headline,
            "may_rank": verdict.passed,
            "conditions": [
                {"asked": c.asked, "met": c.met, "holds": c.holds} for c in verdict.conditions
            ],
        }
        for column, verdict in found.items()
    ]
    if json:
        click.echo(json_.dumps(said, indent=1))
    else:
        answers = {True: "", False: "NO: ", None: "?: "}
        rows = [
            (
                row["column"] + (" (headline)" if row["headline"] else ""),
                *(answers[c["holds"]] + c["met"] for c in row["conditions"]),
                "yes" if row["may_rank"] else "no",
            )
            for row in said
        ]
        headers = ("column", "gap >= 20 points", "gap >= 10 sds", "half-width <= 1.5", "may rank")
        click.echo(display.table(headers, rows))
    return OK if any(row["headline"] and row["may_rank"] for row in said) else SOME_FAILED


def _results(track_id: str, folder: Path) -> list[Any]:
    from bench.results import read_all

    return read_all(folder / track_id)[0]
