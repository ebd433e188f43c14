"""`bench check`: does a plugin keep the contract? Small runs of it, and what they must show.

Plugin code runs only in children, confined as in `bench run`, in a temporary folder, on 64
synthetic images. The archive that holds them has a test split that cannot be read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import tempfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import confine, manager, plan, runner, worker
from bench.errors import UnknownName, UserError
from bench.meters import read_metrics
from bench.probe import fork_server, probe

IMAGES, IMAGE_SIZE, CLASSES, BATCH_SIZE = 64, 32, 4, 32
LONG, SHORT, STOP = 60, 12, 5  # steps of the longest run, of the others, before a stop
JOBS = 2
RUN_SECONDS, STALL_SECONDS = 90.0, 60.0
CONVOLUTIONAL = {
    "name": "test_resnet",
    "args": {},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}
TRANSFORMER = {"name": "test_vit", "args": {"patch_size": 8}, "stem": None}


@dataclass(frozen=True)
class Check:
    """One check's outcome.

    Attributes:
        id: what `expected_failures` and `only` name.
        reason: why it matters, a line.
        status: passed, failed, expected (it failed, and that was announced) or skipped.
        detail: what was found, a line; may be empty where it passed.
    """

    id: str
    reason: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class Part:
    """One training: from its start, or from a checkpoint, to its end or a stop.

    Attributes:
        status: as the worker's watch says; "interrupted" where the run was stopped.
        sha256: of the backbone's bytes, empty without any.
        misfit: why the bytes do not fit the architecture that was given; empty if they do.
        records: what `bench.observe` noted, by rank.
        losses: as logged, step by step.
    """

    status: str
    reason: str = ""
    sha256: str = ""
    misfit: str = ""
    records: tuple[dict[str, Any], ...] = ()
    losses: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Run:
    """How to train: the same plugin, another course.

    Attributes:
        stop_at: the step, from 0, in which the first part gets a SIGTERM; the second goes on.
        repeat: train again in the finished folder.
    """

    steps: int = SHORT
    seed: int = 0
    processes: int = 1
    stop_at: int | None = None
    repeat: bool = False


RUNS = {
    "long": Run(steps=LONG),
    "ranks": Run(processes=2),
    "resumed": Run(stop_at=STOP),
    "repeated": Run(repeat=True),
    "short": Run(),
    "other": Run(seed=1),
}
Evidence = Mapping[str, list[Part]]
Verdict = tuple[str, str]  # status, detail
PASSED: Verdict = ("passed", "")


def _loss(evidence: Evidence) -> Verdict:
    part = evidence["long"][0]
    record = part.records[0]
    if _is_floor(part):
        return "skipped", "a floor that trains nothing"
    if record["ended"] < LONG:
        return "failed", f"took {record['ended']} of {LONG} steps"
    if not part.losses or not all(isinstance(x, float) and math.isfinite(x) for x in part.losses):
        return "failed", "a loss is missing or not finite"
    if not record["fit"]:
        return "passed", "own loop: every loss is finite"
    quarter = LONG // 4
    first = sum(part.losses[:quarter]) / quarter
    last = sum(part.losses[-quarter:]) / quarter
    said = f"mean of the first {quarter} steps {first:.4g}, of the last {last:.4g}"
    return ("passed" if last < first else "failed"), said


def _gradients(evidence: Evidence) -> Verdict:
    part = evidence["long"][0]
    if _is_floor(part):
        return "skipped", "a floor that trains nothing"
    record = part.records[0]
    without = [name for name in record["influential"] if record["gradients"][name] == 0]
    if without:
        return "failed", f"no gradient reached {_some(without)}"
    return "passed", f"{len(record['influential'])} parameters"


def _seed(evidence: Evidence) -> Verdict:
    first, again, other = (evidence[n][0].sha256 for n in ("short", "repeated", "other"))
    if first != again:
        return "failed", "two runs with one seed left different bytes"
    if first == other:
        return "failed", "two seeds left the same bytes"
    return PASSED


def _resume(evidence: Evidence) -> Verdict:
    whole, (stopped, resumed) = evidence["short"][0], evidence["resumed"]
    if stopped.status != "interrupted":
        if _is_floor(evidence["resumed"][0]):
            return "skipped", "a floor that trains nothing"
        return "failed", f"SIGTERM in step {STOP} did not stop the run ({_ending(stopped)})"
    begun = resumed.records[0]["begun"]
    if begun != STOP + 1:
        return "failed", f"stopped after {STOP + 1} steps, went on from step {begun}"
    if resumed.sha256 != whole.sha256:
        return "failed", f"stopped after {STOP + 1} of {SHORT} steps, it left other bytes"
    return PASSED


def _finished(evidence: Evidence) -> Verdict:
    first, again = evidence["repeated"]
    if _is_floor(first):
        return "skipped", "a floor that trains nothing"
    record = again.records[0]
    if (record["begun"], record["ended"]) != (SHORT, SHORT):
        return "failed", f"went on from step {record['begun']} to {record['ended']} of {SHORT}"
    if again.sha256 != first.sha256:
        return "failed", "called again after its last step, it left other bytes"
    return PASSED


def _backbone(evidence: Evidence) -> Verdict:
    misfit = evidence["short"][0].misfit
    return ("failed", misfit) if misfit else PASSED


def _writes(evidence: Evidence) -> Verdict:
    paths = evidence["long"][0].records[0]["writes"]
    return ("failed", f"tried to write {_some(paths)}") if paths else PASSED


def _ranks(evidence: Evidence) -> Verdict:
    one, two = (record["parameters"] for record in evidence["ranks"][0].records)
    different = [name for name in one if one[name] != two.get(name)]
    if different or one.keys() != two.keys():
        return "failed", f"different on two processes: {_some(different or sorted(two))}"
    return "passed", f"{len(one)} parameters"


@dataclass(frozen=True)
class _Rule:
    reason: str
    runs: tuple[str, ...] = ()
    verdict: Callable[[Evidence], Verdict] = field(default=lambda _: PASSED)


RULES = {
    "card": _Rule("the card says all that boards and plans need"),
    "loss": _Rule("the loss falls over 60 steps on 64 images", ("long",), _loss),
    "gradients": _Rule("every parameter behind the features is trained", ("long",), _gradients),
    "seed": _Rule("the seed alone decides the bytes", ("short", "repeated", "other"), _seed),
    "resume": _Rule("a stopped run goes on to the same bytes", ("short", "resumed"), _resume),
    "finished": _Rule("a finished run takes no further step", ("repeated",), _finished),
    "backbone": _Rule("the backbone returned is of the given architecture", ("short",), _backbone),
    "writes": _Rule("nothing is written outside the run's folder", ("long",), _writes),
    "ranks": _Rule("two processes end with equal parameters", ("ranks",), _ranks),
}


def main(
    names: list[str],
    *,
    expected_failures: dict[str, str] | None = None,
    as_json: bool = False,
    only: Collection[str] | None = None,
) -> int:
    """Check plugins and print a line per check; return 1 if any failed, else 0.

    Args:
        names: installed names or files.
        expected_failures: {check: why it fails}; one that passes nevertheless has failed.
        only: the checks to do, all by default.

    Raises:
        UserError: an unknown plugin or check, or an expected failure without a reason.
    """
    for name in names:
        manager.find(name)
    failed, document = False, {}
    width = max(map(len, RULES))
    for name in names:
        checks = run_checks(name, expected_failures=expected_failures, only=only)
        failed |= any(check.status == "failed" for check in checks)
        document[name] = [dataclasses.asdict(check) for check in checks]
        if not as_json:
            print(f"{manager.method_name(name)}:")
            for check in checks:
                detail = f" ({check.detail})" if check.detail else ""
                print(f"  {check.status:<8} {check.id:<{width}} {check.reason}{detail}", flush=True)
    if as_json:
        print(json.dumps(document, indent=1))
    return int(failed)


def run_checks(
    name: str,
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
) -> list[Check]:
    """Check one plugin, an installed name or a file; see `main` for arguments and errors."""
    expected, chosen = expected_failures or {}, RULES if only is None else only
    for check in (*expected, *chosen):
        if check not in RULES:
            raise UnknownName("check", check, list(RULES))
    for check, why in expected.items():
        if not why.strip():
            raise UserError(f"check {check!r} is expected to fail without a reason; give one")
    with tempfile.TemporaryDirectory(prefix="bench-check-") as temporary:
        rules = {check: rule for check, rule in RULES.items() if check in chosen}
        return [
            _against(expected, Check(check, rules[check].reason, *verdict))
            for check, verdict in _verdicts(name, rules, Path(temporary)).items()
        ]


def _against(expected: Mapping[str, str], check: Check) -> Check:
    why = expected.get(check.id)
    if why is None or check.status == "skipped":
        return check
    if check.status == "failed":
        return dataclasses.replace(check, status="expected", detail=f"{check.detail}; {why}")
    return dataclasses.replace(
        check, status="failed", detail=f"passes, but was expected not: {why}"
    )


def _verdicts(name: str, rules: Mapping[str, _Rule], temporary: Path) -> dict[str, Verdict]:
    data = write_images(temporary / "images.npz")
    answer = probe(
        [name],
        recipe="small",
        overrides={},
        data={"name": f"npz:{data}", "image_size": IMAGE_SIZE},
        seeds=[0, 1],
        runs_dir=temporary,
    )
    facts = answer["methods"][name]
    if facts["error"]:
        found = dict.fromkeys(rules, ("skipped", "the card cannot be read"))
        return found | ({"card": ("failed", facts["error"])} if "card" in rules else {})
    if facts["local"]:
        facts["plugin"] = str(Path(name).expanduser().absolute())
    track = _track(data, facts["card"]["needs"].get("backbone") == "vit")
    planned = plan.plan(track, {facts["name"]: facts}, answer["data"], seeds=[0, 1])
    specs = {spec.spec["seed"]: spec for spec in planned}

    wanted = [run for run in RUNS if any(run in rule.runs for rule in rules.values())]
    with ThreadPoolExecutor(JOBS) as pool:
        parts = pool.map(
            lambda run: _carry_out(run, RUNS[run], specs[RUNS[run].seed], temporary), wanted
        )
        evidence = dict(zip(wanted, parts, strict=True))
    return {check: _verdict(rule, evidence) for check, rule in rules.items()}


def _track(data: Path, transformer: bool) -> plan.Track:
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
    )


def _verdict(rule: _Rule, evidence: Evidence) -> Verdict:
    for run in rule.runs:
        for part in evidence[run]:
            if part.status == "unsupported":
                return "skipped", f"n/a: {part.reason}"
            if part.status not in ("done", "interrupted"):
                return "failed", f"the run {run!r} ended as {_ending(part)}"
    return rule.verdict(evidence)


def _carry_out(name: str, run: Run, spec: plan.RunSpec, temporary: Path) -> list[Part]:
    """Train as `run` says; return its parts."""
    options = runner.Options(
        temporary,
        processes=run.processes,
        dev=True,
        timeout=RUN_SECONDS,
        stall=STALL_SECONDS,
    )
    ordered = dataclasses.replace(
        spec, run_id=name, spec=spec.spec | {"budget": {"steps": run.steps}}
    )
    folder = runner.lay_out(ordered, options, JOBS)
    if name != "short":  # which is the plugin as it comes; all others must leave its bytes
        hooks = (repr(spec.plugin), f"folder={str(folder)!r}", f"stop_at={run.stop_at}")
        source = f"describe, pretrain = observed({', '.join(hooks)})\n"
        observer = folder / "observed.py"
        observer.write_text(f"from bench.observe import observed\n\n{source}")
        runner.lay_out(dataclasses.replace(ordered, plugin=str(observer)), options, JOBS)
    parts = [_train(folder)]
    if parts[0].status == "interrupted" or (run.repeat and parts[0].status == "done"):
        for left in ("outcome.json", "backbone.safetensors"):
            (folder / left).unlink(missing_ok=True)
        parts.append(_train(folder))
    elif run.stop_at is not None:
        parts.append(parts[0])
    return parts


def _train(folder: Path) -> Part:
    """Train in a process of the fork server, watched as in `bench run`; judge nothing."""
    context = fork_server()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(str(folder), send))
    process.start()
    send.close()
    try:
        part = Part(**receive.recv())
    except EOFError:
        process.join()
        return Part("failed", f"its worker ended with exit status {process.exitcode}")
    finally:
        process.join()
        receive.close()
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("observed-*.json"))]
    losses = [row["loss"] for row in read_metrics(folder) if "loss" in row]
    return dataclasses.replace(part, records=tuple(records), losses=tuple(losses))


def _work(folder: str, send: Connection) -> None:
    """Be the worker of a run that is not judged; send the fields of a `Part`."""
    confine.die_with_parent(signal.SIGTERM, os.getppid())
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda received, _: stop.append(received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever checks is told, and ends us
    confine.adopt_orphans()
    place = Path(folder)
    orders = worker.read_orders(place)
    try:
        watch = worker._train(place, orders, stop)
    finally:
        confine.kill_all(os.getpid())
    sha256, misfit = "", ""
    if watch.status == "done":
        from bench import integrity

        sha256 = watch.outcome["artifacts"]["backbone.safetensors"]["sha256"]
        spec = orders["spec"]
        try:
            integrity.load_backbone(
                spec["backbone"], spec["image_size"], place / "backbone.safetensors", sha256
            )
        except integrity.IntegrityError as error:
            misfit = str(error)
    send.send({"status": watch.status, "reason": watch.reason, "sha256": sha256, "misfit": misfit})


def write_images(path: Path) -> Path:
    """Write the archive that checks train on: gratings of one direction per class under a light
    from above, uint8 (N, 32, 32, 3). Its test images are no numbers, so that reading them fails."""
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
    np.savez(
        path,
        x_train=images[:IMAGES],
        y_train=labels[:IMAGES],
        x_val=images[IMAGES:],
        y_val=labels[IMAGES:],
        x_test=np.array(["no check reads a test image"]),
        y_test=np.array(["nor a test label"]),
    )
    return path


def _is_floor(part: Part) -> bool:
    record = part.records[0]
    return record["floor"] and record["ended"] == 0


def _ending(part: Part) -> str:
    return f"{part.status}: {part.reason}" if part.reason else part.status


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
