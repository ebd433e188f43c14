"""The planner's half of `bench run`: lay out run folders, start workers, watch, render.

Imports no torch: the workers are forked from a server that has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ledger
from bench.errors import UserError
from bench.identity import digest
from bench.meters import read_progress
from bench.probe import fork_server

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from bench.plan import RunSpec
    from bench.results import Result

POLL_SECONDS = 0.2
GIB_PER_JOB = 2


@dataclass(frozen=True)
class Options:
    """How runs are carried out; none of it is part of a run's identity.

    Attributes:
        runs_dir: the working folder; results go to its `results/<track>/`.
        jobs: runs at a time; None: the cores, or memory / 2 GiB if that is less; 1 on CUDA.
        timeout, stall: seconds; a run longer than the first, or without a step for the second,
            ends as "timeout".
        force: run again what is finished. stale: run again what other code produced, and judge
            again what an older version of one of `protocols` (id -> hash) judged.
        needed: hashes of protocols without which a finished run does not do, and is judged again.
        observers: plugins whose `run_finished` sees each run that ends.
        results_dir: where results go; None: into the working folder.
        leaderboards_dir: where the ledger of test reads lies.
        memory_gib: a run that holds more ends as "out_of_memory"; None: its share of what is free.
        dev: never open the test split; validation scores only.
    """

    runs_dir: Path
    device: str = "cpu"
    processes: int = 1
    jobs: int | None = None
    timeout: float = 86_400.0
    stall: float = 900.0
    force: bool = False
    stale: bool = False
    dev: bool = False
    on_bad_image: str = "error"
    checkpoint_seconds: float = 60.0
    memory_gib: float | None = None
    results_dir: Path | None = None
    leaderboards_dir: Path = field(default_factory=ledger.usual_folder)
    observers: tuple[str, ...] = ()
    protocols: Mapping[str, str] = field(default_factory=dict)
    needed: frozenset[str] = frozenset()

    @property
    def results(self) -> Path:
        """Where results lie; validation-only ones are kept apart."""
        usual = self.runs_dir / ("results-dev" if self.dev else "results")
        return self.results_dir or usual


@dataclass
class Active:
    """A run that is being worked on."""

    spec: RunSpec
    folder: Path
    process: BaseProcess
    begun: float = field(default_factory=time.monotonic)


def carry_out(
    specs: list[RunSpec],
    options: Options,
    *,
    finished: Callable[[RunSpec, Result | None, bool], None],
    watching: Callable[[list[Active], int], None],
) -> int:
    """Run what is not finished yet; return 0, 1 if some runs failed, or 130 or 143 if stopped.

    Args:
        finished: called with each run's spec, its result (None if the worker died) and whether it
            was skipped.
        watching: called every fifth of a second with the runs under way and how many wait.

    Raises:
        UserError: another process is working on one of the runs, or test reads could not be noted.
    """
    from bench import results, worker

    pending, failed = [], False
    for spec in specs:
        kept = kept_result(spec, options)
        if kept is None:
            pending.append(spec)
        else:
            finished(spec, kept, True)
    _refuse_leased(pending, options)
    if pending and not options.dev:
        ledger.refuse_unwritable(options.leaderboards_dir / ledger.FILE)
    pending.sort(key=lambda spec: spec.plugin is None)  # what trains nothing waits: it takes long
    jobs = options.jobs or default_jobs(options.device)
    memory = options.memory_gib or 0.9 * available_gib() / jobs  # before any run holds some
    options = replace(options, memory_gib=memory)
    active: dict[int, Active] = {}
    stop: list[int] = []
    before = {
        signum: signal.signal(signum, lambda received, _: stop.append(received))
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    context = fork_server()
    try:
        while (pending and not stop) or active:
            elsewhere: list[RunSpec] = []
            while pending and len(active) < jobs and not stop:
                spec = pending.pop(0)
                kept = kept_result(spec, options)  # another `bench run` may have done it
                if kept is not None:
                    finished(spec, kept, True)
                elif worker.is_leased(options.runs_dir / spec.run_id):
                    elsewhere.append(spec)
                else:
                    started = _start(spec, options, jobs, context)
                    active[started.process.sentinel] = started
            pending += elsewhere
            for sentinel in wait(list(active), timeout=POLL_SECONDS):
                ended = active.pop(sentinel)
                ended.process.join()
                path = result_path(ended.spec, options)
                result = results.read(path) if path.exists() else None
                if not stop or result is not None:
                    failed |= result is None or result.status not in results.TERMINAL
                    finished(ended.spec, result, False)
            if stop:
                for run in active.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(run.process.pid or 0, signal.SIGTERM)
                stop[1:] = []
            watching(list(active.values()), len(pending))
    finally:
        for run in active.values():  # an error of ours: workers end what they started themselves
            run.process.terminate()
        for run in active.values():
            run.process.join(worker.GRACE_SECONDS + 5)
            run.process.kill()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 128 + stop[0] if stop else int(failed)


def default_jobs(device: str) -> int:
    """Return how many runs go at a time: one on CUDA; on a CPU the cores, or memory / 2 GiB."""
    if device.startswith("cuda"):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, int(available_gib() // GIB_PER_JOB)))


def available_gib() -> float:
    """Return the memory that is free for runs, in GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")) / 2**20


