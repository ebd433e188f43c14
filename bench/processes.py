"""The processes that run one plugin: start them, signal them, collect how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from bench import confine


@dataclass
class Child:
    """A process of the run: its outcome comes through `pipe`, whole, when it ends."""

    pid: int
    pipe: int
    rank: int
    said: bytes = b""
    exit_status: int | None = None
    ended: float = 0.0
    started: subprocess.Popen[bytes] | None = None  # kept, lest its end be collected elsewhere


def collect(children: list[Child], now: float) -> None:
    """Take the exit statuses of children, and of orphans that came to us."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for child in children:
            if child.pid == pid:
                child.exit_status = os.waitstatus_to_exitcode(status)
                child.ended = now


def send(child: Child, signum: int) -> None:
    if child.exit_status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signum)


def kill(children: list[Child]) -> None:
    for child in children:
        send(child, signal.SIGKILL)


def fork(folder: Path, rank: int, world: int, log: int) -> Child:
    """Start a child by fork: nothing is imported again."""
    from bench import child as process

    read, write = os.pipe()
    parent = os.getpid()
    # A signal between fork and `signal` would be noted by a copy of the worker's handler and lost.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.close(write)
        return Child(pid, read, rank)
    status = 1
    try:
        os.setsid()
        confine.die_with_parent(signal.SIGKILL, parent)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(read)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker forwards what it gets
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        status = process.confined(folder, rank, world, write)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def spawn(folder: Path, rank: int, world: int, log: int) -> Child:
    """Start a child as a fresh interpreter: CUDA does not survive a fork."""
    read, write = os.pipe()
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)}
    command = ["-m", "bench.child", str(folder), "--worker", str(os.getpid()), str(write)]
    started = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        pass_fds=(write,),
        start_new_session=True,
    )
    os.close(write)
    return Child(started.pid, read, rank, started=started)
