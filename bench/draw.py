"""Draw a published run by the date: the same day draws the same run everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date as Date
from pathlib import Path

from bench import page_files
from bench.errors import UnknownName, UserError
from bench.identity import digest
from bench.reproduce import stale
from bench.results import Result, group


def choose(
    leaderboards_dir: Path,
    day: Date,
    *,
    track: str | None = None,
    cuda: bool = False,
    current: Mapping[str, str],
) -> tuple[Path, str]:
    """Return a published result that can be reproduced here, drawn by the date; and a line on it.

    A row is drawn, then one of its seeds, so that rows with many seeds come up no more often.

    Args:
        track: draw from this track alone.
        cuda: draw from what ran on CUDA, else from what ran on a CPU.
        current: method -> sha256 of its installed source.

    Raises:
        UnknownName: no such track is published.
        UserError: nothing can be reproduced here.
    """
    pages = page_files.read_pages(leaderboards_dir / "results")
    names = [page.track["id"] for page in pages]
    if track is not None and track not in names:
        raise UnknownName("published track", track, names)
    rows: dict[tuple[str, str, str], list[Result]] = {}
    left_out = set()
    for page in pages:
        for run in page.results if track in (None, page.track["id"]) else ():
            key = (run.track, run.method, group(run))
            if _is_reproducible(run, cuda, current):
                rows.setdefault(key, []).append(run)
            else:
                left_out.add(key)
    if not rows:
        raise UserError(
            f"{leaderboards_dir}: no published run of today's code can be reproduced here; "
            "`bench publish` publishes some"
        )
    kept = sorted(rows)
    drawn = int(digest(["reproduce", day.isoformat(), track or ""]), 16)
    runs = sorted(rows[kept[drawn % len(kept)]], key=lambda run: run.seed)
    run = runs[drawn // len(kept) % len(runs)]
    others = len(left_out - set(kept))
    said = (
        f"{day.isoformat()}: {run.method} seed {run.seed} of {run.track}, one of {len(kept)} rows"
    )
    said += f"; {others} more are stale, not installed or not for this device" if others else ""
    return leaderboards_dir / "results" / run.track / f"{run.run_id}.json", said


def _is_reproducible(run: Result, cuda: bool, current: Mapping[str, str]) -> bool:
    """Return whether a run is finished, of today's code, and needs nothing that is not here."""
    if run.status != "done" or run.row.origin not in ("installed", "floor"):
        return False
    if ":" in str(run.spec["data"]["name"]) or (run.machine.device != "cpu") != cuda:
        return False
    sha256 = "" if run.row.origin == "floor" else current.get(run.method)
    return sha256 is not None and not stale(run, sha256)
