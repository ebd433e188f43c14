"""The notes under a leaderboard: what a reader must know before trusting its numbers.

Pure, as `bench.leaderboard` is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.cells import decimals, numbers, short, text
from bench.columns import CALIBRATIONS
from bench.generated import disagreements
from bench.pages import label
from bench.results import Result
from bench.rows import Board, TableRow


def footnotes(
    track: Mapping[str, Any], board: Board, stale: Callable[[TableRow], bool]
) -> list[str]:
    """Return a page's notes in markdown, each without its bullet.

    Args:
        stale: whether a row's code has changed since it ran.
    """
    rows = board.rows
    notes = []
    comparison = board.comparisons.get(board.headline) if board.headline else None
    if comparison is not None and comparison.resolvable is not None and board.headline:
        points = comparison.resolvable
        unit = "" if board.headline.is_distance else " points"
        notes.append(
            f"**Resolution:** the smallest difference in “{text(board.headline.title)}” that this "
            f"board shows with 80 % power is {points:.{decimals(points / 10)}f}{unit}."
        )
    notes += disagreements(board)
    lacking = [note for row in rows if (note := _lacking(row))]
    notes += [f"**Missing or failed seeds:** {note}" for note in lacking]
    notes += [note for row in rows for note in _probes(board, row)]
    notes += [note for row in rows for note in _sampling(board, row)]
    notes += [note for row in rows for note in _inputs(board, row)]
    notes += [f"**Departs:** {said}" for said in sorted({_departs(row) for row in rows}) if said]
    for row in rows:
        said = sorted({note for result in row.results for note in result.row.notes})
        notes += [f"**{label(row)}:** {text(note)}" for note in said]
    missing = [name for name in track.get("floors", ()) if not _has_method(rows, name, "floor")]
    reference = track.get("reference")
    if reference and not _has_method(rows, reference, "ceiling"):
        missing.append(reference)
    if missing and rows:
        notes.append(f"**Not run here:** {', '.join(text(name) for name in missing)}")
    if any(stale(row) for row in rows):
        notes.append(
            "**Stale:** the code of these rows has changed since they ran; `bench run --stale` "
            "runs them again."
        )
    notes += _data(rows)
    notes += _provenance(rows)
    notes += _protocols(board)
    return notes


def _probes(board: Board, row: TableRow) -> list[str]:
    """Return what the shown protocols said of a row's evaluations, and for which seeds."""
    said: dict[str, list[int]] = {}
    for result in row.good:
        shown = {column.hash for column in board.columns} & set(result.evaluations)
        for stamp in {stamp for key in shown for stamp in result.evaluations[key].stamps}:
            said.setdefault(stamp, []).append(result.seed)
    return [
        f"**Probes:** {label(row)}: {text(stamp)} ({seeds_words(seeds)})"
        for stamp, seeds in sorted(said.items())
    ]


def _sampling(board: Board, row: TableRow) -> list[str]:
    """Return by which settings the samples of a row's shown numbers were drawn."""
    shown = {column.hash for column in board.columns}
    drawn = [
        entry.chosen.get("sampling")
        for result in row.good
        for key, entry in result.evaluations.items()
        if key in shown
    ]
    said = {
        ", ".join(f"{k} {'none' if v is None else v}" for k, v in sorted(found.items()))
        for found in drawn
        if found
    }
    return [f"**Sampling:** {label(row)}: {text(settings)}" for settings in sorted(said)]


def _inputs(board: Board, row: TableRow) -> list[str]:
    """Return what a row's backbones were shown where that is no plain image, and the first accuracy
    with plain ones."""
    for column in board.columns:
        entries = [(result.seed, column.entry(result)) for result in row.good]
        found = [(seed, e.chosen) for seed, e in entries if e and "input" in e.chosen]
        if not column.is_accuracy or not found:
            continue
        shown: dict[str, list[int]] = {}
        for seed, chosen in found:
            shown.setdefault(chosen["input"], []).append(seed)
        said = ", ".join(f"{text(kind)} ({seeds_words(seeds)})" for kind, seeds in shown.items())
        part = "validation" if column.validation else "metrics"
        plain = [chosen["rgb"][part][column.metric] for _, chosen in found]
        return [
            f"**Input:** {label(row)}: probed on {said}, chosen on validation; on plain images "
            f"“{text(column.title)}” is {short(sum(plain) / len(plain))}"
        ]
    return []


