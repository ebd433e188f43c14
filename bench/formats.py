"""A page's table, or one row of it, to paste elsewhere: markdown, JSON, CSV, LaTeX.

Every form carries the protocols with their hashes, n and the intervals: without them a number can
be compared with nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import reproductions
from bench.beside import Beside
from bench.cells import decimals, one_line
from bench.columns import Column
from bench.errors import UnknownName, UserError
from bench.footnotes import protocols_line
from bench.leaderboard import page_table
from bench.page_files import Page
from bench.pages import is_stale
from bench.results import group
from bench.rows import Board, TableRow, build

FORMATS = ("markdown", "csv", "json", "latex")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    "…": r"\ldots{}",
    "±": r"$\pm$",
}
_LATEX |= {mark: f"\\{mark}" for mark in "{}$&#%_"}
_LATEX |= {mark: f"{{{mark}}}" for mark in "[]*"}  # the end of a row takes [ and * as its own


@dataclass(frozen=True)
class Table:
    """Some rows of a page."""

    track: Mapping[str, Any]
    board: Board
    rows: list[TableRow]
    stale: frozenset[str]
    beside: Beside

    def columns(self) -> list[Column]:
        """Return the page's columns in which one of the rows has a number."""
        runs = [result for row in self.rows for result in row.good]
        return [column for column in self.board.columns if any(map(column.entry, runs))]


def show(
    pages: Sequence[Page],
    form: str,
    *,
    method: str | None = None,
    current: Mapping[str, str] | None = None,
    engine: int | None = None,
    beside: Beside,
) -> str:
    """Return pages in one of `FORMATS`: their main rows, or all rows of one method.

    JSON and CSV have variants and external rows too; neither rounds.

    Raises:
        UnknownName: no page has a row of the method.
        UserError: there is no row at all.
    """
    boards = [(page.track, build(page.track, page.results)) for page in pages]
    known = {row.first.method for _, board in boards for row in board.rows}
    if method is not None and method not in known:
        raise UnknownName("row", method, sorted(known))
    tables = []
    for track, board in boards:
        rows = [row for row in board.rows if method in (None, row.first.method)]
        if method is None and form in ("markdown", "latex"):
            rows = [row for row in rows if row.section == "main"]
        stale = frozenset(row.key for row in rows if is_stale(row, current or {}, engine))
        if rows:
            tables.append(Table(track, board, rows, stale, beside))
    if not tables:
        raise UserError("there are no results to show; `bench publish` publishes some")
    if form == "json":
        return json.dumps([as_dict(table) for table in tables], indent=1, ensure_ascii=False)
    if form == "csv":
        return csv(tables)
    render = markdown if form == "markdown" else latex
    return "\n\n".join(render(table) for table in tables)


def markdown(table: Table) -> str:
    """Return the rows as their page shows them, and the protocols."""
    shown = page_table(
        table.track,
        table.board,
        table.rows,
        stale=lambda row: row.key in table.stale,
        reproduced=reproductions.cells(table.board.rows, table.beside.reproduced),
        ledger=table.beside.ledger,
        flops=table.beside.flops,
    )
    return f"{shown}\n\n{protocols_line(table.board)}"


def as_dict(table: Table) -> dict[str, Any]:
    """Return the rows as JSON: per column mean, low, high (percent), n and rank interval.

    `low`, `high` are null for what has no interval, `rank` where nothing is ranked.
    """
    board, columns = table.board, table.columns()
    headline = board.headline
    return {
        "track": table.track["id"],
        "title": table.track.get("title", ""),
        "data": table.track.get("data", ""),
        "data_sha256": table.track.get("data_sha256", ""),
        "ranked": board.ranks_shown,
        "headline": _key(headline) if headline else None,
        "columns": [
            {
                "key": _key(column),
                "title": column.title,
                "protocol": column.protocol,
                "version": column.version,
                "hash": column.hash,
                "metric": column.metric,
                "split": "validation" if column.validation else "test",
            }
            for column in columns
        ],
        "rows": [_row(table, row, columns) for row in table.rows],
    }


def _key(column: Column) -> str:
    return f"{column.protocol}/{column.metric}@{column.hash}"


def _row(table: Table, row: TableRow, columns: Sequence[Column]) -> dict[str, Any]:
    first = row.first
    numbers = {column: _number(table.board, row, column) for column in columns}
    return {
        "method": first.method,
        "title": first.row.title,
        "paper": first.row.paper,
        "section": row.section,
        "variant": first.row.variant,
        "configuration": group(first),
        "tuning": first.row.tuning,
        "seeds": [result.seed for result in row.good],
        "faults": {str(seed): fault for seed, fault in sorted(row.faults.items())},
        "marks": marks(table, row),
        "metrics": {_key(column): number for column, number in numbers.items() if number},
    }


