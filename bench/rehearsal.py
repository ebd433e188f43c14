"""The small runs behind `bench check`: what is trained, how, and what is recorded of it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import confine, manager, plan, runner, worker
from bench.errors import UserError
from bench.meters import read_metrics
from bench.probe import fork_server

IMAGES, IMAGE_SIZE, CLASSES, BATCH_SIZE = 64, 32, 4, 32
LONG, SHORT, STOP = 60, 12, 5  # steps of the longest run, of the others, before a stop
JOBS = 2
RELABELLED = "relabelled.npz"
RUN_SECONDS, STALL_SECONDS = 90.0, 60.0
CONVOLUTIONAL = {
    "name": "test_resnet",
    "args": {},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}
SAMPLES = 20
DRAWN = {  # of a method that generates; nothing is judged
    "name": "generation",
    "overrides": {"samples": SAMPLES, "reference": SAMPLES, "allow_small": True},
}
TRANSFORMER = {"name": "test_vit", "args": {"patch_size": 8}, "stem": None}


@dataclass(frozen=True)
class Part:
    """One training: from its start, or from a checkpoint, to its end or a stop.

    Attributes:
        status: as the worker's watch says; "stopped" where `stop_at` stopped it.
        sha256: of the backbone's bytes, empty without any.
        drawn: how many images it generated.
        misfit: why the bytes do not fit the architecture that was given; empty if they do.
        records: what `bench.observe` noted, by rank.
        losses: as logged, step by step.
    """

    status: str
    reason: str = ""
    sha256: str = ""
    misfit: str = ""
    drawn: int = 0
    records: tuple[dict[str, Any], ...] = ()
    losses: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Run:
    """How to train: the same plugin, another course.

    Attributes:
        stop_at: the step, from 0, in which the first part gets a SIGTERM; the second goes on.
        repeat: train again in the finished folder.
        relabelled: on the same images with other labels.
    """

    steps: int = SHORT
    seed: int = 0
    processes: int = 1
    stop_at: int | None = None
    repeat: bool = False
    relabelled: bool = False


RUNS = {
    "long": Run(steps=LONG),
    "ranks": Run(processes=2),
    "resumed": Run(stop_at=STOP),
    "repeated": Run(repeat=True),
    "short": Run(),
    "other": Run(seed=1),
    "relabelled": Run(relabelled=True),
}


def track(data: Path, transformer: bool) -> plan.Track:
    """Return the checks' track over the archive `data`, on a ViT where one is needed."""
    return plan.Track(
        id="check",
        title="Conformance checks",
        description="Synthetic images; nothing is ranked.",
        smoke=True,
        seeds=(0, 1),
        recipe="small",
        batch_size=BATCH_SIZE,
        precision="fp32",
        threads=1,
        jobs=JOBS,
        floors=(),
        reference=None,
        data={"name": f"npz:{data}", "image_size": IMAGE_SIZE, "limit": None},
        backbone=TRANSFORMER if transformer else CONVOLUTIONAL,
        budget={"steps": SHORT},
        evaluations={"knn": {}},
        trials=0,
        headline="knn.top1",
    )


def carry_out(name: str, spec: plan.RunSpec, runs_dir: Path) -> list[Part]:
    """Train as `RUNS[name]` says; return its parts, of which the last is the finished one."""
    run = RUNS[name]
    if run.relabelled:
        spec = _on_other_labels(spec)
    options = runner.Options(
        runs_dir,
        processes=run.processes,
        dev=True,
        timeout=RUN_SECONDS,
        stall=STALL_SECONDS,
    )
    ordered = dataclasses.replace(
        spec, run_id=name, spec=spec.spec | {"budget": {"steps": run.steps}}
    )
    if name == "short":
        ordered = dataclasses.replace(ordered, evaluations=[*spec.evaluations, DRAWN])
    folder = runner.lay_out(ordered, options, JOBS)
    if name != "short":  # which is the plugin as it comes; all others must leave its bytes
        hooks = (repr(spec.plugin), f"folder={str(folder)!r}", f"stop_at={run.stop_at}")
        source = f"describe, pretrain = observed({', '.join(hooks)})\n"
        observer = folder / "observed.py"
        observer.write_text(f"from bench.observe import observed\n\n{source}")
        code = ordered.code | {"plugin_sha256": manager.source_sha256(observer)}
        ordered = dataclasses.replace(ordered, plugin=str(observer), code=code)
        runner.lay_out(ordered, options, JOBS)
    records = run.processes if name != "short" else 0
    parts = [_train(folder, records)]
    if parts[0].status == "stopped" or (run.repeat and parts[0].status == "done"):
        for left in ("outcome.json", "backbone.safetensors"):
            (folder / left).unlink(missing_ok=True)  # or the worker would train nothing
        parts.append(_train(folder, records))
    elif run.stop_at is not None:
        parts.append(parts[0])
    return parts


