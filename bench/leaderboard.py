"""Results to markdown: one page per track, one index. Pure, and the same bytes everywhere.

A track is a dict of what its page says: `id`, `title`, `description`, `smoke`, `seeds` (the fixed
list), `trials` (of tuning, that a ranked row has), `data`, `licence`, `backbone`, `image_size`,
`budget`, `batch_size`, `precision`, `data_sha256`, `floors`, `reference`, and `protocols`: a list
of `{"id", "version", "hash", "headline"}`, where `headline` names the metric that ranks. Only `id`
is required.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from bench import reproductions, training_flops
from bench.cells import decimals, join, numbers, plus_minus, table, text
from bench.columns import CALIBRATION, Column
from bench.generated import calibration_section, disagreements, sheets_section
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
    for what, file in (("time", figure), ("FLOPs", flops_figure)):
        blocks += [f"![Accuracy against training {what}]({quote(file)})"] if file else []
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
    notes = _footnotes(track, board, stale)
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
        facts.append(_seeds(seeds))
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
    said = (
        "Accuracy in percent: mean ± 95 % interval over n seeds (of the images where n is 1), "
        "in brackets the stage that validation chose. *Italic*: floors and reference. "
        "Passes: encoder passes per source image with + without gradient. "
        + "GFLOP: of a run's training, counted from its step. "
        * counted
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


def _footnotes(track: Track, board: Board, stale: Callable[[TableRow], bool]) -> list[str]:
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
        f"**Probes:** {label(row)}: {text(stamp)} ({_seeds(seeds)})"
        for stamp, seeds in sorted(said.items())
    ]


def _seeds(seeds: Sequence[int]) -> str:
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
    runs = [result for row in rows for result in row.good]
    machines = Counter(_machine(result) for result in runs)
    return [f"**Machine:** {machine}, {_runs(n)}" for machine, n in sorted(machines.items())]


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
                if key not in shown and entry.id != CALIBRATION:
                    others[entry.id, entry.version, key] += 1
    for (name, version, key), count in sorted(others.items()):
        notes.append(
            f"**Not shown:** {text(name)} {version} `{text(key)}`, in {_runs(count)}; "
            "numbers of two protocols never share a column"
        )
    return notes


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
