"""Did a run that was trained again come out as it was published?

A run trained elsewhere may differ in the last bit of a sum, and then in all. What still can be
asked is whether its numbers lie where one more run of the published row would lie: in the page's
interval of the row, widened from the mean over seeds to one run (`statistics.one_more`), all shown
metrics together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench import distances, page_files, statistics
from bench.columns import Column
from bench.errors import UserError
from bench.reproductions import backbone_sha256
from bench.results import Result, read_all
from bench.rows import Board, TableRow, build

ROUNDING = 1e-9  # of a percentage
MACHINE = ("device", "processor", "torch", "timm", "python", "threads", "processes")


@dataclass(frozen=True)
class Verdict:
    """What became of a reproduction.

    Attributes:
        kind: "bytes", "interval" or "outside", as `reproductions.Record` has them.
        said: one line for a person.
    """

    kind: str
    said: str

    @property
    def holds(self) -> bool:
        return self.kind != "outside"


@dataclass(frozen=True)
class Row:
    """The published row that a run belongs to, on its page."""

    board: Board
    row: TableRow

    def columns(self, run: Result) -> list[Column]:
        """Return the page's columns in which a run has a number."""
        return [column for column in self.board.columns if column.entry(run)]


def published_row(path: Path, run: Result) -> Row:
    """Return a run's row as the page of its results folder shows it, with all its seeds.

    Raises:
        UserError: the folder's page leaves the run out.
    """
    track = page_files.read_track(path.parent)
    board = build(track | {"id": run.track}, read_all(path.parent)[0])
    for row in board.rows:
        if run.run_id in {result.run_id for result in row.results}:
            return Row(board, row)
    raise UserError(f"{path}: its page leaves this run out; `bench leaderboard` says why")


def compare(run: Result, again: Result, row: Row) -> Verdict:
    """Return whether a run came out as it was published; pure."""
    if again.status != "done":
        return Verdict("outside", f"not reproduced: {again.status}: {again.reason}")
    columns = row.columns(run)
    then, now = backbone_sha256(run), backbone_sha256(again)
    numbers = {column: (*column.values([run]), *column.values([again])) for column in columns}
    lost = [column.title for column, values in numbers.items() if len(values) < 2]
    if lost:
        return Verdict("outside", f"not reproduced: no number for {', '.join(lost)}")
    if then == now and all(old == new for old, new in numbers.values()):
        what = f"backbone {now[:12]}" if now else "nothing trains, and all numbers are equal"
        return Verdict("bytes", f"same bytes: {what}")
    judged = [column for column in columns if _has_interval(run, row, column)]
    others = [c.title for c in columns if c not in judged and numbers[c][0] != numbers[c][1]]
    if then == now and others:
        said = f"the same backbone gives other numbers for {', '.join(others)}"
        return Verdict("outside", f"not reproduced: {said}")
    if not judged:
        return Verdict("outside", "not reproduced: other bytes, and no interval to compare with")
    far = []
    for column in judged:
        low, high = _interval(run, row, column, len(judged))
        new = numbers[column][1]
        if not low - ROUNDING <= new <= high + ROUNDING:
            unit = "" if column.is_distance else " points"
            short = f"{low - new:.2f}{unit} below" if new < low else f"{new - high:.2f} above"
            far.append(f"{column.title} {new:.2f} is {short} {low:.2f} to {high:.2f}")
    bytes_ = "the same backbone" if then == now else f"backbone {now[:12]}, not {then[:12]}"
    if far:
        where = "where one more run of the row would lie"
        return Verdict("outside", f"not reproduced: {'; '.join(far)}, {where} ({bytes_})")
    said = ", ".join(f"{c.title} {numbers[c][1]:.2f} for {numbers[c][0]:.2f}" for c in judged)
    said += f"; no interval to judge {', '.join(others)} by" if others else ""
    return Verdict("interval", f"inside the published interval: {said} ({bytes_})")


def _interval(run: Result, row: Row, column: Column, columns: int) -> tuple[float, float]:
    num_images = column.num_images(run)
    cell = row.board.cells.get((row.row.key, column))
    if column.is_distance and cell is not None:
        return distances.one_more(cell, columns=columns)
    cell = cell or statistics.cell(column.values([run]), num_images)  # a row that does not count
    return statistics.one_more(cell, num_images, columns=columns)


def _has_interval(run: Result, row: Row, column: Column) -> bool:
    """Return whether one more run of the row can be judged by a column."""
    if column.is_distance:  # of sets: one seed says nothing of another
        return (row.row.key, column) in row.board.cells
    return column.is_accuracy and column.num_images(run) > 0


def differences(run: Result, again: Result) -> list[str]:
    """Return what of machine and versions differs, a line each."""
    then, now = run.machine.model_dump(), again.machine.model_dump()
    return [
        f"{name}: {then[name] or 'unknown'} then, {now[name] or 'unknown'} now"
        for name in MACHINE
        if then[name] != now[name]
    ]
