"""Result files to the rows of a page: which runs belong together, and what they may claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bench import distances, statistics
from bench.belonging import fitting
from bench.columns import Column, choose_columns, choose_headline, is_named
from bench.errors import UserError
from bench.metrics.names import MEMORISED
from bench.ranking import check_track, may_rank
from bench.results import SAMPLES, Result, group
from bench.trackcheck import TrackCheck

RANKED_SEEDS = 5  # a committed board's; fewer are shown and not ranked


@dataclass(frozen=True, eq=False)
class TableRow:
    """One method with one configuration: its runs, one per seed.

    Attributes:
        results: all runs, by seed; `expected`: the seeds that the page asks of it.
        several: whether the method has another row beside this one on the page.
        published: whether the runs come from the committed results.
        faults: seed -> why it does not count.
        unlisted: whether its seeds are none of the track's, but were picked.
    """

    key: str
    results: tuple[Result, ...]
    expected: tuple[int, ...]
    several: bool
    published: bool
    faults: dict[int, str]
    unlisted: bool = False

    @property
    def first(self) -> Result:
        return self.results[0]

    @cached_property
    def good(self) -> tuple[Result, ...]:
        """Return the runs that count."""
        return tuple(result for result in self.results if result.seed not in self.faults)

    @property
    def section(self) -> str:
        """Return main, variant or external."""
        if self.first.row.origin == "external":
            return "external"
        return "variant" if self.first.row.variant else "main"

    @property
    def is_floor(self) -> bool:
        return self.first.row.role == "floor"

    @property
    def is_reference(self) -> bool:
        return self.first.row.role == "ceiling"

    @property
    def complete(self) -> bool:
        """Return whether every expected seed counts."""
        return bool(self.good) and not self.faults

    @property
    def unsupported(self) -> bool:
        return all(result.status == "unsupported" for result in self.results)

    @property
    def memorised(self) -> bool:
        """Return whether samples of most of the runs were found too near to training images: the
        test of one run errs now and then."""
        accused = [
            any(s.startswith(MEMORISED) for e in result.evaluations.values() for s in e.stamps)
            for result in self.good
        ]
        return 2 * sum(accused) > len(accused)


@dataclass(frozen=True)
class Board:
    """All that a page shows, before it is text."""

    rows: list[TableRow]
    columns: list[Column]
    headline: Column | None
    comparisons: dict[Column, statistics.Comparison]
    cells: dict[tuple[str, Column], statistics.Cell]
    ranks_shown: bool
    trials: str
    check: TrackCheck
    problems: list[str] = field(default_factory=list)

    def rank(self, row: TableRow, column: Column | None) -> tuple[int, int] | None:
        """Return the rank interval that is shown, if any."""
        if not self.ranks_shown or column not in self.comparisons:
            return None
        return self.comparisons[column].ranks.get(row.key)

    def stamps(self, row: TableRow) -> list[str]:
        """Return what the tests against floors and reference say of a row."""
        comparison = self.comparisons.get(self.headline) if self.headline else None
        if comparison is None or row.key not in comparison.names or row.is_floor:
            return []
        others = [other for other in self.rows if other.section == "main"]
        others = [other for other in others if other.key in comparison.names]
        stamps = set()
        for other in others:
            low, high = comparison.difference(row.key, other.key)
            if other.is_floor and low <= 0:
                harness = other.first.row.origin == "floor"
                stamps.add("not above pixels" if harness else "not above random")
            if other.is_reference and high >= 0 and not row.first.row.uses_labels:
                above = "above the label reference: check for labels"
                stamps.add(above if low > 0 else "not below the label reference")
        return sorted(stamps)


def build(
    track: Mapping[str, Any],
    results: Iterable[Result],
    published: Iterable[Result] = (),
    problems: Iterable[str] = (),
) -> Board:
    """Group a track's runs into rows, and compare them column by column."""
    own = {result.run_id: result for result in results}
    old = _not_repeated(published, own.values())
    own, left_out = fitting(track, own)
    old, old_left_out = fitting(track, old)
    everything = [*own.values(), *old.values()]
    columns = choose_columns(track, everything)
    headline = choose_headline(track, columns)
    flat = _collapsed(columns, everything)
    rows = [
        *_rows(track, own, headline, flat, published=False),
        *_rows(track, old, headline, flat, published=True),
    ]
    shown = {result.run_id for row in rows for result in row.results}
    unasked = [
        f"{result.run_id}.json: its seed is not among the first of the track's list"
        for result in everything
        if result.run_id not in shown
    ]
    correct, damaged = _correct(rows, columns)
    rows = [row for row in rows if row.key not in damaged]

    trials = str(track.get("trials", 0))
    check = check_track(rows, headline, track.get("floors", ()), track.get("protocols", ()))
    candidates = [row for row in rows if may_rank(row, trials)]
    asked = headline is not None and not headline.validation and is_named(track, headline)
    ranks_shown = (
        check.passed
        and not track.get("smoke")
        and asked
        and any(len(row.expected) >= RANKED_SEEDS for row in candidates)
    )
    if ranks_shown:
        candidates = [row for row in candidates if len(row.expected) >= RANKED_SEEDS]
    comparisons = {
        column: _compare(rows, {row.key for row in candidates}, column, correct[column])
        for column in columns
        if any(row.key in correct[column] for row in rows)
    }
    return Board(
        rows=_ordered(rows, headline, trials),
        columns=columns,
        headline=headline,
        comparisons=comparisons,
        cells=_cells(rows, columns, comparisons),
        ranks_shown=ranks_shown,
        trials=trials,
        check=check,
        problems=sorted([*problems, *left_out, *old_left_out, *unasked, *damaged.values()]),
    )


