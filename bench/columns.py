"""The columns of a page: one metric of one protocol hash each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.metrics.names import ENCODER, column_name, small_mark
from bench.packing import unpack_bits, unpack_counts
from bench.results import EvaluationEntry, Result

if TYPE_CHECKING:
    import numpy as np

CALIBRATION = "calibration"  # the protocol whose metrics are of sets known to be good or bad
CALIBRATIONS = {CALIBRATION: "generation", "calibration_beside": "generation_beside"}  # of whose
METRICS = {  # of the standard protocols, in the order of the page; others show all they have
    "linear_probe": (("best_top1", "linear, best stage"), ("last_top1", "linear, last stage")),
    "knn": (("top1", "kNN"), ("k20_top1", "kNN, k = 20")),
    "few_labels": (
        ("k1_top1", "1 label/class"),
        ("k5_top1", "5 labels/class"),
        ("k10_top1", "10 labels/class"),
        ("k10_best_top1", "10 labels/class, best stage"),
        ("k100_top1", "100 labels/class"),
    ),
    "linear_raw": (
        ("best_top1", "linear, not standardised, best stage"),
        ("last_top1", "linear, not standardised, last stage"),
    ),
    "finetune": (("top1", "finetuned"),),
    "linear_probe_sgd": (("top1", "linear, SGD on views"),),
    "mlp_probe_spatial": (
        ("best_top1", "MLP on maps, best stage"),
        *((f"stage{stage}_top1", f"MLP on maps, stage {stage}") for stage in range(1, 13)),
    ),
    "bn_recalibrated": (
        ("best_top1", "linear, new BatchNorm statistics, best stage"),
        ("last_top1", "linear, new BatchNorm statistics, last stage"),
    ),
    "background_probe": (("background_top1", "which background"),),
    "generation": (
        ("kid", "KID x 1000"),
        ("fd", "FD"),
        ("fd_limit", "FD, limit in 1/N (misfit)"),
        ("reconstruction_fd", "FD of reconstructions"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("density", "density"),
        ("coverage", "coverage"),
        ("memorisation", "memorisation AUC"),
        ("class_accuracy", "class accuracy"),
        ("class_accuracy_least", "of the worst class"),
        ("classification_accuracy_score", "CAS"),
    ),
    "generation_beside": (("kid", "KID x 1000"), ("fd", "FD")),
    **dict.fromkeys(CALIBRATIONS, ()),  # a table of their own
}
DISTANCES = dict.fromkeys(("generation", "generation_beside"), ("kid", "fd"))  # lower is better
MISFITS = {"fd_limit": "fd_residual"}  # what is shown beside a metric: how far its line misses
WHERE_NAMED = {  # shown only on a page whose headline they are
    "few_labels": (
        ("k5_best_top1", "5 labels/class, best stage"),
        ("k100_best_top1", "100 labels/class, best stage"),
    ),
}


@dataclass(frozen=True)
class Column:
    """One metric of one protocol hash; of the validation split if `validation`."""

    protocol: str
    version: int
    hash: str
    metric: str
    title: str
    validation: bool = False

    @property
    def is_accuracy(self) -> bool:
        return self.metric.endswith(("top1", "top5"))

    @property
    def is_distance(self) -> bool:
        return is_distance(self.protocol, self.metric)

    @property
    def part(self) -> str:
        """Return under which name `chosen` holds this metric's part."""
        return self.metric.removesuffix("_top1")

    def entry(self, result: Result) -> EvaluationEntry | None:
        """Return a run's entry if it has this metric, of this column's split."""
        entry = result.evaluations.get(self.hash)
        if entry is None or is_validation(entry) != self.validation:
            return None
        return entry if self.metric in scores(entry) else None

    def values(self, results: Iterable[Result]) -> list[float]:
        """Return the metric of those runs that have it."""
        return [scores(entry)[self.metric] for entry in map(self.entry, results) if entry]

    def answers(self, entry: EvaluationEntry, num_images: int) -> np.ndarray | None:
        """Return what of each test image was right behind this metric, (N,), if it is stored.

        Bool; the share of draws in [0, 1] where the metric is a mean over draws.

        Raises:
            UserError: what is stored is damaged.
        """
        if self.metric in entry.shares:
            counts = unpack_counts(entry.shares[self.metric], num_images)
            draws, most = entry.draws.get(self.metric, 0), int(counts.max(initial=0))
            if draws < max(most, 1):
                raise UserError(f"{self.metric}: an image is right in {most} of {draws} draws")
            return counts / draws
        packed = entry.correct.get(self.metric, entry.correct.get(self.part))
        return unpack_bits(packed, num_images) if packed else None

    def num_images(self, result: Result) -> int:
        """Return how many images the metric is over: those of its split, unless `chosen` says."""
        entry = result.evaluations.get(self.hash)
        if entry is not None and "num_images" in entry.chosen:
            return entry.chosen["num_images"]
        return result.data.validation_images if self.validation else result.data.test_images


