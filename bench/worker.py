"""One run from its orders to its result: watch the child, then judge what it left.

The worker runs no plugin code, and no torch operation before its child has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import selectors
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import confine, heap, processes
from bench.childlog import CappedLog
from bench.errors import UserError
from bench.files import write_atomically
from bench.identity import file_sha256
from bench.meters import read_progress
from bench.processes import Child

GRACE_SECONDS = 20.0  # between a signal and SIGKILL: one step and a checkpoint
SEVERAL_CARDS = 8  # steps after which their processes agree to stop: so many times the grace
POLL_SECONDS = 0.05
MEMORY_POLL_SECONDS = 0.5


@dataclass
class Watch:
    """What became of the children."""

    status: str
    reason: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Stopped(BaseException):
    """The worker was told to stop; nothing terminal happened."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


def _raise_stopped(signum: int, frame: Any) -> None:
    """Leave off judging, once; what was trained is kept."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(signum)


def main(folder: str | Path) -> int:
    """Carry out the orders in `folder/run.json`; return the exit status.

    0: a result was written, whatever it says. 130, 143: stopped by a signal, resumable.

    Raises:
        UserError: the folder has no orders, or another worker holds it.
    """
    from bench import judge

    folder = Path(folder).resolve()
    orders = read_orders(folder, ("spec", "results", "plugin", "code", "evaluations", "arrays"))
    stop: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda received, _: stop.append(received))
    confine.adopt_orphans()
    heap.keep_freed_memory()
    with _lease(folder):
        attempts = _count_attempt(folder)
        begun = time.monotonic()
        try:
            watch = train(folder, orders, stop) if orders["plugin"] else Watch("done")
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, _raise_stopped)
            if stop:
                raise Stopped(stop[0])
            try:
                judge.conclude(folder, orders, watch, attempts=attempts, begun=begun)
            except Exception as error:
                if not isinstance(error, UserError):
                    traceback.print_exc()
                watch = Watch("failed", f"judging failed: {one_line(error)}")
                judge.conclude(folder, orders, watch, attempts=attempts, begun=begun)
        except Stopped as stopped:
            return 128 + stopped.signum
        finally:
            confine.kill_all(os.getpid())
    return 0


def entry(folder: str) -> None:
    """Be the worker of `folder` in a process that the fork server made."""
    confine.die_with_parent(signal.SIGTERM, os.getppid())
    planner = multiprocessing.parent_process()
    if planner is not None:
        confine.die_with_writer(signal.SIGTERM, planner.sentinel)
    try:
        sys.exit(main(folder))
    except UserError as error:
        print(f"{Path(folder).name}: {error}", file=sys.stderr)
        sys.exit(2)


def read_orders(folder: Path, needed: Sequence[str] = ("spec", "results")) -> dict[str, Any]:
    """Return the run's orders, which have at least the keys that are `needed`.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = folder / "run.json"
    try:
        orders = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no run folder: it has no run.json; `bench run` makes one, `bench run "
            "--force` where its result is there already"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); remove the folder and `bench run --force`"
        ) from None
    known = orders if isinstance(orders, dict) else {}
    if lacking := sorted(set(needed) - set(known)):
        raise UserError(
            f"{path} is damaged (it lacks {', '.join(lacking)}); remove the folder and "
            "`bench run --force`"
        )
    return orders


@contextlib.contextmanager
def _lease(folder: Path) -> Iterator[None]:
    with (folder / "lease").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder.name} is being worked on by another process") from None
        yield


def is_leased(folder: Path) -> bool:
    """Return whether a worker holds the folder, or a process that one left behind."""
    if not (folder / "lease").exists():
        return False
    try:
        with _lease(folder):
            return False
    except UserError:
        return True


def _count_attempt(folder: Path) -> int:
    path = folder / "attempts"
    try:
        count = int(path.read_text()) + 1
    except (OSError, ValueError):
        count = 1
    write_atomically(path, str(count).encode())
    return count


