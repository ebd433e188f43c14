"""The page of claims: every sentence with its state, a pure function of claims and result files."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from bench import records, sweeps
from bench.cells import decimals, measured, table, text
from bench.claim import Claim, Contrast, Metric, load_claim, shipped
from bench.contrasts import Estimate
from bench.errors import UserError
from bench.findings import Finding, Measured, find
from bench.records import CellRecord, Record
from bench.results import write_text

PAGE = "claims.md"
FOLDER = "studies"
LONG = 2000
MORE_DECIMALS = 3  # than the half-width asks for, at most
OPENING = (
    "What the lecture says, sentence by sentence, and what our own runs say of it. Each claim was "
    "written down with its contrast, the smallest effect worth the name (delta), its seeds and "
    "its tuning before a run of it began; a verdict is refused where the claim was worded after "
    "its results. Sentences are shortened."
)
LEGEND = (
    "**reproduced**: the 95 % interval lies above 0 and the estimate reaches delta; **reproduced, "
    "smaller**: above 0, below delta; **contradicted**: below 0; **no effect of that size here**: "
    "inside (-delta, delta); else **undecided**. For non-inferiority the interval lies above "
    "-delta, for a range inside it. Intervals are over seeds and test images, each for its own "
    "contrast: of contrasts that are 0, about one in forty is called reproduced by chance, and one "
    "in forty contradicted."
)


def exists(leaderboards_dir: Path) -> bool:
    """Return whether published boards have a page of claims."""
    return (leaderboards_dir / FOLDER).is_dir()


def render(leaderboards_dir: Path, claims: Sequence[Claim] | None = None) -> str:
    """Return the page; by default of every registered claim."""
    folder = leaderboards_dir / FOLDER
    everything = [load_claim(name) for name in shipped()] if claims is None else claims
    lines, sections = [], []
    for claim in sorted(everything, key=lambda claim: claim.id):
        try:
            record, findings = find(claim, folder)
        except UserError as error:
            said = str(error).replace(f"{folder}/", "")
            record, findings = None, [Finding(c, "refused", said) for c in claim.contrasts]
        lines += [_line(claim, finding) for finding in findings]
        sections.append(_section(claim, record, findings, leaderboards_dir))
    headers = ["claim", "sentence", "contrast", "state", "estimate [95 %]", "delta", "unit", "n"]
    shown = table(headers, lines, "llllrrlr")
    return "\n\n".join(["# Claims", OPENING, shown, f"<sub>{LEGEND}</sub>", *sections]) + "\n"


def write(leaderboards_dir: Path) -> list[Path]:
    """Write the page where there are studies; return what was written."""
    if not exists(leaderboards_dir):
        return []
    write_text(leaderboards_dir / PAGE, render(leaderboards_dir))
    written = [leaderboards_dir / PAGE]
    for claim, findings in _all(leaderboards_dir):
        written += sweeps.write(leaderboards_dir, claim, findings)
    return written


def names(leaderboards_dir: Path) -> set[str]:
    """Return what the page and its pictures are called, where there are studies."""
    if not exists(leaderboards_dir):
        return set()
    drawn = (claim for claim, findings in _all(leaderboards_dir) if sweeps.sweeps(findings)[1])
    return {PAGE, *map(sweeps.file_name, drawn)}


def check(leaderboards_dir: Path) -> list[str]:
    """Return a line per way in which the page, or what it rests on, is not as it should be."""
    if not exists(leaderboards_dir):
        return []
    page = leaderboards_dir / PAGE
    found = []
    if not page.is_file():
        found.append(f"{PAGE}: missing")
    elif page.read_bytes() != render(leaderboards_dir).encode():
        found.append(f"{PAGE}: differs from its results")
    for claim, findings in _all(leaderboards_dir):
        found += sweeps.faults(leaderboards_dir, claim, findings)
    for file in sorted((leaderboards_dir / FOLDER / "records").glob("*.json")):
        if file.stem not in shipped():
            found.append(f"{FOLDER}/records/{file.name}: no claim of this name")
    return found


def _all(leaderboards_dir: Path) -> Iterator[tuple[Claim, Sequence[Finding]]]:
    """Yield the claims whose files can be read, with what they say."""
    for name in shipped():
        claim = load_claim(name)
        with contextlib.suppress(UserError):  # the page says so
            yield claim, find(claim, leaderboards_dir / FOLDER)[1]


def state(claim: Claim, finding: Finding) -> str:
    """Return a contrast's state in words."""
    if finding.verdict is not None:
        return finding.verdict.word
    if claim.scale == "out of reach":
        return "out of reach"
    if finding.state == "not run":
        needs = " (needs a GPU)" if claim.scale == "gpu" else ""
        return f"not run{needs}"
    return "no verdict" if finding.state == "refused" else finding.state


