"""The page of costs: a pure function of the cells' result files, beside the lecture's own table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import costs, timing
from bench.cells import link, short, table, text
from bench.costs import Cost
from bench.results import write_text

PAGE = "cost.md"
GUIDE = "../docs/cost.md"
DAGGER = "†"
PAPERS = "defaults"  # the recipe that is not named: the papers' own
OPENING = (
    "What a training step costs: memory of one card, images per second, the time of 200 ImageNet "
    f"epochs. Rendered from the result files in `cost/`, never edited by hand. {DAGGER}: "
    f"estimated, not measured. [How to read it and how it is measured]({GUIDE})."
)
NO_CARD = "No row was measured on a graphics card."
CPU_CAVEAT = (
    "On a processor memory is the peak of the whole process, interpreter and libraries with it, "
    "and a time says what this processor takes. Only ratios between rows say something of another "
    "machine; none of these numbers is one of a graphics card."
)
CARDS_CAVEAT = (
    "Of several cards one was measured, with its share of the batch and all exchanges of full size "
    "but without traffic: the time on n cards is that card's divided by n, a lower bound."
)


class Quoted(NamedTuple):
    """A row of somebody else's table, as printed there."""

    mechanism: str
    batch: str
    memory: str
    time: str


# Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning", Table 3, which the
# lecture shows.
LECTURE = (
    Quoted("MoCo", "256", "5.0 GB", "53 h"),
    Quoted("end-to-end", "256", "7.4 GB", "65 h"),
    Quoted("end-to-end", "4096", f"93.0 GB{DAGGER}", "n/a"),
)
LECTURE_SOURCE = "https://arxiv.org/abs/2003.04297"
HEADERS = (
    ("mechanism", "l"),
    ("batch", "r"),
    ("cards", "r"),
    ("GiB/card", "r"),
    ("images/s, one card", "r"),
    ("of the bare step", "r"),
    ("200 epochs", "r"),
    ("GFLOP/image", "r"),
    ("utilisation", "r"),
    ("largest batch/card", "r"),
    ("notes", "l"),
)


def exists(leaderboards_dir: Path) -> bool:
    """Return whether a folder of boards has results of costs."""
    return (leaderboards_dir / costs.FOLDER).is_dir()


def write(leaderboards_dir: Path) -> list[Path]:
    """Write the page where there are results; return what was written."""
    if not exists(leaderboards_dir):
        return []
    file = leaderboards_dir / PAGE
    write_text(file, render(costs.read_all(leaderboards_dir)[0]))
    return [file]


def check(leaderboards_dir: Path) -> list[str]:
    """Return a line per way in which the page, or a result, is not as it should be."""
    if not exists(leaderboards_dir):
        return []
    cells, problems = costs.read_all(leaderboards_dir)
    page = leaderboards_dir / PAGE
    if not page.is_file():
        problems.append(f"{PAGE}: missing")
    elif page.read_bytes() != render(cells).encode():
        problems.append(f"{PAGE}: differs from its results")
    return problems


def render(cells: Sequence[Cost]) -> str:
    """Return the page. One table per machine, backbone, image size, precision and protocol."""
    tables: dict[tuple[str, ...], list[Cost]] = {}
    for cost in cells:
        tables.setdefault(_table_key(cost), []).append(cost)
    blocks = ["# Costs", OPENING]
    if all(cost.spec.device == "cpu" or not cost.modes for cost in cells):
        blocks.append(NO_CARD)
    blocks += _lecture()
    for key in sorted(tables):
        blocks += _section(tables[key])
    return "\n\n".join(blocks) + "\n"


def _table_key(cost: Cost) -> tuple[str, ...]:
    size = f"{cost.spec.image_size:05d}"
    backbone = str(cost.spec.backbone["name"])
    where = costs.place(cost)
    return (backbone, size, cost.spec.precision, where, str(cost.spec.threads), cost.protocol.hash)


