"""A page's tables: a row of runs as markdown cells."""

from __future__ import annotations

import statistics as summary
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from bench.cells import join, numbers, paper, passes, plus_minus, short, table, text
from bench.columns import Column
from bench.rows import RANKED_SEEDS, Board, TableRow, may_rank


def rows_table(
    board: Board,
    rows: Sequence[TableRow],
    *,
    stale: Callable[[TableRow], bool],
    reproduced: Mapping[str, str] | None = None,
) -> str:
    """Return some of a board's rows as a table.

    Args:
        stale: says whose code is not today's.
        reproduced: row's key -> when a run of it was last trained again, and how that ended.
    """
    again = reproduced or {}
    dated = any(row.key in again for row in rows)
    ranked = board.ranks_shown and any(board.rank(row, board.headline) for row in rows)
    columns = [c for c in board.columns if any(c.entry(r) for row in rows for r in row.good)]
    headers = ["rank"] if ranked else []
    headers += ["method", "paper", *(text(column.title) for column in columns)]
    headers += ["n", "tuning", "passes", "images/s", "GiB", "s/run"]
    headers += [*(["last reproduced"] if dated else []), "status"]
    lines = []
    for row in rows:
        card = row.first.row
        line = [_rank(board, row)] if ranked else []
        line += [_name(row), paper(card.paper), *(_accuracy(board, row, c) for c in columns)]
        line += [_count(row), text(card.tuning, longest=12), *_costs(row)]
        line += [again.get(row.key, "")] if dated else []
        lines.append([*line, _status(board, row, stale(row))])
    aligned = "l" * (2 + ranked) + "r" * (len(columns) + 6) + "l" * (1 + dated)
    return table(headers, lines, aligned)


def _rank(board: Board, row: TableRow) -> str:
    interval = board.rank(row, board.headline)
    if interval is None:
        return ""
    best, worst = interval
    shown = str(best) if best == worst else f"{best}-{worst}"
    return f"**{shown}**" if best == 1 else shown


def _name(row: TableRow) -> str:
    name = label(row)
    if row.first.row.variant:
        name += f", {text(row.first.row.variant)}"
    return f"*{name}*" if row.is_floor or row.is_reference else name


def label(row: TableRow) -> str:
    """Return the method's title, and its name or config's hash where that is not enough."""
    title, method = row.first.row.title or row.first.method, row.first.method
    shown = text(title, longest=60)
    if _letters(title) != _letters(method):
        shown += f" ({text(method, longest=60)})"
    return f"{shown} `{row.key.split('/')[-2][:6]}`" if row.several else shown


def _letters(name: str) -> str:
    return "".join(mark for mark in name.lower() if mark.isalnum())


def _accuracy(board: Board, row: TableRow, column: Column) -> str:
    cell = board.cells.get((row.key, column))
    if cell is None:
        values = column.values(row.good)
        return short(sum(values) / len(values)) if values else ""
    shown = plus_minus(cell)
    rank = board.rank(row, column)
    if rank is not None and rank[0] == 1:
        shown = f"**{shown}**"
    stage = _stage(row, column)
    return f"{shown} ({stage})" if stage else shown


def _stage(row: TableRow, column: Column) -> str:
    """Return the stage that validation chose most often, where a stage was chosen."""
    chosen = []
    for result in row.good:
        entry = column.entry(result)
        part = entry.chosen.get(column.part) if entry else None
        if isinstance(part, dict) and "stage" in part:
            chosen.append(str(part["stage"]))
    counts = Counter(chosen)
    return (
        text(min(counts, key=lambda stage: (-counts[stage], stage)), longest=20) if chosen else ""
    )


def _count(row: TableRow) -> str:
    if row.unsupported:
        return ""
    if row.complete:
        return str(len(row.good))
    return f"{len(row.good)}/{len(row.expected)}"


def _costs(row: TableRow) -> list[str]:
    """Return passes, images/s and seconds of the median run, and the largest peak memory."""
    if not row.good:
        return ["", "", "", ""]
    costs = [result.cost for result in row.good]

    def middle(name: str) -> float:
        return summary.median(getattr(cost, name) for cost in costs)

    encoder = f"{passes(middle('passes_with_grad'))} + {passes(middle('passes_without_grad'))}"
    speed, seconds = middle("images_per_second"), middle("train_seconds")
    memory = max(cost.peak_memory_gib for cost in costs)
    return [encoder, short(speed), short(memory, digits=2), short(seconds)]


def _status(board: Board, row: TableRow, stale: bool) -> str:
    card = row.first.row
    marks = ["floor" if row.is_floor else "reference" if row.is_reference else ""]
    if row.unsupported:
        marks.append(f"n/a: {text(row.first.reason)}")
    elif not row.good:
        faults = [fault for fault in row.faults.values() if fault != "missing"]
        marks.append(text(faults[0] if faults else "missing"))
    elif not row.complete:
        marks.append(f"lacks {'seed' if len(row.faults) == 1 else 'seeds'} {numbers(row.faults)}")
    marks += ["uses labels"] if card.uses_labels else []
    marks += [f"local `{text(row.first.code.plugin_sha256[:8])}`"] if card.origin == "local" else []
    marks += ["published"] if row.published else []
    marks += ["**stale**"] if stale else []
    marks += [f"**{stamp}**" for stamp in board.stamps(row)]
    if row.good and len(row.good) == 1 and not row.is_floor:
        marks.append("single run")
    if row.good and board.ranks_shown and row.section == "main" and card.role == "method":
        if not card.uses_labels and not may_rank(row, board.trials):
            marks.append(f"not ranked: tuning is not {text(board.trials)}")
        elif len(row.expected) < RANKED_SEEDS:
            marks.append("too few seeds to rank")
    return join(marks) or "done"


def is_stale(row: TableRow, current: Mapping[str, str], engine: int | None) -> bool:
    """Return whether a row's code is known to differ from today's."""
    for result in row.good:
        if result.row.origin in ("floor", "external"):
            continue
        today = current.get(result.method, result.code.plugin_sha256)
        if result.code.plugin_sha256 != today or engine not in (None, result.code.engine):
            return True
    return False