def _line(claim: Claim, finding: Finding) -> list[str]:
    contrast, found = finding.contrast, finding.estimate
    word = state(claim, finding)
    return [
        f"[{text(claim.id)}](#{quote(claim.id)})",
        text(claim.quote, longest=LONG),
        text(contrast.name, longest=LONG),
        f"**{text(word)}**" if finding.verdict else text(word),
        interval(found) if found else "",
        threshold(contrast),
        text(claim.unit),
        str(found.n) if found else "",
    ]


def threshold(contrast: Contrast) -> str:
    """Return from which size on a contrast counts."""
    if contrast.range is not None:
        return f"{contrast.range[0]:g} to {contrast.range[1]:g}"
    return f"{'-' if contrast.rule == 'non-inferiority' else ''}{contrast.delta:g}"


def interval(found: Estimate) -> str:
    """Return an estimate and its interval, to the first digit of the half-width.

    More digits are shown where an end would read 0 that is not, since a verdict hangs on its side.
    """
    width = (found.high - found.low) / 2
    sign = "" if found.measure == "ratio" else "+"
    if not (width > 0 and math.isfinite(width)):
        return f"{found.value:{sign}.3g}"
    edges, usual = (found.low, found.high), decimals(width)
    lengths = range(usual, usual + MORE_DECIMALS + 1)
    clear = (n for n in lengths if all(round(edge, n) or not edge for edge in edges))
    places = next(clear, lengths[-1])
    low, high = (f"{edge:{sign}.{places}f}" for edge in edges)
    return f"{found.value:{sign}.{places}f} [{low}, {high}]"


def _section(
    claim: Claim, record: Record | None, findings: Sequence[Finding], leaderboards_dir: Path
) -> str:
    blocks = [f"## {text(claim.id)}", f"> {text(claim.quote, longest=LONG)}"]
    facts = [f"Source: {text(claim.source, longest=LONG)}"]
    if claim.metric is not None:
        metric = f"{claim.metric.protocol} {claim.metric.name}"
        facts.append(f"Metric: {text(metric)}. {text(claim.metric_reason, longest=LONG)}")
    facts.append(f"Tuning: {text(claim.tuning, longest=LONG)}")
    facts.append(f"Scale: {claim.scale}. {text(claim.reason, longest=LONG)}")
    facts += _provenance(claim, record)
    blocks.append("\n".join(f"- {fact}" for fact in facts))
    told: set[str] = set()  # contrasts of one study share its numbers, and often its procedure
    for finding in findings:
        more = _study(finding)
        blocks += _finding(claim, finding, leaderboards_dir)
        blocks += [block for block in more if block not in told]
        told |= set(more)
    if sweeps.sweeps(findings)[1]:
        blocks.append(f"![{text(claim.id)}]({quote(sweeps.file_name(claim))})")
    blocks.append(_footer(claim, findings))
    return "\n\n".join(blocks)


def _provenance(claim: Claim, record: Record | None) -> list[str]:
    if record is None:
        return [f"Claim `{claim.sha256[:12]}`, {claim.seeds} seeds."]
    since = f"committed {record.registered.time}" if record.registered else "not committed"
    link = f"[record]({FOLDER}/records/{quote(claim.id)}.json)"
    counted = {name for cell in record.cells for name in (*cell.runs.values(), *cell.trials)}
    counted |= {Path(name).stem for files in record.observations.values() for name in files}
    if others := len(record.traces.keys() - counted):
        link += f"; {others} earlier runs and observations were made for it and do not count"
    return [f"Claim `{record.claim_sha256[:12]}`, {since}; study begun {record.begun}; {link}."]


def _finding(claim: Claim, finding: Finding, leaderboards_dir: Path) -> list[str]:
    contrast = finding.contrast
    said = f"**{text(contrast.name, longest=LONG)}: {text(state(claim, finding))}.**"
    if finding.estimate is not None and finding.verdict is not None:
        seeds = f"{finding.estimate.n} seed{'s' if finding.estimate.n > 1 else ''}"
        said += f" {interval(finding.estimate)} {claim.unit} (95 %, {seeds}); "
        said += f"{_asked(contrast)}."
        said += f" {text(finding.verdict.note, longest=LONG)}." if finding.verdict.note else ""
    elif finding.reason:
        said += f" {text(finding.reason, longest=LONG)}."
    blocks = [said]
    if finding.sides:
        blocks += _sides(claim, finding.sides, leaderboards_dir)
    return blocks


def _study(finding: Finding) -> list[str]:
    """Return what a study did and found beside the estimate."""
    procedure = finding.contrast.procedure
    blocks = [text(procedure, longest=LONG)] if procedure else []
    if finding.shown:
        names = sorted(finding.shown, key=_natural)
        rows = [[text(name.replace("_", " ")), measured(finding.shown[name])] for name in names]
        blocks.append(table(["mean over seeds", "value"], rows, "lr"))
    if finding.stamps:
        blocks.append("\n".join(f"- {text(stamp)}" for stamp in finding.stamps))
    return blocks