def marks(table: Table, row: TableRow) -> list[str]:
    """Return what a row's numbers may not be shown without."""
    card = row.first.row
    said = ["floor" if row.is_floor else "reference" if row.is_reference else ""]
    said += ["uses labels" if card.uses_labels else ""]
    said += [card.origin if card.origin in ("local", "external") else ""]
    said += ["stale" if row.key in table.stale else ""]
    said += table.board.stamps(row)
    said += ["" if row.complete else "lacks seeds"]
    return [mark for mark in said if mark]


def _number(board: Board, row: TableRow, column: Column) -> dict[str, Any] | None:
    values = column.values(row.good)
    if not values:
        return None
    cell, rank = board.cells.get((row.key, column)), board.rank(row, column)
    return {
        "mean": cell.mean if cell else sum(values) / len(values),
        "low": cell.low if cell else None,
        "high": cell.high if cell else None,
        "n": len(values),
        "rank": list(rank) if rank else None,
    }


def csv(tables: Sequence[Table]) -> str:
    """Return a line per row and column of the page: one number with all that belongs to it."""
    import pandas as pd

    lines = []
    for table in tables:
        page = as_dict(table)
        columns = {column["key"]: column for column in page["columns"]}
        for row in page["rows"]:
            plain = {key: row[key] for key in ("method", "title", "section", "variant")}
            plain |= {key: row[key] for key in ("configuration", "tuning")}
            for key, number in row["metrics"].items():
                best, worst = number["rank"] or (None, None)
                measured = {name: number[name] for name in ("mean", "low", "high", "n")}
                of = ("protocol", "version", "hash", "metric", "split")
                lines.append(
                    {"track": page["track"]}
                    | plain
                    | {name: columns[key][name] for name in of}
                    | measured
                    | {"rank_best": best, "rank_worst": worst, "marks": "; ".join(row["marks"])}
                )
    frame = pd.DataFrame(lines).astype({"rank_best": "Int64", "rank_worst": "Int64"})
    return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")


def latex(table: Table) -> str:
    """Return a floating table; its document needs \\usepackage{booktabs} and UTF-8."""
    board, columns = table.board, table.columns()
    ranked = any(board.rank(row, board.headline) for row in table.rows)
    marked = [marks(table, row) for row in table.rows]
    heads = ["method", *(escape(column.title) for column in columns), "$n$"]
    heads += ["rank"] * ranked + [""] * any(marked)
    lines = []
    for row, said in zip(table.rows, marked, strict=True):
        cells = [_latex_name(row), *(_latex_number(board, row, column) for column in columns)]
        cells.append(str(len(row.good)))
        rank = board.rank(row, board.headline)
        cells += [("--".join(map(str, sorted(set(rank)))) if rank else "")] * ranked
        cells += [escape("; ".join(said))] * any(marked)
        lines.append(cells)
    aligned = "l" + "r" * (len(columns) + 1 + ranked) + "l" * any(marked)
    body = [" & ".join(cells) + r" \\" for cells in lines]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_caption(table, columns)}}}",
            f"\\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _caption(table: Table, columns: Sequence[Column]) -> str:
    shown = {column.hash: f"{column.protocol} {column.version}" for column in columns}
    protocols = ", ".join(
        f"{escape(name)} (\\texttt{{{escape(key)}}})" for key, name in sorted(shown.items())
    )
    split = "validation" if any(column.validation for column in columns) else "test"
    smoke = " A smoke track: not for ranking." if table.track.get("smoke") else ""
    return (
        f"{escape(table.track.get('title') or table.track['id'])}: {split} accuracy in percent, "
        r"mean $\pm$ 95\,\% interval over $n$ seeds (over images where $n$ is 1)."
        f"{smoke} Protocols: {protocols}."
    )


def _latex_name(row: TableRow) -> str:
    name = escape(row.first.row.title or row.first.method, longest=60)
    if row.several:
        name += f" \\texttt{{{group(row.first)[:6]}}}"
    return f"{name}, {escape(row.first.row.variant)}" if row.first.row.variant else name


def _latex_number(board: Board, row: TableRow, column: Column) -> str:
    number, cell = _number(board, row, column), board.cells.get((row.key, column))
    if number is None:
        return ""
    if cell is None:
        return f"{number['mean']:.4g}"
    places = decimals(cell.half_width)
    return f"{cell.mean:.{places}f} $\\pm$ {cell.half_width:.{places}f}"


def escape(value: object, *, longest: int = 160) -> str:
    """Return a text on one line as LaTeX that sets its characters and nothing else."""
    line = "".join(_LATEX.get(mark, mark) for mark in one_line(value, longest=longest))
    return re.sub("-(?=-)", "-{}", line)  # two hyphens would join to a dash