def seeds_words(seeds: Sequence[int]) -> str:
    """Return seeds as pages say them: `seed 3`, `seeds 0-4`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {numbers(seeds)}"


def _runs(count: int) -> str:
    return f"{count} run{'s' if count > 1 else ''}"


def _data(rows: Sequence[TableRow]) -> list[str]:
    runs = [result.data for row in rows for result in row.results]
    twins = max((data.duplicates_train_test for data in runs), default=0)
    skipped = sorted({name for data in runs for name in data.skipped})
    notes = [f"**Data:** {twins} test images are exact copies of training images"] if twins else []
    near, images = max(
        ((data.near_duplicates_train_test, data.test_images) for data in runs), default=(0, 0)
    )
    if near:
        notes.append(
            f"**Data:** {near} of {images} test images are within 4 of 64 bits of a training "
            "image's difference hash, copies included; small or plain images are so by chance"
        )
    if skipped:
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        notes.append(f"**Skipped images:** {text(', '.join(skipped[:5]))}{more}")
    return notes


def _lacking(row: TableRow) -> str:
    if row.complete or row.unsupported:
        return ""
    faults: dict[str, list[int]] = {}
    for seed, fault in sorted(row.faults.items()):
        faults.setdefault(fault, []).append(seed)
    return f"{label(row)}: " + "; ".join(
        f"{numbers(seeds)} {text(fault)}" for fault, seeds in sorted(faults.items())
    )


def _departs(row: TableRow) -> str:
    departs = row.first.row.departs
    return "" if departs in ("", "nothing") else f"{label(row)}: {text(departs, longest=400)}"


def _has_method(rows: Iterable[TableRow], name: str, role: str) -> bool:
    return any(row.first.method == name and row.first.row.role == role for row in rows)


def _provenance(rows: Sequence[TableRow]) -> list[str]:
    """Return the machines, and whose runs each had where they were several."""
    runs: dict[str, list[str]] = {}
    for row in rows:
        for result in row.good:
            runs.setdefault(_machine(result), []).append(label(row))
    notes = []
    for machine, labels in sorted(runs.items()):
        whose = f": {', '.join(dict.fromkeys(labels))}" if len(runs) > 1 else ""
        notes.append(f"**Machine:** {machine}, {_runs(len(labels))}{whose}")
    if len(runs) > 1:
        notes.append("**Machines:** times and speeds compare within one of them alone")
    return notes


def _machine(result: Result) -> str:
    machine = result.machine
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    parts = {
        "": [machine.device, machine.processor, f"{machine.cores} cores", f"{threads} a process"],
        "processes ": [machine.processes if machine.processes > 1 else ""],
        "torch ": [machine.torch],
        "timm ": [machine.timm],
        "precision ": [result.spec.get("precision", "")],
    }
    said = [f"{name}{value}" for name, values in parts.items() for value in values if value]
    return text(", ".join(said), longest=200)


def protocols_line(board: Board) -> str:
    """Return the protocols of a page's columns with their hashes, in markdown."""
    shown = {column.hash: f"{column.protocol} {column.version}" for column in board.columns}
    said = ", ".join(f"{text(name)} `{text(key)}`" for key, name in sorted(shown.items()))
    return f"**Protocols:** {said}"


def _protocols(board: Board) -> list[str]:
    shown = {column.hash for column in board.columns}
    notes = [protocols_line(board)] if shown else []
    others: Counter[tuple[str, int, str]] = Counter()
    for row in board.rows:
        for result in row.results:
            for key, entry in result.evaluations.items():
                if key not in shown and entry.id not in CALIBRATIONS:
                    others[entry.id, entry.version, key] += 1
    for (name, version, key), count in sorted(others.items()):
        notes.append(
            f"**Not shown:** {text(name)} {version} `{text(key)}`, in {_runs(count)}; "
            "numbers of two protocols never share a column"
        )
    return notes