def result_path(spec: RunSpec, options: Options) -> Path:
    """Return where the run's result lies."""
    return options.results / spec.track / f"{spec.run_id}.json"


def kept_result(spec: RunSpec, options: Options) -> Result | None:
    """Return the result that makes this run unnecessary, or None."""
    from bench import results

    path = result_path(spec, options)
    if options.force or not path.exists():
        return None
    try:
        kept = results.read(path)
    except UserError:
        return None
    if options.stale and (is_stale(kept, spec) or outdated(kept, options.protocols)):
        return None
    if kept.status == "done" and not options.needed <= set(kept.evaluations):
        return None
    return kept if kept.status in results.TERMINAL else None


def kept_done(path: Path) -> bool:
    """Return whether a file holds the result of a run that ended well."""
    from bench import results

    try:
        return results.read(path).status == "done"
    except UserError:
        return False


def _refuse_leased(specs: list[RunSpec], options: Options) -> None:
    from bench import worker

    for spec in specs:
        if worker.is_leased(options.runs_dir / spec.run_id):
            raise UserError(
                f"{spec.run_id} is being worked on by another process; "
                "wait for it, or choose another --runs-dir"
            )


def is_stale(kept: Result, spec: RunSpec) -> bool:
    """Return whether other code than today's produced the result."""
    then = (kept.code.plugin_sha256, kept.code.engine)
    return then != (spec.code["plugin_sha256"], spec.code["engine"])


def outdated(kept: Result, protocols: Mapping[str, str]) -> str:
    """Return which protocol judged the run in an older version than today's, or nothing."""
    judged = {entry.id for entry in kept.evaluations.values()}
    older = (n for n, today in protocols.items() if n in judged and today not in kept.evaluations)
    return next(older, "")


def _start(spec: RunSpec, options: Options, jobs: int, context: Any) -> Active:
    from bench import worker

    folder = lay_out(spec, options, jobs)
    process = context.Process(target=worker.entry, args=(str(folder),), name=spec.run_id)
    process.start()
    return Active(spec, folder, process)


def lay_out(spec: RunSpec, options: Options, jobs: int = 1) -> Path:
    """Write the run's folder with its orders and return it."""
    from bench import results
    from bench.files import write_atomically

    folder = (options.runs_dir / spec.run_id).resolve()
    if options.force and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = result_path(spec, options).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # what was added to it by hand is carried over if the backbone is the same
        aside = results.replaced(target)
        aside.parent.mkdir(exist_ok=True)
        if kept_done(target) or not aside.exists():
            target.replace(aside)
        else:  # what failed replaces nothing that did not
            target.unlink()
    seen = [spec.spec["data"], spec.spec["image_size"]]
    orders = {
        "spec": spec.spec,
        "track": spec.track,
        "plugin": spec.plugin,
        "dataset": spec.dataset,
        "row": spec.row,
        "code": spec.code,
        "evaluations": spec.evaluations,
        "results": str(target.parent),
        "arrays": str((options.runs_dir / "data" / digest(seen)[:16]).resolve()),
        "device": options.device,
        "processes": options.processes,
        "dev": options.dev,
        "ledger": str((options.leaderboards_dir / ledger.FILE).resolve()),
        "on_bad_image": options.on_bad_image,
        "timeout": options.timeout,
        "stall": options.stall,
        "memory_gib": options.memory_gib or 0.9 * available_gib() / jobs,
        "checkpoint_seconds": options.checkpoint_seconds,
    }
    write_atomically(folder / "run.json", json.dumps(orders, indent=1).encode())
    return folder


def seconds_left(run: Active) -> float | None:
    """Return the seconds of training that the run's rate leaves, or None before the first step."""
    progress = read_progress(run.folder)
    if progress is None or progress.step < 1:
        return None
    return (time.monotonic() - run.begun) / progress.step * (progress.steps - progress.step)
