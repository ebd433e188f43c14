"""May a track rank its rows, and which rows may it rank?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench import trackcheck
from bench.columns import CALIBRATION, CALIBRATIONS, Column, scores
from bench.trackcheck import TrackCheck

if TYPE_CHECKING:
    from bench.results import EvaluationEntry
    from bench.rows import TableRow


def check_track(
    rows: Sequence[TableRow],
    headline: Column | None,
    listed: Sequence[str] = (),
    protocols: Sequence[Mapping[str, Any]] = (),
) -> TrackCheck:
    """Return whether a page's floors and reference let it rank, or its calibration where the
    headline is a distance.

    Args:
        listed: the floors that the track asks for.
        protocols: those that it knows, of which the newest calibration counts.
    """
    plain = [row for row in rows if row.section == "main" and row.good]
    if headline is None or not plain:
        return trackcheck.check({}, [], 0)
    if headline.is_distance:
        return _check_distance(plain, headline, protocols)
    floors: dict[str, list[float]] = {}
    references: list[list[float]] = []
    for row in plain:
        values = headline.values(row.good)
        if row.is_floor and len(values) > len(floors.get(row.first.method, ())):
            floors[row.first.method] = values
        elif row.is_reference:
            references.append(values)
    images = max(headline.num_images(result) for row in plain for result in row.good)
    still = {row.first.method for row in plain if row.first.row.origin == "floor"}
    reference = max(references, key=len, default=[])
    # Pixels have no backbone: a protocol that trains or changes one leaves them without a number.
    asked = [name for name in listed if name in floors or name not in still]
    known = {name: floors.get(name, []) for name in [*asked, *floors]}
    return trackcheck.check(known, reference, images, untrained=still)


def calibration_entries(
    rows: Sequence[TableRow], protocols: Sequence[Mapping[str, Any]], name: str = CALIBRATION
) -> list[EvaluationEntry]:
    """Return what was measured of sets whose quality is known, one for each run that has it: by the
    newest protocol of this name that the track knows, since two versions are two tables."""
    known = [(p.get("version", 1), p["hash"]) for p in protocols if p["id"] == name]
    entries = [e for row in rows for r in row.good for e in r.evaluations.items()]
    newest = {max(known)[1]} if known else {h for h, entry in entries if entry.id == name}
    return [entry for h, entry in entries if h in newest]


def _check_distance(
    rows: Sequence[TableRow], headline: Column, protocols: Sequence[Mapping[str, Any]]
) -> TrackCheck:
    """Return the conditions on a distance: what is known to be good and bad lies far apart."""
    names = [name for name, of in CALIBRATIONS.items() if of == headline.protocol]
    sets = [scores(entry) for name in names for entry in calibration_entries(rows, protocols, name)]
    good = [
        s[f"train_half_{headline.metric}"] for s in sets if f"train_half_{headline.metric}" in s
    ]
    bad = [s[f"one_class_{headline.metric}"] for s in sets if f"one_class_{headline.metric}" in s]
    every = [headline.values(row.good) for row in rows if not (row.is_floor or row.memorised)]
    trained = [values for values in every if values]
    found = [r.evaluations.get(headline.hash) for row in rows for r in row.good]
    samples = max((e.settings.get("samples", 0) for e in found if e), default=0)
    return trackcheck.check_distance(good, bad, trained, samples)


def may_rank(row: TableRow, trials: str) -> bool:
    """Return whether a row is of the kind that is ranked: label-free, tuned like the others, with
    the seeds of the track's list, and no copier of training images."""
    card = row.first.row
    plain = row.section == "main" and card.role == "method" and not card.uses_labels
    return plain and card.tuning == trials and not row.unlisted and not row.memorised