def _lecture() -> list[str]:
    rows = [list(row) for row in LECTURE]
    said = (
        "Quoted, not ours: ResNet-50 at 224 px on eight V100 cards of 16 GB, so 32 and 512 images "
        "per card; the time is that of 200 ImageNet epochs. Only its ratios carry to other cards: "
        "1.48 in memory and 1.23 in time between end-to-end and MoCo at batch 256. Source: "
        f"{link('Chen et al. 2020, Table 3', LECTURE_SOURCE)}, as the lecture shows it; "
        f"{DAGGER} there too is an estimate, by its authors."
    )
    headers = ["mechanism", "batch", "memory per GPU", "time"]
    return ["## The lecture's table", table(headers, rows, "lrrr"), said]


def _section(cells: Sequence[Cost]) -> list[str]:
    """Return a table, columns without any value left out, with its heading and what is to be said
    below it."""
    first = cells[0]
    ordered = sorted(cells, key=_place_in_table)
    notes: list[str] = []
    rows = [_row(cost, notes, apart(cost, ordered)) for cost in ordered]
    said = [number for number in range(len(HEADERS)) if any(row[number] for row in rows)]
    titles, sides = zip(*(HEADERS[number] for number in said), strict=True)
    shown = [table(titles, [[row[number] for number in said] for row in rows], "".join(sides))]
    if notes:
        shown.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
    return [f"## {_heading(first)}", *shown, *_facts(ordered)]


def _place_in_table(cost: Cost) -> tuple[Any, ...]:
    """Sort a method's plain step before its other ways."""
    spec = cost.spec
    return spec.batch_size, spec.cards, cost.title, spec.way, cost.cell


def _heading(cost: Cost) -> str:
    spec = cost.spec
    what = f"{spec.backbone['name']}, {spec.image_size} px, {spec.precision}"
    if cost.status == costs.ESTIMATED:
        return text(f"{what}, estimated")
    threads = f", {spec.threads} thread{'s' if spec.threads > 1 else ''}"
    return text(f"{what}, {costs.place(cost)}{threads if spec.device == 'cpu' else ''}")


def apart(cost: Cost, others: Sequence[Cost]) -> list[str]:
    """Return a line that names the measured rows beside which a row took no turns: the ratio of
    two such rows holds what the machine did meanwhile."""

    def took_turns(one: Cost, other: Cost) -> bool:
        return other.spec.label in one.turns_with and one.spec.label in other.turns_with

    def share(of: Cost) -> tuple[int, int]:
        return of.spec.batch_size, of.spec.cards

    alike = [other for other in others if other.modes and share(other) == share(cost)]
    if cost not in alike:
        return []
    names = [_name(o) for o in alike if o is not cost and not took_turns(cost, o)]
    return [f"not measured in turns with {', '.join(names)}"] if names else []


def _row(cost: Cost, notes: list[str], more: Sequence[str]) -> list[str]:
    numbers = [str(_number(note, notes)) for note in (*said_of(cost), *more)]
    if cost.status in (costs.MEASURED, costs.ESTIMATED):
        values = _values(cost)
    else:
        values = [cost.status.replace("_", " "), *[""] * 5]
    shape = [str(cost.spec.batch_size), str(cost.spec.cards)]
    return [_name(cost), *shape, *values, _largest(cost), ", ".join(numbers)]


def _name(cost: Cost) -> str:
    """Return a row's title with its recipe, unless that is the papers', and the way of its step."""
    special = cost.spec.recipe not in ("", PAPERS)
    said = ", ".join(part for part in (cost.spec.recipe * special, cost.spec.way) if part)
    return text(cost.title) + (f" ({text(said)})" if said else "")


def _values(cost: Cost) -> list[str]:
    dagger = DAGGER if cost.status == costs.ESTIMATED else ""
    gib = f"{short((cost.memory.peak or 0) / 2**30)}{dagger}"
    flops = short((cost.flops_per_image or 0) / 1e9)
    if cost.status == costs.ESTIMATED:
        return [gib, "", "", "", flops, ""]
    mode = cost.modes["pipeline"]
    rate = f"{short(mode.images_per_second)} [{short(mode.low)}, {short(mode.high)}]"
    used = f"{100 * cost.utilisation:.0f} %" if cost.utilisation else ""
    share = f"{cost.efficiency:.2f}" if cost.efficiency else ""
    return [gib, rate, share, duration(cost.epochs_seconds or 0), flops, used]


