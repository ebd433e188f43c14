"""Which results belong on a page: those of its track, on its data, in its precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bench.results import Result


def fitting(
    track: Mapping[str, Any], results: dict[str, Result]
) -> tuple[dict[str, Result], list[str]]:
    """Return the runs of this track on the page's own data and in its precision, and a line for
    each other run."""
    kept, problems = {}, []
    trained = Counter(filter(None, map(_trained_in, results.values())))
    most = min(trained, key=lambda name: (-trained[name], name), default="")
    precision = track.get("precision") or most
    if precision == "auto":  # a track's own page; in bf16 it has another id
        precision = "fp32"
    hashes = Counter(_data_sha256(result) for result in results.values())
    usual = min(hashes, key=lambda sha: (-hashes[sha], sha), default="")
    wanted = track.get("data_sha256") or usual
    for run_id, result in sorted(results.items()):
        if result.track != track["id"]:
            problems.append(f"{run_id}.json: is of the track {result.track}, not {track['id']}")
        elif _data_sha256(result) != wanted:
            problems.append(f"{run_id}.json: ran on other data than this page's")
        elif _trained_in(result) not in ("", precision):
            said = f"trained in {_trained_in(result)}; this page's rows are {precision}"
            problems.append(f"{run_id}.json: {said}")
        else:
            kept[run_id] = result
    return kept, problems


def _trained_in(result: Result) -> str:
    """Return a run's precision; "" if it trained nothing here."""
    still = result.row.origin in ("floor", "external")
    return "" if still else str(result.spec.get("precision", ""))


def _data_sha256(result: Result) -> str:
    data = result.spec.get("data")
    return str(data.get("sha256", "")) if isinstance(data, dict) else ""