def _not_repeated(published: Iterable[Result], own: Iterable[Result]) -> dict[str, Result]:
    """Return the published runs of rows that own ones do not repeat in whole. A row of which some
    seeds were run again keeps all of its own; it would lack these otherwise."""

    def of(result: Result) -> tuple[str, str, str]:
        return result.method, result.row.variant, group(result)

    published = list(published)
    again = {(*of(result), result.seed) for result in own}
    lacking = {of(result) for result in published if (*of(result), result.seed) not in again}
    return {result.run_id: result for result in published if of(result) in lacking}


def _rows(
    track: Mapping[str, Any],
    results: dict[str, Result],
    headline: Column | None,
    collapsed: set[str],
    *,
    published: bool,
) -> list[TableRow]:
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for _, result in sorted(results.items()):
        name = (result.method, result.row.variant, group(result))
        groups.setdefault(name, []).append(result)
    expected = expected_seeds(track, results.values())
    beside = Counter((method, variant) for method, variant, _ in groups)
    rows = []
    for (method, variant, config), runs in sorted(groups.items()):
        runs.sort(key=lambda result: result.seed)
        own_seeds = tuple(result.seed for result in runs)
        # The harness's floor and checkpoints train nothing; a variant owes nobody all seeds.
        alone = runs[0].row.origin in ("floor", "external") or bool(variant)
        unlisted = not set(own_seeds) & set(expected)
        asked = own_seeds if alone or unlisted else expected
        runs = [result for result in runs if result.seed in asked]
        place = "published" if published else "own"
        rows.append(
            TableRow(
                key="/".join((method, variant, config, place)),
                results=tuple(runs),
                expected=asked,
                several=beside[method, variant] > 1,
                published=published,
                faults=_faults(runs, asked, headline, collapsed),
                unlisted=unlisted and not alone and bool(track.get("seeds")),
            )
        )
    return rows


def expected_seeds(track: Mapping[str, Any], results: Iterable[Result]) -> tuple[int, ...]:
    """Return the prefix of the track's seeds that the page has reached."""
    trained = [
        result.seed
        for result in results
        if result.row.origin not in ("floor", "external") and not result.row.variant
    ]
    listed = list(track.get("seeds", ()))
    reached = [place for place, seed in enumerate(listed) if seed in trained]
    return tuple(listed[: max(reached) + 1]) if reached else tuple(sorted(set(trained)))


def _collapsed(columns: Sequence[Column], results: Sequence[Result]) -> set[str]:
    """Return the run ids of constant features that kNN does not tell from random ones.

    That features hardly vary is the run's own finding (`health`); some such still classify.
    """
    flat = [r for r in results if r.health.get("collapsed") and r.row.role != "floor"]
    knn = next((column for column in columns if column.protocol == "knn"), None)
    floors = [r for r in results if r.row.role == "floor" and r.row.origin != "floor"]
    random = knn.values(r for r in floors if not r.row.variant) if knn else []
    if knn is None or not random:
        return {result.run_id for result in flat}
    level = sum(random) / len(random)
    return {
        result.run_id
        for result in flat
        for value in knn.values([result])
        if statistics.cell([value], max(knn.num_images(result), 1)).low <= level
    }


def _faults(
    runs: Sequence[Result],
    expected: Sequence[int],
    headline: Column | None,
    collapsed: set[str],
) -> dict[int, str]:
    faults = dict.fromkeys(expected, "missing")
    codes = Counter(map(_code, runs))
    usual = min(codes, key=lambda code: (-codes[code], code), default=None)
    for result in runs:
        if _code(result) != usual:
            faults[result.seed] = "of other code than the row's other seeds"
        elif result.status != "done":
            status = result.status.replace("_", " ")
            told = result.reason.startswith(status)
            parts = [result.reason] if told else [status, result.reason]
            faults[result.seed] = ": ".join(part for part in parts if part)
        elif result.run_id in collapsed and not (headline and headline.is_distance):
            faults[result.seed] = "collapsed"
        elif headline is not None and headline.entry(result) is None and _owes(result, headline):
            faults[result.seed] = f"not evaluated by {headline.protocol} {headline.version}"
        else:
            faults.pop(result.seed, None)
    return faults


