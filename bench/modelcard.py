"""The model card of an exported backbone: what it is, its numbers, what they do not show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import page_files
from bench.cells import link, plus_minus, short, table, text
from bench.columns import Column
from bench.errors import UserError
from bench.results import Result
from bench.verdict import Row, published_row


@dataclass(frozen=True)
class Context:
    """What the results folder says beside the run: its track, and its row if a page shows it."""

    track: Mapping[str, Any]
    row: Row | None


def context(path: Path, run: Result) -> Context:
    """Return what the folder of a result file says of the run.

    Raises:
        UserError: the folder's track is damaged.
    """
    track = page_files.read_track(path.parent)
    try:
        return Context(track, published_row(path, run))
    except UserError:  # the page leaves the run out
        return Context(track, None)


def render(run: Result, context: Context, *, loading: Sequence[str], num_features: int) -> str:
    """Return the card as markdown, with the header that model hubs read.

    Args:
        loading: Python texts, each of which builds the backbone and loads its weights.
        num_features: width D of its features (B, D).
    """
    title = text(run.row.title or run.method)
    blocks = [
        "---\nlibrary_name: timm\ntags:\n- image-feature-extraction\n- timm\n---",
        f"# {title}, {text(run.track)}, seed {run.seed}",
        _opening(run, title, num_features),
        "## Loading",
        "\n\nor, with `bench` installed,\n\n".join(f"```python\n{way}\n```" for way in loading),
        _input(run),
        "## Numbers",
        *_numbers(run, context),
        "## Training",
        "\n".join(f"- **{name}:** {said}" for name, said in _facts(run, context.track) if said),
        "## What it may not be used to claim",
        "\n".join(f"- {said}" for said in _limits(run, context)),
    ]
    return "\n\n".join(blocks) + "\n"


def _opening(run: Result, title: str, num_features: int) -> str:
    by = link(title, run.row.paper) if run.row.paper else title
    departs = run.row.departs
    said = "" if departs in ("", "nothing") else f" Departs: {text(departs, longest=400)}."
    return (
        f"A {text(run.spec['backbone']['name'])} backbone that gives features (B, {num_features}), "
        f"trained by {by} and evaluated by `bench`.{said}"
    )


def input_kind(run: Result) -> str:
    """Return what a run's probes showed its backbone: of noisy images how noisy, as was chosen."""
    told = [entry for entry in run.evaluations.values() if "input" in entry.chosen]
    told.sort(key=lambda entry: bool(entry.settings.get("labels_per_class")))  # theirs is constant
    return told[0].chosen["input"] if told else run.row.input


def _input(run: Result) -> str:
    size = run.spec["image_size"]
    kind = input_kind(run)
    turned = "" if kind == "rgb" else f", turned to `{kind}` by `bench.backbones.to_input`"
    return (
        f"Input: float32 (B, 3, {size}, {size}) in [-1, 1]{turned}. Gray images are repeated three "
        "times. Use `backbone.eval()`."
    )


def _numbers(run: Result, context: Context) -> list[str]:
    columns = context.row.columns(run) if context.row else []
    if not columns:
        return ["No page shows numbers of this run."]
    assert context.row is not None
    lines = [_line(run, context.row, column) for column in columns]
    headers = ["evaluation", "protocol", "protocol hash", "this run", "its row"]
    where = "validation images; the test split was not opened" if columns[0].validation else None
    where = where or f"{columns[0].num_images(run)} test images"
    return [
        table(headers, lines, "lllrl"),
        f"Accuracies in percent, on {where}. Its row: mean ± 95 % interval over the seeds of the "
        "same configuration. Two protocol hashes never share a column.",
    ]


def _line(run: Result, row: Row, column: Column) -> list[str]:
    (value,) = column.values([run])
    cell = row.board.cells.get((row.row.key, column))
    n = len(column.values(row.row.good))
    if cell is None:
        of_row = f"{n} seeds, no interval" if n > 1 else "single run"
    elif cell.n == 1:
        of_row = f"single run, {plus_minus(cell)} over images"
    else:
        of_row = f"{plus_minus(cell)}, n = {cell.n}"
    protocol = f"{text(column.protocol)} {column.version}"
    return [text(column.title), protocol, f"`{column.hash}`", short(value, digits=4), of_row]


def _facts(run: Result, track: Mapping[str, Any]) -> list[tuple[str, str]]:
    spec, data, machine = run.spec, run.spec["data"], run.machine
    kept = f", {data['limit']} of them" if "limit" in data else ""
    licence = text(track.get("licence") or "not recorded")
    budget = f"{spec['budget']['steps']} steps of {spec['batch_size']} images"
    budget += f" in chunks of {spec['chunk']}" if "chunk" in spec else ""
    labels = "used" if run.row.uses_labels else "not seen"
    return [
        ("run", text(run.run_id)),
        ("method", f"{text(run.method)} {text(_code(run))}"),
        ("configuration", _json(spec["config"])),
        ("variant", text(run.row.variant)),
        ("tuning", f"{text(run.row.tuning)} trials" if run.row.tuning else ""),
        ("labels", labels),
        (
            "data",
            f"{text(data['name'])}, {run.data.train_images} training images{kept}, sha256 "
            f"`{data['sha256'][:12]}`",
        ),
        ("licence of the data", licence),
        ("budget", f"{budget}, {spec['precision']}, {spec['threads']} thread(s)"),
        (
            "versions",
            f"torch {text(machine.torch)}, timm {text(machine.timm)}, Python "
            f"{text(machine.python)}, on {text(machine.device)} {text(machine.processor)}",
        ),
        ("weights", f"sha256 `{run.artifacts['backbone.safetensors'].sha256}`"),
        ("backbone", f"{_json(spec['backbone'])} at {spec['image_size']} px"),
    ]


def _json(value: Any) -> str:
    return text(json.dumps(value, sort_keys=True), longest=2000)


def _code(run: Result) -> str:
    code = run.code
    owner = "a local file" if run.row.origin == "local" else f"{code.distribution} {code.version}"
    return f"from {owner}, source sha256 {code.plugin_sha256[:12]}, engine {code.engine}"


def _limits(run: Result, context: Context) -> list[str]:
    """Return what the numbers do not show, the general first."""
    row = run.row
    said = [
        "That the method is good or bad elsewhere: the numbers hold for this data, backbone, image "
        "size and budget, and say nothing about ImageNet.",
        "That it has the paper's numbers, unless budget, backbone and data are the paper's.",
        "That it beats a number under another protocol hash, or another single run: seeds differ; "
        "compare rows, with their intervals.",
    ]
    if context.track.get("smoke"):
        said.append("An order of methods: its track is a smoke track, which is not for ranking.")
    if row.uses_labels:
        said.append("Anything about learning without labels: it was trained with them.")
    if row.role == "floor":
        said.append("That it is a method: it is a floor, which methods must beat.")
    if row.origin == "local":
        said.append("That others can train it again: its method is a file that is not installed.")
    notes = [*row.notes, *_stamps(context)]
    return [*said, *(f"Without saying this beside it: {text(note)}." for note in notes)]


def _stamps(context: Context) -> list[str]:
    if context.row is None:
        return ["the page of its results leaves it out"]
    faults = sorted({fault for fault in context.row.row.faults.values() if fault != "missing"})
    return [*context.row.board.stamps(context.row.row), *faults]
