"""Judge what a run left: strict load, integrity, every protocol, one result file."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.meters import read_metrics

if TYPE_CHECKING:
    from bench.data import Dataset, Split
    from bench.evaluations import Evaluation, Protocol, Subject
    from bench.results import Result
    from bench.sampling import Samples
    from bench.worker import Watch

BACKBONE = "backbone.safetensors"
WIDEST = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}  # /proc/cpuinfo's flag: name


def conclude(
    folder: Path, orders: dict[str, Any], watch: Watch, *, attempts: int, begun: float
) -> None:
    """Write the run's result: evaluations if it is done, else what happened."""
    from bench import results

    target = Path(orders["results"]) / f"{folder.name}.json"
    status, reason, facts, entries = watch.status, watch.reason, {}, {}
    notes = [*orders["row"].get("notes", ()), *watch.notes]  # the plan's, then the run's
    evaluating = time.monotonic()
    if status == "done":
        status, reason, facts, entries = _evaluate(folder, orders, watch)
    cost = dict(watch.outcome.get("cost", {}))
    cost["evaluation_seconds"] = time.monotonic() - evaluating
    cost["wall_seconds"] = time.monotonic() - begun
    document = {
        "schema": results.SCHEMA,
        "run_id": folder.name,
        "track": orders["track"],
        "spec": orders["spec"],
        "status": status,
        "reason": reason,
        "row": orders["row"] | {"notes": notes},
        "code": orders["code"],
        "artifacts": watch.outcome.get("artifacts", {}),
        "cost": cost,
        "machine": machine(orders),
        "attempts": attempts,
        "data": facts,
        "health": watch.outcome.get("health", {}),
        "losses": losses(folder),
        "evaluations": entries,
    }
    results.write(target, _with_earlier(results.Result.model_validate(document), target))
    if status == "done":
        results.replaced(target).unlink(missing_ok=True)


def _with_earlier(result: Result, target: Path) -> Result:
    """Return the result with what the one that it replaces had more, of the same backbone and code:
    by protocols that `bench eval` added, or with settings that another claim reads."""
    from bench import results

    try:
        before = results.read(results.replaced(target))
    except UserError:
        return result
    same = before.artifacts.get(BACKBONE) == result.artifacts.get(BACKBONE) is not None
    if not same or result.status != "done" or before.code != result.code:
        return result
    versions = {entry.id: entry.version for entry in result.evaluations.values()}
    more = {k: e for k, e in before.evaluations.items() if versions.get(e.id) in (None, e.version)}
    return result.model_copy(update={"evaluations": more | dict(result.evaluations)})