def _code(result: Result) -> tuple[str, int, bool, str]:
    """Return what must be the same in all seeds of a row beside their specs."""
    code, row = result.code, result.row
    return code.plugin_sha256, code.engine, row.uses_labels, row.role


def _owes(result: Result, headline: Column) -> bool:
    """Return whether a run should have this metric: a distance only if it drew samples."""
    return not headline.is_distance or any(name.startswith(SAMPLES) for name in result.artifacts)


def _correct(
    rows: Sequence[TableRow], columns: Sequence[Column]
) -> tuple[dict[Column, dict[str, np.ndarray]], dict[str, str]]:
    """Return column -> row's key -> what each of n seeds had right of N images, (n, N), and
    key -> problem of rows that cannot be read. Bool, or the share of draws in [0, 1]; of distances
    the values themselves, (n,)."""
    correct: dict[Column, dict[str, np.ndarray]] = {column: {} for column in columns}
    damaged: dict[str, str] = {}
    counts = Counter(result.data.test_images for row in rows for result in row.good)
    num_images = min(counts, key=lambda count: (-counts[count], count), default=0)
    for row in rows:
        for column in columns:
            entries = [entry for entry in map(column.entry, row.good) if entry]
            try:
                found = [column.answers(entry, num_images) for entry in entries]
            except UserError as error:
                damaged[row.key] = f"{row.first.run_id}.json and its other seeds: {error}"
                break
            known = [answers for answers in found if answers is not None]
            if column.is_distance and len(entries) == len(row.good) > 0:
                correct[column][row.key] = np.array(column.values(row.good))
            elif known and len(known) == len(row.good):
                correct[column][row.key] = np.stack(known)
    for of_column in correct.values():
        for key in damaged:
            of_column.pop(key, None)
    return correct, damaged


def _compare(
    rows: Sequence[TableRow], candidates: set[str], column: Column, correct: dict[str, np.ndarray]
) -> statistics.Comparison:
    present = [row for row in rows if row.key in correct]
    fixed = {row.key for row in present if _keeps_own_variance(row)}
    pool = {row.key for row in present if row.section == "main" and not row.is_floor}
    compare = distances.compare if column.is_distance else statistics.compare
    return compare(
        {row.key: correct[row.key] for row in present},
        pool=pool,
        untrained=fixed,
        ranked=candidates,
        incomplete={row.key for row in present if not row.complete},
    )


def _keeps_own_variance(row: TableRow) -> bool:
    """Return whether a row's seed variance is its own alone. A floor with parameters that has one
    seed has none, and takes the trained methods'."""
    still = row.first.row.origin == "floor" or len(row.good) > 1
    return row.section == "external" or (row.is_floor and still)


def _cells(
    rows: Sequence[TableRow],
    columns: Sequence[Column],
    comparisons: Mapping[Column, statistics.Comparison],
) -> dict[tuple[str, Column], statistics.Cell]:
    """Return every accuracy's cell; from the percentages alone where no answers are stored."""
    cells = {}
    for column in columns:
        compared = comparisons[column].cells if column in comparisons else {}
        if column.is_distance:
            cells |= {(key, column): cell for key, cell in compared.items()}
        values = {
            row: column.values(row.good)
            for row in rows
            if column.is_accuracy and row.good and column.num_images(row.good[0])
        }
        values = {row: percent for row, percent in values.items() if percent}
        pool = [row for row in values if row.section == "main" and not row.is_floor]
        prior = statistics.accuracies_prior(
            [values[row] for row in pool], [column.num_images(row.good[0]) for row in pool]
        )
        for row, percent in values.items():
            drawn = None if row.is_floor or row.section == "external" else prior
            cells[row.key, column] = compared.get(row.key) or statistics.cell(
                percent, column.num_images(row.good[0]), drawn
            )
    return cells


def _ordered(rows: Sequence[TableRow], headline: Column | None, trials: str) -> list[TableRow]:
    """Return the rows best first; last those tuned otherwise or of picked seeds, lacking seeds,
    without numbers."""

    def place(row: TableRow) -> tuple[int, float, str]:
        values = headline.values(row.good) if headline else []
        if not values:
            return 3, 0.0, row.key
        tuned_otherwise = row.first.row.role == "method" and row.first.row.tuning != trials
        tier = 2 if not row.complete else 1 if tuned_otherwise or row.unlisted else 0
        mean = sum(values) / len(values)
        return tier, mean if headline and headline.is_distance else -mean, row.key

    return sorted(rows, key=place)
