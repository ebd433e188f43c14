"""A page's tables: a row of runs as markdown cells."""

from __future__ import annotations

import statistics as summary
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import quote

from bench.cells import join, measured, numbers, paper, passes, plus_minus, short, table, text
from bench.columns import MISFITS, Column, scores
from bench.ledger import MANY_READS
from bench.ranking import may_rank
from bench.recipes import Recipe
from bench.rows import RANKED_SEEDS, Board, TableRow


def rows_table(
    board: Board,
    rows: Sequence[TableRow],
    *,
    stale: Callable[[TableRow], bool],
    reproduced: Mapping[str, str] | None = None,
    reads: Mapping[str, int] | None = None,
    flops: Mapping[str, float] | None = None,
    ceilings: Mapping[str, float] | None = None,
) -> str:
    """Return some of a board's rows as a table.

    Args:
        stale: says whose code is not today's.
        reproduced: row's key -> when a run of it was last trained again, and how that ended.
        reads: row's key -> configurations of its method evaluated on the test split, if counted.
        flops: row's key -> training FLOPs of a run, where they were counted.
        ceilings: "flops" and "parameters" that the rows of an open track may not exceed; such rows
            chose backbone, batch and epochs for themselves.
    """
    again = reproduced or {}
    dated = any(row.key in again for row in rows)
    ranked = board.ranks_shown and any(board.rank(row, board.headline) for row in rows)
    columns = [c for c in board.columns if any(c.entry(r) for row in rows for r in row.good)]
    headers = ["rank"] if ranked else []
    headers += ["method", "paper", *(text(column.title) for column in columns)]
    counted = ["test reads"] if reads else []
    spent = flops or {}
    chosen = ["backbone", "batch", "epochs"] if ceilings else []
    headers += ["n", "tuning", *counted, *chosen, "passes", *(["GFLOP"] if spent else [])]
    headers += ["images/s", "GiB", "s/run"]
    drawn = any(result.cost.sampling_seconds for row in rows for result in row.good)
    headers += ["s sampling"] if drawn else []
    headers += [*(["last reproduced"] if dated else []), "status"]
    lines = []
    for row in rows:
        card = row.first.row
        line = [_rank(board, row)] if ranked else []
        line += [_name(row), paper(card.paper), *(_accuracy(board, row, c) for c in columns)]
        line += [_count(row), text(card.tuning, longest=12)]
        line += [_reads(reads.get(row.key, 0))] if reads else []
        line += _chosen(row) if ceilings else []
        encoder, *rest = _costs(row)
        line += [encoder, *([short(spent.get(row.key, 0) / 1e9)] if spent else []), *rest]
        line += [_sampling(row)] if drawn else []
        line += [again.get(row.key, "")] if dated else []
        over = _over(row, ceilings or {}, spent)
        lines.append([*line, join([_status(board, row, stale(row)), *over])])
    figures = len(columns) + 6 + len(counted) + len(chosen) + bool(spent) + drawn
    aligned = "l" * (2 + ranked) + "r" * figures + "l" * (1 + dated)
    return table(headers, lines, aligned)


def _reads(count: int) -> str:
    return f"**{count}**" if count > MANY_READS else str(count)