def train(folder: Path, orders: dict[str, Any], stop: list[int]) -> Watch:
    kept = _kept_outcome(folder, orders)
    if kept is not None:
        return kept
    orders = orders | {"hidden": _write_arrays(orders)}
    write_atomically(folder / "run.json", json.dumps(orders, indent=1).encode())
    (folder / "outcome.json").unlink(missing_ok=True)
    (folder / "progress").unlink(missing_ok=True)
    for unfinished in folder.glob(".*.tmp"):  # by an attempt that was killed while it wrote
        unfinished.unlink(missing_ok=True)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "tmp").mkdir(exist_ok=True)
    watch = _watch(folder, orders, stop)
    if watch.status == "done":
        watch = _verified(folder, watch)
    if watch.status == "done":
        text = json.dumps({"key": _key(orders), "outcome": watch.outcome, "notes": watch.notes})
        write_atomically(folder / "outcome.json", text.encode())
        shutil.rmtree(folder / "tmp", ignore_errors=True)  # compiled code among it
    return watch


def _write_arrays(orders: dict[str, Any]) -> list[str]:
    """Lay out what pretraining sees and return where the data set lies: all that plugin code must
    not read. The test arrays are not opened."""
    from bench import data
    from bench.data import arrays

    spec = orders["spec"]
    dataset, split = data.of_spec(
        orders["dataset"], spec, test=False, on_bad_image=orders["on_bad_image"]
    )
    limit = spec["data"].get("limit")
    if limit is not None and "drawn" not in spec["data"]:
        raise UserError(
            "this run was planned when --limit took the first images, and now it draws them; start "
            "it anew with `bench run`"
        )
    kept = data.some(len(split.train), limit, dataset.sha256)
    split = dataclasses.replace(split, train=split.train[kept])
    if limit is not None and "unlabeled" in dataset.images:
        kept = data.some(len(dataset.images["unlabeled"]), limit, dataset.sha256)
        dataset = dataset.only("unlabeled", kept)
    arrays.materialise(dataset, split, orders["arrays"])
    return [str(place.absolute()) for place in dataset.places]


def _key(orders: dict[str, Any]) -> list[Any]:
    return [orders["spec"], orders["code"]["plugin_sha256"], orders["code"]["engine"]]


def _kept_outcome(folder: Path, orders: dict[str, Any]) -> Watch | None:
    """Return the outcome of an earlier training here if its bytes still stand."""
    try:
        kept = json.loads((folder / "outcome.json").read_text())
    except (OSError, ValueError):
        return None
    if kept["key"] != _key(orders) or not _has_samples(orders, kept["outcome"]):
        return None
    watch = _verified(folder, Watch("done", outcome=kept["outcome"], notes=kept["notes"]))
    return watch if watch.status == "done" else None


def _has_samples(orders: dict[str, Any], outcome: dict[str, Any]) -> bool:
    """Return whether the training drew for every protocol over samples of these orders.

    If not, the child goes on from its last checkpoint: no step is left, and it draws.
    """
    from bench import sampling

    considered = outcome.get("considered", ())
    return all(protocol.hash in considered for protocol in sampling.wanted(orders["evaluations"]))


def _verified(folder: Path, watch: Watch) -> Watch:
    """Refuse artifacts whose bytes are not those that the child announced."""
    for name, facts in watch.outcome.get("artifacts", {}).items():
        path = folder / name
        if not path.exists() or file_sha256(path) != facts["sha256"]:
            return Watch("failed", f"{name} was changed after the run wrote it", notes=watch.notes)
    if "backbone.safetensors" not in watch.outcome.get("artifacts", {}):
        return Watch("failed", "the run left no backbone", notes=watch.notes)
    return watch


def _watch(folder: Path, orders: dict[str, Any], stop: list[int]) -> Watch:
    """Start the children and return what became of them."""
    world = orders.get("processes", 1)
    log_read, log_write = os.pipe()
    start = processes.spawn if orders["device"].startswith("cuda") else processes.fork
    children = [start(folder, rank, world, log_write) for rank in range(world)]
    os.close(log_write)
    with CappedLog(folder / "child.log") as log, selectors.DefaultSelector() as selector:
        for descriptor in [log_read, *(child.pipe for child in children)]:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        verdict = _wait(folder, orders, children, selector, log_read, log, stop)
    for descriptor in [log_read, *(child.pipe for child in children)]:
        os.close(descriptor)
    return verdict


