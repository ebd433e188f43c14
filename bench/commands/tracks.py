"""`bench track check`: whether floors and labels let a track rank, column by column."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.errors import UserError
from bench.exits import OK, SOME_FAILED
from bench.options import as_json, leaderboards_dir, runs_dir

if TYPE_CHECKING:
    from bench.results import Result
    from bench.track import Track


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
    folders = [runs_dir / ("results-dev" if dev else "results")]
    folders += [] if dev else [leaderboards_dir / "results"]
    track, results = next(filter(None, (_results(chosen, f) for f in folders)), ({}, []))
    if not results:
        raise UserError(
            f"no results of floors or reference on {chosen.id} in {runs_dir} or "
            f"{leaderboards_dir}; `bench run --track {name} --plugins {chosen.reference or '...'} "
            f"--seeds {len(chosen.seeds)}` makes them"
        )
    board = build(track | {"seeds": list(chosen.seeds), "floors": list(chosen.floors)}, results)
    protocols = track.get("protocols", ())
    columns = [column for column in board.columns if column.is_accuracy or column.is_distance]
    found = {c: check_track(board.rows, c, chosen.floors, protocols) for c in columns}
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
        tables: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for row in said:
            asked = tuple(condition["asked"] for condition in row["conditions"])
            line = (
                row["column"] + (" (headline)" if row["headline"] else ""),
                *(answers[c["holds"]] + c["met"] for c in row["conditions"]),
                "yes" if row["may_rank"] else "no",
            )
            tables.setdefault(("column", *asked, "may rank"), []).append(line)
        for headers, rows in tables.items():
            click.echo(display.table(headers, rows))
    return OK if any(row["headline"] and row["may_rank"] for row in said) else SOME_FAILED


def _results(chosen: Track, folder: Path) -> tuple[dict[str, Any], list[Result]] | None:
    """Return what a results folder says of the track, and its runs of floors and reference; None if
    there are none.

    Data that a path names are known by their content, and `auto` came to fp32 or bf16; so the
    track's id may be another than its file's. Of several the one with the newest result counts.
    """
    from bench.columns import is_distance
    from bench.page_files import read_track
    from bench.results import read_all
    from bench.track import override, pin_data

    as_run = [chosen]
    if chosen.precision == "auto":
        as_run.append(override(chosen, precision="bf16"))
    found = []
    for place in sorted(folder.glob(f"{chosen.id.partition('~')[0]}*")):
        said = read_track(place)
        facts = {"sha256": said.get("data_sha256"), "test_sha256": said.get("test_sha256")}
        facts["name"] = chosen.data["name"]
        if place.name not in {pin_data(track, facts).id for track in as_run}:
            continue
        # On a page of distances methods are looked at too: none may be nearer than real images.
        distance = is_distance(chosen.headline_protocol, chosen.headline_metric)
        wanted = {"floor", "ceiling"} | ({"method"} if distance else set())
        kept = [r for r in read_all(place)[0] if r.row.role in wanted and not r.row.variant]
        if any(r.row.role != "method" for r in kept):
            newest = max(file.stat().st_mtime for file in place.glob("*.json"))
            found.append((newest, said, kept))
    return max(found, key=lambda of: of[0])[1:] if found else None
