"""Confine a process that runs plugin code: what it may write and read, whom it may signal, when it
dies.

Landlock (Linux 5.13 and later) enforces it in the kernel, for children and threads too. Where the
kernel has none the process runs unconfined, and the caller is told so. This protects against
mistakes, against damage to other runs, and against plugins that look up labels or test images; it
is no sandbox against a determined attacker, who may still open connections.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
WRITE_RIGHTS = (
    (1 << 1)  # write file
    | (1 << 4) | (1 << 5)  # remove directory, file
    | (1 << 6) | (1 << 7) | (1 << 8) | (1 << 9) | (1 << 10) | (1 << 11) | (1 << 12)  # make ...
)  # fmt: skip
READ_FILE = 1 << 2
REFER, TRUNCATE = 1 << 13, 1 << 14  # since ABI 2 and 3
FILE_RIGHTS = (1 << 1) | TRUNCATE
SCOPE_SIGNAL = 1 << 1  # since ABI 6
KILL_SECONDS = 10.0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and _libc().prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def die_with_parent(signum: int, parent: int) -> None:
    """Have the kernel send `signum` when the parent `parent` dies; at once if it already has."""
    _prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def die_with_writer(signum: int, descriptor: int) -> None:
    """Have the kernel send `signum` when the last writer of a pipe is gone; at once if it is.

    The fork server outlives a planner that was killed for as long as its workers live; this pipe
    does not. `descriptor` is the pipe's read end.
    """
    if sys.platform != "linux":
        return
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signum)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([descriptor], [], [], 0)[0]:
        os.kill(os.getpid(), signum)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none can escape."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def landlock_version() -> int:
    """Return the kernel's Landlock ABI, or 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc().syscall(CREATE_RULESET, None, 0, 1))


def confine_writes(folders: list[Path], files: list[Path]) -> bool:
    """Let this process and its children write only below `folders` and to `files`.

    Returns whether the kernel enforces it. Reading stays as it is.
    """
    version = landlock_version()
    handled = WRITE_RIGHTS | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    rules = [(str(f), handled) for f in folders] + [(str(f), FILE_RIGHTS) for f in files]
    return _restrict(version, handled, SCOPE_SIGNAL if version >= 6 else 0, rules)


def hide(hidden: Iterable[Path], shown: Iterable[Path] = ()) -> bool:
    """Let this process and its children open no file at or below `hidden` for reading, but those
    at or below `shown`; an open one stays open, and names can still be listed.

    Returns whether the kernel enforces it. Landlock knows only what is allowed: that is all that
    lies beside the ways to the hidden places now. What is created there later is hidden too.
    """
    places = {str(path.resolve()) for path in hidden}
    if not places:
        return True
    allowed = [*(str(path.resolve()) for path in shown), *_beside(places)]
    return _restrict(landlock_version(), READ_FILE, 0, [(path, READ_FILE) for path in allowed])


def _beside(places: set[str]) -> Iterator[str]:
    """Yield all that is neither at, below, nor above one of `places`, by its topmost folder."""
    above = {str(parent) for place in places for parent in Path(place).parents}
    folders = ["/"]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.path in above:
                    folders.append(entry.path)
                elif entry.path not in places and not entry.is_symlink():
                    yield entry.path


def _restrict(version: int, handled: int, scoped: int, rules: list[tuple[str, int]]) -> bool:
    """Give up the `handled` rights but where a rule (path, rights) grants them."""
    if not version:
        return False
    libc = _libc()
    attributes = struct.pack("<QQQ", handled, 0, scoped)[: 24 if version >= 6 else 8]
    ruleset = libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for path, rights in rules:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:  # it does not exist: nothing to grant
                continue
            try:
                rule = struct.pack("<Qi", rights & handled, descriptor)
                if libc.syscall(ADD_RULE, ruleset, 1, rule, 0):
                    return False
            finally:
                os.close(descriptor)
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        return libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def descendants(root: int) -> list[int]:
    """Return the process ids below `root`, from /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


def resident_bytes(pids: list[int]) -> int:
    """Return the memory that the processes hold together; pages shared between them count once
    for each (proportional sizes are used where the kernel gives them)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) * 1024
    return total


def kill_all(root: int) -> list[int]:
    """Kill every descendant of this process's `root` until none is left; return those killed."""
    killed: set[int] = set()
    until = time.monotonic() + KILL_SECONDS
    while (alive := descendants(root)) and time.monotonic() < until:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.005)  # a process takes a moment to give its memory back
        reap()
    return sorted(killed)


def reap() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return
