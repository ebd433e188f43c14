"""Pictures of claims whose sides draw from one training in several ways: a metric by a setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import contrasts, figures
from bench.claim import Claim, Side
from bench.figures import Sweep
from bench.findings import Finding

LEAST_SETTINGS = 3


def file_name(claim: Claim) -> str:
    """Return what a claim's picture is called beside the page."""
    return f"claims-{claim.id}.svg"


def sweeps(findings: Sequence[Finding]) -> tuple[str, list[Sweep]]:
    """Return the setting that the sides differ in, and a line for each contrast that varies it.

    A contrast does if its sides are runs of one cell, read by one metric, and differ in the numbers
    that they give one field of the sampling. "" and nothing where no contrast does.
    """
    field, found = "", []
    for finding in findings:
        sides = [measured.side for measured in finding.sides]
        varied = _varied(sides)
        if finding.estimate is None or not varied or (field and varied != field):
            continue
        if len({tuple(measured.cell.runs.items()) for measured in finding.sides}) > 1:
            continue
        field, points = varied, []
        for measured in sorted(finding.sides, key=lambda m: _setting(m.side, varied)):
            mean = contrasts.estimate([contrasts.Cell(measured.values)])
            points.append((_setting(measured.side, varied), mean.value, mean.low, mean.high))
        metric = sides[0].metric
        assert metric is not None  # it has the sampling
        found.append(Sweep(metric.name.replace("_", " "), tuple(points)))
    return field, found


def _setting(side: Side, field: str) -> float:
    assert side.metric is not None
    return float(side.metric.sampling[field])


def _varied(sides: Sequence[Side]) -> str:
    """Return the one field of the sampling that all sides give, with distinct numbers, or ""."""
    metrics = [side.metric for side in sides]
    if len(metrics) < LEAST_SETTINGS or any(metric is None for metric in metrics):
        return ""
    given = [metric.sampling for metric in metrics if metric is not None]
    names = {metric.name for metric in metrics if metric is not None}
    fields = {name for sampling in given for name in sampling}
    varied = [name for name in fields if len({sampling.get(name) for sampling in given}) > 1]
    if len(names) > 1 or len(varied) != 1:
        return ""
    values = [sampling.get(varied[0]) for sampling in given]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return varied[0] if numbers and len(set(values)) == len(values) else ""


def write(folder: Path, claim: Claim, findings: Sequence[Finding]) -> list[Path]:
    """Write a claim's picture if it has one and the one there is not it; return what was written.

    Args:
        folder: where the page lies.
    """
    field, lines = sweeps(findings)
    path = folder / file_name(claim)
    if not lines or _is_current(path, lines):
        return []
    path.write_text(figures.sweep_svg(lines, xlabel=field), encoding="utf-8")
    return [path]


def faults(folder: Path, claim: Claim, findings: Sequence[Finding]) -> list[str]:
    """Return a line if a claim's picture is missing, or shows something else."""
    _, lines = sweeps(findings)
    if not lines or _is_current(folder / file_name(claim), lines):
        return []
    return [f"{file_name(claim)}: missing, or differs from its results"]


def _is_current(path: Path, lines: Sequence[Sweep]) -> bool:
    return path.is_file() and figures.figure_is_current(path.read_text(encoding="utf-8"), lines)
