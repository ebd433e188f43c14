"""Carry out observations of studies, each in a process of its own that has torch."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.probe import die_with_planner, fork_server

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from bench.studies import Run


@dataclass(frozen=True)
class Job:
    """One observation to come: a study at a seed, the run that it reads if any, its file."""

    study: str
    seed: int
    run: Run | None
    file: Path


def carry_out(todo: Sequence[Job], jobs: int, say: Callable[[str], None]) -> int:
    """Make the observations, `jobs` at a time; return 0, 1 if some failed, or 130 if stopped."""
    waiting, active, status = list(todo), {}, 0
    context = fork_server()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                job = waiting.pop(0)
                process: BaseProcess = context.Process(target=_observe, args=(job,), name=job.study)
                process.start()
                active[process.sentinel] = (process, job, time.monotonic())
            for sentinel in wait(list(active)):
                process, job, begun = active.pop(sentinel)
                process.join()
                done = process.exitcode == 0 and job.file.exists()
                said = f"{time.monotonic() - begun:.0f} s" if done else "failed"
                say(f"{job.study} seed {job.seed}: {said}")
                status = status if done else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for process, _, _ in active.values():
            process.kill()
            process.join()
    return status


def _observe(job: Job) -> None:
    die_with_planner()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the planner is told, and ends this process
    try:
        observe(job)
    except UserError as error:
        print(f"{job.study} seed {job.seed}: {error}", file=sys.stderr)
        sys.exit(2)


def observe(job: Job) -> None:
    """Make one observation and write it.

    Raises:
        UserError: the run that is read will not do.
    """
    import torch

    from bench.judge import machine
    from bench.observations import Observed, contradiction, write
    from bench.packing import pack_bits
    from bench.studies import study

    torch.set_num_threads(1)
    found, begun = study(job.study), time.monotonic()
    observation = found.observe(job.seed, job.run)
    sizes = {len(bits) for bits in observation.correct.values()}
    where: dict[str, Any] = machine({"device": "cpu", "spec": {"threads": 1}})
    observed = Observed(
        schema=1,
        study=found.name,
        version=found.version,
        settings=found.settings,
        hash=found.hash,
        holds=found.holds,
        seed=job.seed,
        run_id=job.run.folder.name if job.run else "",
        artifacts=job.run.artifacts if job.run else {},
        values=observation.values,
        shown=observation.shown,
        correct={name: pack_bits(bits) for name, bits in observation.correct.items()},
        num_images=sizes.pop() if sizes else 0,
        parts=observation.parts,
        stamps=list(observation.stamps),
        machine=where,
        seconds=time.monotonic() - begun,
    )
    if fault := contradiction(observed):
        raise UserError(f"{job.study} contradicts itself: {fault}")
    write(job.file, observed)