def tuning_section(board: Board, recipes: Iterable[Recipe], figure: str) -> list[str]:
    """Return what a page says of the trials behind its recipes."""
    names = {row.first.method: label(row) for row in board.rows if row.section == "main"}
    lines = []
    for recipe in sorted(recipes, key=lambda recipe: recipe.method):
        trial = recipe.trials[recipe.winner]
        best = ", ".join(f"{key} {value}" for key, value in trial.changed.items())
        own = recipe.trials[0].score
        score = "" if trial.score is None else f"{trial.score:.1f}"
        lines.append(
            [
                names.get(recipe.method, text(recipe.method)),
                str(len(recipe.trials)),
                "none" if own is None else f"{own:.1f}",
                score,
                str(recipe.winner),
                text(best),
                short(sum(trial.seconds for trial in recipe.trials)),
            ]
        )
    headers = ["method", "trials", "own recipe", "best", "trial", "its values", "s in all"]
    said = (
        "Every method had the same number of full-budget trials on the same points of one Sobol "
        "sequence, scored on validation with seeds that never report; trial 0 is its own recipe. "
        "The figure shows the expected best validation score after 1, 2, ... trials (Dodge et al. "
        "2019)."
    )
    picture = f"![Expected best validation score against trials]({quote(figure)})"
    return [said, table(headers, lines, "lrrrrlr"), picture]


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
    cell, values = board.cells.get((row.key, column)), column.values(row.good)
    if not values:
        return ""
    some = f" ({len(values)}/{len(row.good)})" if len(values) < len(row.good) else ""
    if cell is None:
        return measured(sum(values) / len(values)) + _beside(row, column) + some
    shown = plus_minus(cell) + some
    rank = board.rank(row, column)
    if rank is not None and rank[0] == 1:
        shown = f"**{shown}**"
    stage = _stage(row, column)
    return f"{shown} ({stage})" if stage else shown


def _beside(row: TableRow, column: Column) -> str:
    """Return what stands beside a mean that has no interval over seeds: how far the line misses
    behind an extrapolation, and of a distance of one seed its interval over blocks of samples."""
    found = [scores(entry) for entry in map(column.entry, row.good) if entry]
    misfit = MISFITS.get(column.metric)
    if misfit and all(misfit in each for each in found):
        return f" ({measured(sum(each[misfit] for each in found) / len(found))})"
    ends = [found[0].get(f"{column.metric}_{end}") for end in ("low", "high")]
    if len(found) > 1 or None in ends:
        return ""
    return f" [{', '.join(map(measured, ends))}]"


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


def _chosen(row: TableRow) -> list[str]:
    """Return backbone, batch and epochs, which a row of an open track chooses for itself."""
    spec, seen = row.first.spec, row.first.data.train_images
    backbone = spec.get("backbone")
    if not row.good or backbone is None or row.is_floor:
        return ["", "", ""]
    drawn = spec["budget"]["steps"] * spec["batch_size"]
    epochs = short(drawn / seen) if seen else ""
    return [text(backbone["name"]), str(spec["batch_size"]), epochs]


def _over(row: TableRow, ceilings: Mapping[str, float], spent: Mapping[str, float]) -> list[str]:
    """Return which of an open track's ceilings a row exceeds."""
    has = {"flops": spent.get(row.key, 0.0), "parameters": row.first.cost.parameters}
    return [f"**over the track's {kind}**" for kind, most in ceilings.items() if has[kind] > most]


def _sampling(row: TableRow) -> str:
    """Return the seconds that the median run took to draw its samples."""
    return short(summary.median(r.cost.sampling_seconds for r in row.good)) if row.good else ""


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
    marks += ["**memorised**: samples too near to training images"] if row.memorised else []
    marks += [f"**{stamp}**" for stamp in board.stamps(row)]
    if row.good and len(row.good) == 1 and not row.is_floor:
        marks.append("single run")
    if row.good and board.ranks_shown and row.section == "main" and card.role == "method":
        if row.memorised:
            marks.append("not ranked")
        elif row.unlisted:
            marks.append("not ranked: its seeds are not of the track's list")
        elif not card.uses_labels and not may_rank(row, board.trials):
            marks.append(f"not ranked: tuning is not {text(board.trials)}")
        elif len(row.expected) < RANKED_SEEDS:
            marks.append("too few seeds to rank")
    return join(marks) or "done"


def is_stale(row: TableRow, current: Mapping[str, str], engine: int | None) -> bool:
    """Return whether a row's code is known to differ from today's."""
    for result in row.results:
        if result.row.origin in ("floor", "external"):
            continue
        today = current.get(result.method, result.code.plugin_sha256)
        if result.code.plugin_sha256 != today or engine not in (None, result.code.engine):
            return True
    return False