def losses(folder: Path) -> dict[str, float | None]:
    """Return the mean loss of the first and of the last quarter of training."""
    values = [r["loss"] for r in read_metrics(folder) if isinstance(r.get("loss"), float)]
    if not values:
        return {"first": None, "last": None}
    quarter = max(1, len(values) // 4)
    return {
        "first": sum(values[:quarter]) / quarter,
        "last": sum(values[-quarter:]) / quarter,
    }


def machine(orders: dict[str, Any]) -> dict[str, Any]:
    """Return where the run ran, as the result schema wants it."""
    device = orders["device"]
    if device.startswith("cuda"):
        import torch

        with contextlib.suppress(RuntimeError, AssertionError):  # a card that failed has no name
            device = torch.cuda.get_device_name()
    return {
        "device": device,
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "torch": version("torch"),
        "timm": version("timm"),
        "python": platform.python_version(),
        "threads": orders["spec"]["threads"],
        "processes": orders.get("processes", 1),
    }


def processor() -> str:
    """Return the processor's name as its driver says it, with its widest instructions: clouds give
    processors of several speeds one name."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    return processor_of(told) or platform.machine()


def processor_of(cpuinfo: str) -> str:
    """Return the first processor's name in a text of /proc/cpuinfo, "" if it has none."""
    pairs = [line.partition(":")[::2] for line in cpuinfo.splitlines()]
    facts = {key.strip(): value.strip() for key, value in reversed(pairs)}
    flags = set(facts.get("flags", "").split())
    widest = next((said for flag, said in WIDEST.items() if flag in flags), "")
    return f"{facts.get('model name', '')} ({widest})" if widest else facts.get("model name", "")


def _evaluate(
    folder: Path, orders: dict[str, Any], watch: Watch
) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    import torch

    from bench import data, evaluations, features, integrity, ledger, noisy, sampling

    spec = orders["spec"]
    torch.set_num_threads(spec["threads"])
    test = not orders["dev"]
    dataset, split = data.of_spec(
        orders["dataset"], spec, test=test, on_bad_image=orders["on_bad_image"]
    )
    protocols = [evaluations.protocol(e["name"], e["overrides"]) for e in orders["evaluations"]]
    if test:  # before the first look, so that a run that is killed here has left its line
        ledger.append(
            orders["ledger"],
            ledger.of_run(
                track=orders["track"],
                spec=spec,
                run_id=folder.name,
                code=orders["code"],
                protocols=[p.hash for p in protocols],
                settings=[p.settings for p in protocols],
                test_sha256=dataset.test_sha256,
            ),
        )
    facts = data_facts(dataset, split, test)
    kind, load = orders["row"]["input"], None
    try:
        if orders["plugin"] is None:
            seen = features.raw_pixels(dataset, split, test=test)
        else:
            sha256 = watch.outcome["artifacts"][BACKBONE]["sha256"]
            device = evaluations.prepare_device(orders["device"])
            load = integrity.loader(spec, folder / BACKBONE, sha256, device)
            backbone = load()
            kind = noisy.resolve(kind, backbone, dataset, split)
            seen = features.extract(backbone, dataset, split, kind=kind, test=test)
        subject = evaluations.Subject(
            seen,
            load,
            dataset,
            split,
            kind,
            spec["image_size"],
            test,
            spec["threads"],
            read_samples(folder, watch.outcome, protocols, spec["image_size"]),
            cache=Path(orders["arrays"]).parent / "features",
        )
        if kind == orders["row"]["input"]:
            entries = all_entries(protocols, subject, spec["seed"])
        else:
            shown = noisy.seen_by(protocols, subject, backbone)
            entries = {}
            for protocol in protocols:
                entries |= all_entries([protocol], shown[protocol.hash], spec["seed"])
        if kind != "rgb" and load is not None:
            noisy.store_plain(entries, protocols, subject, backbone, spec["seed"])
        write_sheets(folder, subject, protocols, spec["seed"])
        if orders["plugin"] is not None:
            faults = integrity.check(
                backbone, sha256, dataset, split, seen, seed=spec["seed"], kind=kind
            )
            if faults:
                return "invalid", "; ".join(faults), facts, {}
    except (
        integrity.IntegrityError,
        evaluations.NonFinite,
        evaluations.BackboneChanged,
        sampling.BadSamples,
    ) as error:
        return "invalid", str(error), facts, {}
    return "done", "", facts, entries


def read_samples(
    folder: Path, outcome: dict[str, Any], protocols: list[Protocol], image_size: int
) -> dict[str, Samples]:
    """Return what the child drew, by protocol hash.

    Raises:
        BadSamples: a file is not what the child announced.
    """
    from bench import sampling

    drawn = outcome.get("samples", {})
    return {
        p.hash: sampling.read(folder, drawn[p.hash], p.settings["samples"], image_size)
        for p in protocols
        if p.hash in drawn
    }


def write_sheets(folder: Path, subject: Subject, protocols: list[Protocol], seed: int) -> None:
    """Write the sheets of what a method drew, under the protocol's hash, into the run's folder."""
    import numpy as np
    import torch

    from bench import sampling, sheets
    from bench.features import coarse
    from bench.metrics.names import BESIDE

    if not subject.samples:
        return
    train = subject.images("train")
    channels = train.shape[1]
    known = coarse(train, channels).flatten(1)
    beside = {protocol.hash for protocol in protocols if protocol.id.endswith(BESIDE)}
    for protocol, samples in subject.samples.items():
        if protocol in beside:  # it looks at what another protocol is over
            continue
        sheets.write(folder, f"samples.{protocol}", sheets.grid(samples.images))
        some = samples.images[: sheets.NEIGHBOURS]
        shown = coarse(some, channels).flatten(1)
        nearest = train[torch.cdist(shown, known).argmin(1).numpy()]
        if nearest.shape[1] == 1:
            nearest = nearest.repeat(3, axis=1)
        sheets.write(folder, f"neighbours.{protocol}", sheets.neighbours(some, nearest))
        if (again := samples.reconstructions) is not None:
            rows = sampling.reference_rows(len(train), len(again), seed)[: sheets.NEIGHBOURS]
            shown = np.broadcast_to(train[rows], again[: len(rows)].shape)  # gray as three
            sheets.write(folder, f"reconstructed.{protocol}", sheets.neighbours(shown, again))


def data_facts(dataset: Dataset, split: Split, test: bool) -> dict[str, Any]:
    """Return the `data` part of a result."""
    import numpy as np

    from bench import data

    counts = []
    if test:
        counts = np.bincount(dataset.labels["test"], minlength=len(dataset.class_names)).tolist()
    return {
        "duplicates_train_test": data.duplicates(dataset, split) if test else 0,
        "near_duplicates_train_test": data.near_duplicates(dataset, split) if test else 0,
        "train_images": len(split.train),
        "validation_images": len(split.val),
        "test_images": sum(counts),
        "skipped": list(dataset.skipped),
        "class_counts_test": counts,
    }


def all_entries(
    protocols: list[Protocol], subject: Subject, seed: int
) -> dict[str, dict[str, Any]]:
    """Return a result's entries by protocol hash; protocols that do not apply have none."""
    return {p.hash: entry(p, subject, seed) for p in protocols if p.applies(subject)}


def entry(protocol: Protocol, subject: Subject, seed: int) -> dict[str, Any]:
    """Return one protocol's entry of a result."""
    from bench import packing

    begun = time.monotonic()
    outcome: Evaluation = protocol.evaluate(subject, seed)
    labels = subject.features.test_labels.numpy() if subject.test else None
    predictions = outcome.predictions if subject.test else {}
    shares = outcome.shares if subject.test else {}
    return {
        "id": protocol.id,
        "version": protocol.version,
        "settings": protocol.settings,
        "chosen": outcome.chosen,
        "validation": outcome.validation,
        "metrics": outcome.metrics,
        "predictions": {k: packing.pack_predictions(v) for k, v in predictions.items()},
        "correct": {k: packing.pack_bits(v == labels) for k, v in predictions.items()},
        "shares": {k: packing.pack_counts(v) for k, v in shares.items()},
        "draws": outcome.draws if subject.test else {},
        "test_reads": int(subject.test),
        "seconds": time.monotonic() - begun,
        "stamps": list(outcome.stamps),
    }
