"""Results to markdown: one page per track, one index. Pure, and the same bytes everywhere.

A track is a dict of what its page says: `id`, `title`, `description`, `smoke`, `seeds` (the fixed
list), `trials` (of tuning, that a ranked row has), `data`, `licence`, `backbone`, `image_size`,
`budget`, `batch_size`, `precision`, `data_sha256`, `floors`, `reference`, and `protocols`: a list
of `{"id", "version", "hash", "headline"}`, where `headline` names the metric that ranks. Only `id`
is required.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from bench import reproductions, training_flops
from bench.cells import join, plus_minus, table, text
from bench.columns import Column
from bench.footnotes import footnotes, seeds_words
from bench.generated import calibration_section, sheets_section
from bench.ledger import MANY_READS, test_reads
from bench.pages import is_stale, label, rows_table, tuning_section
from bench.recipes import Recipe
from bench.reproductions import Record
from bench.results import Result
from bench.rows import RANKED_SEEDS, Board, TableRow, build
from bench.training_flops import Counts

Track = Mapping[str, Any]
SHAPES = ("backbone", "image_size", "budget", "batch_size", "precision")
FACTS = ("division", "data", "licence", *SHAPES)


def render_track(
    track: Track,
    results: Iterable[Result],
    *,
    published: Iterable[Result] = (),
    problems: Iterable[str] = (),
    current: Mapping[str, str] | None = None,
    engine: int | None = None,
    figure: str = "",
    reproduced: Sequence[Record] = (),
    ledger: Sequence[Mapping[str, Any]] = (),
    recipes: Iterable[Recipe] = (),
    tuning_figure: str = "",
    sheets: Sequence[str] = (),
    flops: Counts | None = None,
    flops_figure: str = "",
) -> str:
    """Return a track's page.

    Args:
        published: committed results to show beside one's own, marked so.
        problems: lines about files that were left out, as `results.read_all` returns them.
        current: method -> sha256 of its plugin's source today; others are not called stale.
        engine: today's `bench.ENGINE`.
        figure: the file name of the page's picture, if there is one.
        reproduced: the runs that were trained again, the latest last.
        ledger: the lines of the ledger of test reads; without any, the page does not count them.
        recipes: the track's tuned recipes; `tuning_figure`: the file name of their picture.
        sheets: file names of published sheets of images.
        flops: training FLOPs that were counted; `flops_figure`: the file of their picture.
    """
    board = build(track, results, published, problems)

    again = reproductions.cells(board.rows, reproduced)

    def stale(row: TableRow) -> bool:
        return is_stale(row, current or {}, engine)

    main = [row for row in board.rows if row.section == "main"]
    blocks = [f"# {text(track.get('title') or track['id'])}", *_opening(track, board)]
    table_of = partial(
        page_table, track, board, stale=stale, reproduced=again, ledger=ledger, flops=flops
    )
    blocks.append(table_of(main) if main else "No results yet.")
    if main:
        counted, dated = (
            bool(training_flops.spent(main, flops)),
            any(row.key in again for row in board.rows),
        )
        blocks.append(_legend(board, dated=dated, counted=counted))
    headline = board.headline
    shown = text(headline.title) if headline and headline.is_distance else "Accuracy"
    for what, file in (("time", figure), ("FLOPs", flops_figure)):
        blocks += [f"![{shown} against training {what}]({quote(file)})"] if file else []
    if tuning_figure:
        blocks += ["## Tuning", *tuning_section(board, recipes, tuning_figure)]
    blocks += [*calibration_section(track, board), *sheets_section(track["id"], board, sheets)]
    variants = [row for row in board.rows if row.section == "variant"]
    if variants:
        blocks += [
            "## Variants",
            "Runs with `--set`; not ranked.",
            table_of(variants),
        ]
    external = [row for row in board.rows if row.section == "external"]
    if external:
        said = "Checkpoints from elsewhere; their training data is unknown. Not ranked."
        blocks += ["## External", said, table_of(external)]
    notes = footnotes(track, board, stale)
    if notes:
        blocks += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    if board.problems:
        lines = "\n".join(f"- {text(problem, longest=300)}" for problem in board.problems)
        blocks += ["## Left out", lines]
    return "\n\n".join(blocks) + "\n"


def page_table(
    track: Track,
    board: Board,
    rows: Sequence[TableRow],
    *,
    stale: Callable[[TableRow], bool],
    reproduced: Mapping[str, str],
    ledger: Sequence[Mapping[str, Any]] = (),
    flops: Counts | None = None,
) -> str:
    """Return some rows of a page as its table shows them.

    Args:
        stale: says whose code is not today's.
        reproduced: row's key -> its cell of the column `last reproduced`.
        ledger, flops: as for `render_track`.
    """
    lines = [] if board.headline is None or board.headline.validation else ledger
    reads = {row.key: test_reads(lines, row.first, track) for row in board.rows} if lines else {}
    return rows_table(
        board,
        rows,
        stale=stale,
        reads=reads,
        reproduced=reproduced,
        flops=training_flops.spent(rows, flops),
        ceilings=track.get("ceilings"),
    )


def _opening(track: Track, board: Board) -> list[str]:
    blocks = []
    if board.headline is not None and board.headline.validation:
        blocks.append("**Validation scores: the test split was not opened. Not ranked.**")
    elif track.get("smoke") or board.check.failed:
        blocks.append("**Smoke track: not for ranking.**")
    elif not board.ranks_shown and board.rows:
        blocks.append(f"**Too few seeds to rank:** a ranking needs {RANKED_SEEDS}.")
    if track.get("description"):
        blocks.append(text(track["description"], longest=2000))
    facts = [
        f"{name.replace('_', ' ')} {text(track[name])}" + (" px" if name == "image_size" else "")
        for name in FACTS
        if track.get(name) not in (None, "")
    ]
    seeds = _page_seeds(board)
    if seeds:
        facts.append(seeds_words(seeds))
    if facts:
        line = join(facts)
        blocks.append(line[0].upper() + line[1:])
    if board.rows and board.headline is not None:
        blocks.append(_track_check(board, board.headline))
    return blocks


def _track_check(board: Board, headline: Column) -> str:
    """Return the three conditions under which a track may rank, and what was met."""
    answers = {True: "yes", False: "**no**", None: "not known"}
    said = [f"{c.asked}: {answers[c.holds]}, {text(c.met)}" for c in board.check.conditions]
    asked = f"May this track rank, by “{text(headline.title)}”?"
    return "\n".join([f"<sub>{asked}</sub>", "", *(f"- <sub>{line}</sub>" for line in said)])


def _page_seeds(board: Board) -> list[int]:
    trained = (row for row in board.rows if row.first.row.origin not in ("floor", "external"))
    return sorted({seed for row in trained for seed in row.expected})


def _legend(board: Board, *, dated: bool, counted: bool) -> str:
    distances = any(column.is_distance for column in board.columns)
    alone = "of the images where n is 1"
    if distances:
        alone += "; of a distance over blocks of samples, without what another training would give"
    said = (
        f"Accuracy in percent: mean ± 95 % interval over n seeds ({alone}), "
        "in brackets the stage that validation chose. *Italic*: floors and reference. "
        + "Precision to CAS: in the features that the first distance is in. " * distances
        + "Passes: encoder passes per source image with + without gradient. "
        + "GFLOP: of a run's training, counted from its step. " * counted
        + "GiB: peak memory. s/run: training time. Tuning: trials behind the recipe. "
        f"Test reads: configurations of the method that were ever evaluated on this test split, "
        f"bold above {MANY_READS}."
    )
    if board.ranks_shown and board.headline:
        said += (
            f" Rank: the places in “{text(board.headline.title)}” that the tests leave open "
            "(Holm over all pairs, 5 %); **bold**: may be first."
        )
    if dated:
        said += (
            " Last reproduced: when a run of the row was last trained again from its spec; bytes: "
            "to the same backbone and numbers; interval: to numbers inside the interval of one run."
        )
    return f"<sub>{said}</sub>"


def page_name(track_id: str) -> str:
    """Return the file name of a track's page."""
    return f"{track_id}.md"