def is_distance(protocol: str, metric: str) -> bool:
    """Return whether a protocol's metric is a distance: lower is better."""
    return metric in DISTANCES.get(protocol, ())


def is_validation(entry: EvaluationEntry) -> bool:
    """Return whether an entry never opened the test split (`--dev`)."""
    return entry.test_reads == 0


def scores(entry: EvaluationEntry) -> dict[str, float]:
    """Return an entry's metrics: on test, or on validation if test was never opened."""
    return entry.validation if is_validation(entry) else entry.metrics


def choose_columns(track: Mapping[str, Any], results: Sequence[Result]) -> list[Column]:
    """Return the page's columns: for every protocol its newest version that the track knows.

    A track without protocols shows the newest that its results have. The headline's protocol comes
    first.
    """
    known = [(p["id"], int(p.get("version", 1)), p["hash"]) for p in track.get("protocols", ())]
    if not known:
        known = sorted(
            {
                (entry.id, entry.version, protocol_hash)
                for result in results
                for protocol_hash, entry in result.evaluations.items()
            },
            key=lambda protocol: ([*METRICS, protocol[0]].index(protocol[0]), protocol),
        )
    entries = [entry for result in results for entry in result.evaluations.values()]
    validation = bool(entries) and all(map(is_validation, entries))
    newest = {name: max((v, h) for n, v, h in known if n == name) for name, _, _ in known}
    columns = []
    for name, (version, protocol_hash) in newest.items():
        found = {
            metric
            for result in results
            if protocol_hash in result.evaluations
            for metric in scores(result.evaluations[protocol_hash])
        }
        metrics = _metrics(name, found)
        named = [p.get("headline") for p in track.get("protocols", ()) if p["id"] == name]
        more = WHERE_NAMED.get(name, ())
        metrics = [m for m in more if {m[0], m[0].removesuffix("_top1")} & set(named)] + [*metrics]
        settings = next(
            (
                r.evaluations[protocol_hash].settings
                for r in results
                if protocol_hash in r.evaluations
            ),
            {},
        )
        columns += [
            Column(name, version, protocol_hash, metric, named_by(title, settings), validation)
            for metric, title in metrics
        ]
    columns = [c for c in columns if not results or any(c.entry(result) for result in results)]
    headline = choose_headline(track, columns)
    return sorted(columns, key=lambda c: headline is not None and c.protocol != headline.protocol)


def _metrics(name: str, found: Iterable[str]) -> Sequence[tuple[str, str]]:
    """Return which metrics of a protocol pages show, with their titles: of few labels those of
    every K that a track asks for, where METRICS has the usual ones."""
    if name not in METRICS:
        return [(metric, f"{name}: {metric}") for metric in sorted(found)]
    if name != "few_labels":
        return METRICS[name]
    usual = {_of_k(metric)[0] for metric, _ in METRICS[name]}
    others = {metric: _of_k(metric) for metric in found if metric.endswith("top1")}
    more = [
        (metric, f"{k} labels/class{', best stage' * best}")
        for metric, (k, best) in others.items()
        if k not in usual
    ]
    return sorted((*METRICS[name], *more), key=lambda pair: _of_k(pair[0]))


def _of_k(metric: str) -> tuple[int, bool]:
    """Return K of a metric `k<K>_top1` or `k<K>_best_top1`, and whether of the best stage."""
    first, *rest = metric.split("_")
    return int(first.removeprefix("k")), "best" in rest


def named_by(title: str, settings: Mapping[str, Any]) -> str:
    """Return a column's title with what its numbers hang on: extractor, samples, overrides.

    Precision and its like share the extractor of the distances before them.
    """
    extractor, samples = settings.get("extractor"), settings.get("samples")
    if extractor is None or samples is None:
        return title
    if extractor.startswith(ENCODER):  # by its weights, wherever they lie
        extractor = f"encoder-{extractor.rpartition('@')[2]}"
    for metric in ("FD", "KID"):
        if title.startswith(metric):
            named = column_name(extractor, metric, samples, allow_small=True)
            title = named + title.removeprefix(metric)
            break
    else:
        title += small_mark(samples)
    sampling = settings.get("sampling") or {}
    return ", ".join([title, *(f"{key} {value}" for key, value in sorted(sampling.items()))])


def is_named(track: Mapping[str, Any], column: Column) -> bool:
    """Return whether a column is the headline that a track names; also where it names none."""
    named = [p for p in track.get("protocols", ()) if p.get("headline")]
    return not named or any(
        column.protocol == p["id"] and p["headline"] in (column.metric, column.part) for p in named
    )


def choose_headline(track: Mapping[str, Any], columns: Sequence[Column]) -> Column | None:
    """Return the column that ranks: the one the track names, else the first."""
    for protocol in track.get("protocols", ()):
        wanted = protocol.get("headline")
        for column in columns:
            if column.protocol == protocol["id"] and wanted in (column.metric, column.part):
                return column
    return columns[0] if columns else None
