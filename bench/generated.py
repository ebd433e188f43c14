"""What a page says of generators beside its table: calibration rows and sheets of samples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from bench.cells import short, table, text
from bench.columns import CALIBRATION, CALIBRATIONS, METRICS, named_by, scores
from bench.pages import label
from bench.pairs import LEVEL
from bench.ranking import calibration_entries
from bench.rows import Board
from bench.sheets import FOLDER
from bench.statistics import Comparison

NOTHING = 1e-6  # what rounding leaves of a distance of 0
SETS = {  # as `bench.evaluations.calibration` names its metrics: set, underscore, metric
    "train_half": "other training images",
    "test": "test images",
    "copied": "the reference itself",
    "one_class": "one class only",
    "blur": "blurred",
    "noise": "with noise",
    "jpeg": "JPEG at quality 25",
}


def calibration_section(track: Mapping[str, Any], board: Board) -> list[str]:
    """Return the table of sets of images whose quality is known, measured as samples are."""
    protocols = track.get("protocols", ())
    entries = {name: calibration_entries(board.rows, protocols, name) for name in CALIBRATIONS}
    found = {name: [scores(entry) for entry in own] for name, own in entries.items()}
    titles = [
        (name, metric, named_by(title, entries[name][0].settings))
        for name, of in CALIBRATIONS.items()
        for metric, title in METRICS[of]
        if any(f"train_half_{metric}" in sets for sets in found[name])
    ]
    if not titles:
        return []
    lines = []
    for name, said in SETS.items():
        keys = [(of, f"{name}_{metric}") for of, metric, _ in titles]
        values = [[s[key] for s in found[of] if key in s] for of, key in keys]
        if any(values):
            lines.append([said, *(_mean(v) for v in values), str(max(map(len, values)))])
    headers = ["images", *(title for *_, title in titles), "n"]
    said = (
        "Sets of images whose quality is known, in the place of samples: what the numbers above "
        "can be, and what they notice. What is made of training images is found to be by its "
        "memorisation AUC."
    )
    if any("train_half_fd_limit" in sets for sets in found[CALIBRATION]):
        said += (
            " The limit in 1/N of other training images should be 0 but for chance: what it is "
            "instead is how far such a line misses where sets have fewer images than features."
        )
    return ["## Calibration", said, table(headers, lines, "l" + "r" * (len(headers) - 1))]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = sum(values) / len(values)
    if abs(mean) < NOTHING:
        return "0"
    return ("−" if mean < 0 else "") + (short(abs(mean)) or "0")


def disagreements(board: Board) -> list[str]:
    """Return a note for each pair of rows that one distance puts in one order and another in the
    other, both beyond their intervals."""
    distances = [c for c in board.columns if c.is_distance and c in board.comparisons]
    notes = []
    for first, other in itertools.combinations(distances, 2):
        if (first.metric == other.metric) == (first.protocol == other.protocol):
            continue  # two extractors and two metrics at once: which of them it is, nobody knows
        a, b = board.comparisons[first], board.comparisons[other]
        kinds = "Extractors"
        if first.metric != other.metric:
            kinds = f"{first.metric.upper()} and {other.metric.upper()}"
        for (one, two), p in a.p_values.items():
            q = b.p_values.get((one, two), b.p_values.get((two, one), 1.0))
            if max(p, q) <= LEVEL and _leads(a, one, two) != _leads(b, one, two):
                labels = [label(r) for key in (one, two) for r in board.rows if r.key == key]
                notes.append(
                    f"**{kinds} disagree:** {labels[0]} and {labels[1]} are in one order by "
                    f"“{text(first.title)}” and in the other by “{text(other.title)}”"
                )
    return notes


def _leads(comparison: Comparison, one: str, two: str) -> bool:
    places = [comparison.names.index(name) for name in (one, two)]
    return bool(comparison.centers[places[0]] > comparison.centers[places[1]])


def sheets_section(track_id: str, board: Board, names: Sequence[str]) -> list[str]:
    """Return the sheets of images of the page's methods, in the order of its rows."""
    blocks = []
    for row in board.rows:
        if row.section != "main":
            continue
        own = [n for n in names if n.startswith(f"{row.first.method}-")]
        folder = f"{FOLDER}/{quote(track_id)}"
        pictures = [
            f"![{text(row.first.method)}: {text(_what(name))}]({folder}/{quote(name)})"
            for name in sorted(own, key=lambda name: (_what(name) != "samples", name))
        ]
        if pictures:
            blocks += [f"**{label(row)}**: {', '.join(map(_what, own))}", " ".join(pictures)]
    if not blocks:
        return []
    said = (
        "The first samples of each method's first seed, none chosen; `neighbours`: samples above "
        "the training images nearest to them in pixels; `reconstructed`: reference images above "
        "what the method gives back of them."
    )
    return ["## Samples", said, *blocks]


def _what(name: str) -> str:
    return name.removesuffix(".png").partition("-")[2]