def render_index(
    pages: Iterable[tuple[Track, Sequence[Result]]], *, claims: str = "", costs: str = ""
) -> str:
    """Return the index of the pages, each a track with its results.

    Args:
        claims, costs: the file names of the pages of claims and of costs, where there are any.
    """
    lines = []
    for track, results in sorted(pages, key=lambda page: page[0]["id"]):
        board = build(track, results)
        main = [row for row in board.rows if row.section == "main"]
        methods = [row for row in main if row.first.row.role == "method"]
        title = text(track.get("title") or track["id"])
        lines.append(
            [
                f"[{title}]({quote(page_name(track['id']))})",
                text(track.get("data", "")),
                str(len(methods)),
                str(sum(len(row.results) for row in main)),
                _best(board, [row for row in main if row.is_floor]),
                _best(board, [row for row in main if row.is_reference]),
                _leaders(track, board, methods),
            ]
        )
    headers = ["track", "data", "methods", "runs", "best floor", "reference", "may be first"]
    said = (
        "Rendered from the result files in `results/`, never edited by hand. What a page says "
        "holds for its data, backbone and budget."
    )
    blocks = [table(headers, lines, "llrrrrl") if lines else "No results yet."]
    if claims:
        what = "what the lecture says, sentence by sentence, and what runs here say of it"
        blocks.append(f"[Claims]({quote(claims)}): {what}.")
    if costs:
        what = "memory, speed and FLOPs of each method's training step"
        blocks.append(f"[Costs]({quote(costs)}): {what}.")
    return "\n\n".join(["# Leaderboards", *blocks, f"<sub>{said}</sub>"]) + "\n"


def _best(board: Board, rows: Sequence[TableRow]) -> str:
    """Return the headline cell of the first of some rows, which stand best first."""
    cells = [board.cells.get((row.key, board.headline)) for row in rows if board.headline]
    return plus_minus(cells[0]) if cells and cells[0] else ""


def _leaders(track: Track, board: Board, methods: Sequence[TableRow]) -> str:
    if track.get("smoke") or board.check.failed:
        return "smoke track: not for ranking"
    if not board.ranks_shown:
        return "too few seeds to rank" if methods else ""
    ranks = [(row, board.rank(row, board.headline)) for row in methods]
    return ", ".join(label(row) for row, rank in ranks if rank and rank[0] == 1)
