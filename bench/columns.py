"""The columns of a page: one metric of one protocol hash each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.results import EvaluationEntry, Result

METRICS = {  # of the standard protocols, in the order of the page; others show all they have
    "linear_probe": (("best_top1", "linear, best stage"), ("last_top1", "linear, last stage")),
    "knn": (("top1", "kNN"), ("k20_top1", "kNN, k = 20")),
}


@dataclass(frozen=True)
class Column:
    """One metric of one protocol hash."""

    protocol: str
    version: int
    hash: str
    metric: str
    title: str

    @property
    def is_accuracy(self) -> bool:
        return self.metric.endswith(("top1", "top5"))

    @property
    def part(self) -> str:
        """Return under which name `correct` and `chosen` hold this metric's part."""
        return self.metric.removesuffix("_top1")

    def entry(self, result: Result) -> EvaluationEntry | None:
        """Return a run's entry if it has this metric."""
        entry = result.evaluations.get(self.hash)
        return entry if entry is not None and self.metric in entry.metrics else None


def choose_columns(track: Mapping[str, Any], results: Sequence[Result]) -> list[Column]:
    """Return the page's columns: for every protocol its newest version that the track knows.

    A track without protocols shows the newest that its results have.
    """
    known = [(p["id"], int(p.get("version", 1)), p["hash"]) for p in track.get("protocols", ())]
    if not known:
        known = sorted(
            {
                (entry.id, entry.version, protocol_hash)
                for result in results
                for protocol_hash, entry in result.evaluations.items()
            }
        )
    newest = {name: max((v, h) for n, v, h in known if n == name) for name, _, _ in known}
    columns = []
    for name, (version, protocol_hash) in newest.items():
        metrics = METRICS.get(name)
        if metrics is None:
            found = {
                metric
                for result in results
                if protocol_hash in result.evaluations
                for metric in result.evaluations[protocol_hash].metrics
            }
            metrics = [(metric, f"{name}: {metric}") for metric in sorted(found)]
        columns += [
            Column(name, version, protocol_hash, metric, title) for metric, title in metrics
        ]
    return [c for c in columns if not results or any(c.entry(result) for result in results)]


def choose_headline(track: Mapping[str, Any], columns: Sequence[Column]) -> Column | None:
    """Return the column that ranks: the one the track names, else the first."""
    for protocol in track.get("protocols", ()):
        wanted = protocol.get("headline")
        for column in columns:
            if column.protocol == protocol["id"] and wanted in (column.metric, column.part):
                return column
    return columns[0] if columns else None