def _wait(
    folder: Path,
    orders: dict[str, Any],
    children: list[Child],
    selector: selectors.BaseSelector,
    log_read: int,
    log: CappedLog,
    stop: list[int],
) -> Watch:
    begun = moved = time.monotonic()
    several = orders["device"].startswith("cuda") and len(children) > 1
    grace = GRACE_SECONDS * (SEVERAL_CARDS if several else 1)
    last, next_memory, forwarded = None, begun, None
    verdict: Watch | None = None
    while True:
        for key, _ in selector.select(POLL_SECONDS):
            data = _read(key.fd)
            if data == b"":
                selector.unregister(key.fd)
            elif key.fd == log_read:
                log.write(data)
            else:
                next(c for c in children if c.pipe == key.fd).said += data
        now = time.monotonic()
        processes.collect(children, now)
        if all(child.exit_status is not None for child in children):
            break
        progress = read_progress(folder)
        alive = progress and (progress.step, progress.beats)  # rate and loss begin as NaN
        if alive != last:
            last, moved = alive, now
        if stop and forwarded is None:
            forwarded = now
            for child in children:
                processes.send(child, signal.SIGTERM)
        if now >= next_memory:
            next_memory = now + MEMORY_POLL_SECONDS
            used = confine.resident_bytes(confine.descendants(os.getpid()))
            if used > orders["memory_gib"] * 2**30:
                verdict = Watch(
                    "out_of_memory",
                    f"used {used / 2**30:.1f} GiB; the limit is {orders['memory_gib']:.1f} GiB",
                )
        if now - begun > orders["timeout"]:
            verdict = Watch("timeout", f"not finished after {orders['timeout']:g} s (--timeout)")
        elif now - moved > orders["stall"]:
            verdict = Watch("timeout", f"no step for {orders['stall']:g} s (--stall)")
        lost = [c for c in children if c.exit_status not in (None, 0)]
        overdue = lost and not forwarded and now - min(c.ended for c in lost) > 2.0
        if verdict or overdue or (forwarded and now - forwarded > grace):
            processes.kill(children)
    left = confine.kill_all(os.getpid())
    _drain(log_read, log)
    for child in children:
        child.said += _read(child.pipe) or b""
    verdict = verdict or _verdict(children)
    if left:
        verdict.notes.append(f"left {len(left)} processes behind; they were killed")
    if log.left_out:
        verdict.notes.append(f"printed {log.total / 2**20:.0f} MiB; the log keeps its two ends")
    return verdict


def _decisive(child: Child) -> tuple[bool, float, int]:
    """Order: what failed, the first to end first; then what went well, rank 0 first."""
    fine = child.exit_status == 0
    return (fine, 0.0 if fine else child.ended, child.rank)


def _verdict(children: list[Child]) -> Watch:
    """Return what the children said, the first that failed before the others."""
    for child in sorted(children, key=_decisive):
        try:
            outcome = json.loads(child.said)
            status, reason = outcome["status"], outcome["reason"]
        except (json.JSONDecodeError, KeyError, TypeError):
            return Watch("failed", _exit_text(child.exit_status))
        if status == "interrupted":  # where the worker was stopped itself, nobody reads this
            return Watch("failed", f"{reason}, which did not come from the worker")
        notes = [one_line(note) for note in outcome.get("notes", [])]
        return Watch(status, one_line(reason), outcome, notes)
    return Watch("failed", "no process was started")


def one_line(value: object) -> str:
    """Return a text from a plugin as one printable line of at most 500 characters."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(text.split())[:500]


def _exit_text(status: int | None) -> str:
    if status is not None and status < 0:
        known = {int(s): s.name for s in signal.Signals}
        return f"the plugin's process was killed by {known.get(-status, f'signal {-status}')}"
    return f"the plugin's process ended by itself with exit status {status}"


def _read(descriptor: int) -> bytes | None:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return None


def _drain(descriptor: int, log: CappedLog) -> None:
    while data := _read(descriptor):
        log.write(data)