def _natural(name: str) -> list[tuple[int, str]]:
    """Return the key that puts gap_2 before gap_16."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _asked(contrast: Contrast) -> str:
    if contrast.range is not None:
        return f"asked: within {threshold(contrast)}"
    if contrast.rule == "non-inferiority":
        return f"asked: not below {threshold(contrast)}"
    return (
        f"asked: above 0, by {threshold(contrast)} or more" if contrast.delta else "asked: above 0"
    )


def _sides(claim: Claim, sides: Sequence[Measured], leaderboards_dir: Path) -> list[str]:
    beside = list(sides[0].beside)
    headers = ["side", "weight", "batch", "budget", "mean", *beside, "tuned", "runs"]
    rows = []
    for side in sides:
        metric = side.side.metric
        name = text(side.cell.title or side.cell.method)
        name += f", {text(side.cell.variant)}" if side.cell.variant else ""
        name += f" ({text(_metric(metric))})" if metric else ""
        rows.append(
            [
                name,
                f"{side.side.weight:+g}",
                str(side.cell.batch_size),
                text(side.cell.budget),
                measured(float(side.values.mean()), digits=4),
                *(measured(side.beside[key]) for key in beside),
                _tuned(side.cell),
                _links(side.cell, leaderboards_dir),
            ]
        )
    blocks = [table([text(header) for header in headers], rows, "lrrlr" + "r" * len(beside) + "ll")]
    notes = list(dict.fromkeys(note for side in sides for note in _picks(side)))
    return blocks + (["\n".join(f"- {note}" for note in notes)] if notes else [])


def _metric(metric: Metric) -> str:
    """Return a side's own metric in words."""
    drawn = metric.key.removeprefix(metric.protocol)
    return f"{metric.name}{drawn}" + ("" if metric.below is None else f" below {metric.below:g}")


def _tuned(cell: CellRecord) -> str:
    if cell.tuned is None:
        return ""
    edge = ", at the edge of what was tried" if cell.tuned.at_edge else ""
    return text(f"{cell.tuned.field} = {cell.tuned.value:g} ({cell.tuned.factor:g} x){edge}")


def _picks(side: Measured) -> list[str]:
    notes = []
    if side.picked_by:
        scores = ", ".join(f"{name} {score:.2f}" for name, score in side.picked_by.items())
        notes.append(f"{text(side.cell.method)} is the best on validation: {text(scores)}")
    if side.ended:
        name = text(f"{side.cell.title}, {side.cell.variant or f'batch {side.cell.batch_size}'}")
        notes.append(f"{name}: {text(', '.join(side.ended))}: not below the bar")
    if side.absent:
        notes.append(f"not part of this version, left out: {text(', '.join(side.absent))}")
    if side.cell.tuned is not None:
        scores = ", ".join(
            f"{factor} x {'no score' if score is None else f'{score:.2f}'}"
            for factor, score in side.cell.tuned.scores.items()
        )
        name = side.cell.variant or f"batch {side.cell.batch_size}"
        notes.append(
            f"{text(side.cell.title)}, {text(name)}: {text(side.cell.tuned.field)} on validation: "
            f"{text(scores)}"
        )
    return notes


def _links(cell: CellRecord, leaderboards_dir: Path) -> str:
    links = []
    for seed, run_id in cell.runs.items():
        file = records.find_result(leaderboards_dir / FOLDER, cell.track, run_id)
        if file is not None:
            links.append(f"[{text(seed)}]({quote(str(file.relative_to(leaderboards_dir)))})")
    return " ".join(links)


def _footer(claim: Claim, findings: Sequence[Finding]) -> str:
    held = [part for finding in findings if finding.holds for part in finding.holds.split("; ")]
    cells = [side.cell for finding in findings for side in finding.sides]
    if held:
        said = text("; ".join(dict.fromkeys(_as_run(part, cells) for part in held)), longest=LONG)
        return f"This holds for {said}; it says nothing about ImageNet."
    if claim.scale == "out of reach":
        return "Nothing here says anything about it, on ImageNet or elsewhere."
    where = f"its backbone and budget on {claim.track}" if claim.track else "what it will run on"
    return f"This will hold for {text(where)}; it says nothing about ImageNet."


def _as_run(part: str, cells: Sequence[CellRecord]) -> str:
    """Return "backbone, track, budget" with the budgets of the runs on that track: a side may have
    changed the track's own."""
    for base in dict.fromkeys(cell.track.partition("~")[0] for cell in cells):
        head, found, _ = part.rpartition(f", {base}, ")
        if found:
            budgets = [c.budget for c in cells if c.track.partition("~")[0] == base]
            return f"{head}{found}{' and '.join(dict.fromkeys(budgets))}"
    return part
