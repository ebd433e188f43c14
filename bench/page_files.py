"""Folders of results as pages: what a track is, its results, and which of them are shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.results import TRACK_FILE, Result, read_all, write_text


@dataclass(frozen=True)
class Page:
    """A track, its results, and the lines about files that are none."""

    track: dict[str, Any]
    results: list[Result]
    problems: list[str]


def read_track(folder: Path) -> dict[str, Any]:
    """Return what a results folder's `track.json` says of its track; the least if there is none.

    Raises:
        UserError: the file is not JSON, or of another track than its folder.
    """
    path = folder / TRACK_FILE
    if not path.exists():
        said = "No track says what these results have in common."
        return {"id": folder.name, "description": said, "smoke": True}
    try:
        track = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(track, dict) or track.get("id") != folder.name:
        raise UserError(f"{path}: expected a JSON object with id {folder.name!r}")
    return track


def write_track(folder: Path, track: Mapping[str, Any]) -> None:
    """Write a results folder's `track.json`."""
    write_text(folder / TRACK_FILE, json.dumps(dict(track), indent=1, sort_keys=True) + "\n")


def read_pages(results_dir: Path, tracks: Sequence[Mapping[str, Any]] | None = None) -> list[Page]:
    """Return a page per folder of `results_dir`, by track id.

    `tracks` stand in for the `track.json` of their folders.
    """
    given = {track["id"]: dict(track) for track in tracks or ()}
    pages = []
    folders = sorted(results_dir.iterdir()) if results_dir.is_dir() else []
    for folder in folders:
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        results, problems = read_all(folder)
        if results or problems or (folder / TRACK_FILE).exists():
            track = given.get(folder.name) or read_track(folder)
            pages.append(Page(track, results, problems))
    return pages


def chosen_pages(sources: Path, tracks: Sequence[str] | None) -> list[Page]:
    """Return the pages of a results folder, or of these tracks: each an id, or what is before the
    `~` of one alone.

    Raises:
        UserError: there are no results of a track, or of several that begin so.
    """
    pages = read_pages(sources)
    wanted = set()
    for name in tracks or ():
        ids = [page.track["id"] for page in pages]
        found = [i for i in ids if i == name] or [i for i in ids if i.partition("~")[0] == name]
        if not found:
            raise UserError(f"{sources}: no results of track {name}; run `bench run` first")
        if len(found) > 1:
            raise UserError(f"{sources}: track {name} may be {' or '.join(found)}; say which")
        wanted |= set(found)
    if not pages:
        raise UserError(f"{sources}: no results of any track; run `bench run` first")
    return [page for page in pages if not tracks or page.track["id"] in wanted]


def without_older(pages: Sequence[Page], today: Mapping[str, str]) -> list[Page]:
    """Return the pages without runs of plugin files as they were before an edit.

    Args:
        today: method -> sha256 of its file, of the methods whose files were edited or not.
    """
    shown = []
    for page in pages:
        older = [
            result
            for result in page.results
            if result.row.origin == "local"
            and today.get(result.method, result.code.plugin_sha256) != result.code.plugin_sha256
        ]
        counts = Counter(result.method for result in older)
        lines = [
            f"{name}: {count} runs of its file as it was before an edit"
            for name, count in sorted(counts.items())
        ]
        kept = [result for result in page.results if result not in older]
        shown.append(replace(page, results=kept, problems=[*page.problems, *lines]))
    return shown