def _on_other_labels(spec: plan.RunSpec) -> plan.RunSpec:
    """Return the run on the archive that `write_images` wrote beside the spec's own."""
    from bench import data

    name = f"npz:{Path(spec.dataset.partition(':')[2]).with_name(RELABELLED)}"
    sha256 = data.load(name, image_size=spec.spec["image_size"], test=False).sha256
    facts = spec.spec["data"] | {"name": RELABELLED, "sha256": sha256}  # its own arrays, and whole
    return dataclasses.replace(spec, dataset=name, spec=spec.spec | {"data": facts})


def _train(folder: Path, records: int) -> Part:
    """Train in a process of the fork server, watched as in `bench run`; judge nothing."""
    for old in folder.glob("observed-*.json"):
        old.unlink()
    context = fork_server()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(str(folder), send))
    process.start()
    send.close()
    try:
        part = Part(**json.loads(receive.recv_bytes()))
    except EOFError:
        process.join()
        return Part("failed", f"its worker ended with exit status {process.exitcode}")
    finally:
        process.join()
        receive.close()
    losses = tuple(row["loss"] for row in read_metrics(folder) if "loss" in row)
    try:
        paths = [folder / f"observed-{rank}.json" for rank in range(records)]
        seen = tuple(json.loads(path.read_text()) for path in paths)
    except (OSError, ValueError):
        return part if part.status != "done" else Part("failed", "it left no record of itself")
    if any(record["stopped"] for record in seen):
        return Part("stopped", records=seen, losses=losses)
    return dataclasses.replace(part, records=seen, losses=losses)


def _work(folder: str, send: Connection) -> None:
    """Be the worker of a run that is not judged; send the fields of a `Part` as JSON."""
    confine.die_with_parent(signal.SIGTERM, os.getppid())
    stop: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda received, _: stop.append(received))
    confine.adopt_orphans()
    place = Path(folder)
    orders = worker.read_orders(place)
    try:
        watch = worker.train(place, orders, stop)
    except UserError as error:
        watch = worker.Watch("failed", str(error))
    finally:
        confine.kill_all(os.getpid())
    part = {"status": watch.status, "reason": watch.reason}
    if watch.status == "done":
        part["sha256"] = watch.outcome["artifacts"]["backbone.safetensors"]["sha256"]
        part["misfit"] = _misfit(place, orders["spec"], part["sha256"])
        part["drawn"] = SAMPLES * len(watch.outcome.get("samples", {}))
    send.send_bytes(json.dumps(part).encode())


def _misfit(folder: Path, spec: dict[str, Any], sha256: str) -> str:
    """Return why the judge would refuse the backbone's file, or nothing."""
    from bench import integrity

    weights = folder / "backbone.safetensors"
    try:
        integrity.load_backbone(spec["backbone"], spec["image_size"], weights, sha256)
    except integrity.IntegrityError as error:
        return str(error)
    return ""


def write_images(path: Path) -> Path:
    """Write the archive that checks train on: gratings of one direction per class under a light
    from above, uint8 (N, 32, 32, 3). Its test images are no numbers, so that reading them fails.
    Beside it stands RELABELLED: the same images, the labels of training shuffled among them."""
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(0))
    labels = np.arange(2 * IMAGES) % CLASSES
    angles = np.pi * labels / CLASSES + generator.normal(0, 0.1, len(labels))
    phases = generator.uniform(0, 2 * np.pi, len(labels))
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] / IMAGE_SIZE  # (32, 32) each
    along = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    waves = np.sin(6 * np.pi * along + phases[:, None, None]) + 1.5 * (1 - y)  # (N, 32, 32)
    tints = generator.uniform(30, 70, (len(labels), 1, 1, 3))
    pixels = 20 + waves[..., None] * tints + generator.normal(0, 6, (*waves.shape, 3))
    images = pixels.clip(0, 255).astype(np.uint8)
    arrays = {
        "x_train": images[:IMAGES],
        "y_train": labels[:IMAGES],
        "x_val": images[IMAGES:],
        "y_val": labels[IMAGES:],
        "x_test": np.array(["no check reads a test image"]),
        "y_test": np.array(["nor a test label"]),
    }
    np.savez(path, **arrays)
    arrays["y_train"] = generator.permutation(arrays["y_train"])
    np.savez(path.with_name(RELABELLED), **arrays)
    return path