def _largest(cost: Cost) -> str:
    return "" if cost.largest_batch is None else f"{cost.largest_batch}{DAGGER}"


def duration(seconds: float) -> str:
    """Return seconds as hours, from 1,000 hours on as days: `53.1 h`, `412 d`."""
    hours = seconds / 3600
    return f"{short(hours)} h" if hours < 1000 else f"{short(hours / 24)} d"


def _number(note: str, notes: list[str]) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def said_of(cost: Cost) -> list[str]:
    """Return what a reader must know of a cell before trusting it, each on one line."""
    settings = cost.protocol.settings
    said = [text(cost.reason, longest=300)] if cost.reason else []
    if cost.spec.compile and cost.modes:
        first = max(mode.first_step_seconds for mode in cost.modes.values())
        said.append(f"its first step took {short(first)} s, with the compiling")
    for name in timing.MODES:
        if (mode := cost.modes.get(name)) is None:
            continue
        if not mode.warm:
            said.append(
                f"{name}: the warm-up ended after {len(mode.warm_seconds)} windows, of which the "
                f"last {settings['warm_windows']} did not agree within "
                f"{100 * settings['warm_tolerance']:g} %"
            )
        if mode.window_steps < settings["window_steps"]:
            said.append(
                f"{name}: windows of {mode.window_steps} steps, not {settings['window_steps']}, to "
                f"end within {settings['cpu_window_seconds']:g} s"
            )
    if cost.busy_cores is not None and cost.busy_cores > settings["busy_cores"]:
        said.append(f"others kept {cost.busy_cores:.1f} of {cost.machine.cores} cores busy")
    said += [text(line) for line in (*cost.others, *cost.notes)]
    return said


def _facts(cells: Sequence[Cost]) -> list[str]:
    """Return what the rows of a table have in common: caveats, protocol, versions."""
    first = cells[0]
    facts = []
    if first.status != costs.ESTIMATED and first.spec.device == "cpu":
        facts.append(CPU_CAVEAT)
    if any(cost.spec.cards > 1 and cost.modes for cost in cells):
        facts.append(CARDS_CAVEAT)
    largest = {cost.memory.card for cost in cells if cost.largest_batch is not None}
    sizes = ", ".join(f"{short(card / 2**30)} GiB" for card in sorted(c for c in largest if c))
    if sizes:
        facts.append(f"The largest batch that fits is estimated for a card of {sizes}.")
    versions = dict.fromkeys(
        f"torch {c.machine.torch}, timm {c.machine.timm}, Python {c.machine.python}" for c in cells
    )
    protocol = first.protocol
    facts.append(
        f"Protocol `{protocol.id}` version {protocol.version}, `{protocol.hash}`; "
        f"{text('; '.join(versions), longest=300)}."
    )
    return ["\n".join(f"- {fact}" for fact in facts)]


def line(cost: Cost) -> str:
    """Return what a terminal shows of a cell."""
    spec = cost.spec
    of = f" of {spec.cards} cards" if spec.cards > 1 else ""
    head = f"{spec.label}, {spec.backbone['name']}, batch {spec.batch_size}{of}, {spec.precision}"
    if cost.status == costs.ESTIMATED:
        return f"{head}: {short((cost.memory.peak or 0) / 2**30)} GiB per card, estimated"
    if cost.status != costs.MEASURED:
        return f"{head}: {cost.status.replace('_', ' ')}: {cost.reason}"
    gib, rate, share, epochs, *_ = _values(cost)
    parts = [f"{rate} images/s", f"{share} of the bare step", f"{gib} GiB", f"200 epochs {epochs}"]
    return f"{head}: {', '.join([*parts, *said_of(cost)])}"
