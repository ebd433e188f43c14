"""A measured cell's process, seen from outside: start it, order windows, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import smi, timing
from bench.timing import Lost

POLL_SECONDS = 0.5


class CellProcess:
    """A fresh process that holds one cell and takes windows on command.

    Args:
        folder: its own, the only place where it may write.
        plugin: an installed name or a file's path.
        spec: of the cell, as `bench.costs.Spec` has it.
        settings: of the protocol.
        stall: seconds that a window may take.
        limit: bytes of memory that the process may hold; more ends it.
        uuid: of the card, "" on a CPU.
        stored: channels and side of the images that views crop from; None: as the spec has them.
    """

    def __init__(
        self,
        folder: Path,
        plugin: str,
        spec: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        stall: float,
        limit: float,
        uuid: str = "",
        stored: tuple[int, int] | None = None,
    ) -> None:
        self.stall, self.limit, self.uuid = stall, limit, uuid
        self.allocated = dict.fromkeys(timing.MODES, 0)
        self.reserved = dict.fromkeys(timing.MODES, 0)
        self.rss = 0
        self.busy: list[float] = []
        orders = {"plugin": plugin, "spec": dict(spec), "settings": dict(settings)}
        orders["stored"] = stored or (3, spec["image_size"])
        (folder / "cell.json").write_text(json.dumps(orders))
        ours, its = socket.socketpair()
        with its, (folder / "log").open("wb") as log:
            arguments = [str(folder), str(its.fileno()), str(os.getpid())]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.measuring", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": str(spec["threads"])},
                pass_fds=(its.fileno(),),
                start_new_session=True,  # Ctrl-C is ours to answer
            )
        self.link = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self.process.pid

    def window(self, mode: str, steps: int) -> float:
        """See `bench.timing.Timed`; a window's peaks and the load by others are kept."""
        before, begun = cpu_ticks(), time.monotonic()
        answer = self.ask({"mode": mode, "steps": steps})
        wall, after = time.monotonic() - begun, cpu_ticks()
        self.rss = max(self.rss, answer.get("rss", 0))
        for name in ("allocated", "reserved"):
            peaks = getattr(self, name)
            peaks[mode] = max(peaks[mode], answer.get(name, 0))
        if before and after:
            ticks = os.sysconf("SC_CLK_TCK")
            worked = answer["worked"]
            self.busy.append(timing.busy_cores(before, after, worked, wall, ticks))
        return float(answer["seconds"])

    def flops(self, steps: int) -> float:
        """Return the mean FLOPs of `steps` steps, as torch counts them: a multiplication and an
        addition are 2.

        Raises:
            Lost: as `window`.
        """
        return self.ask({"flops": steps})["flops"] / steps

    def end(self) -> dict[str, Any]:
        """Let it end; return what it says of what it built."""
        return self.ask({"end": True})

    def forget_load(self) -> None:
        """Drop the load by others of the windows until now: those of the warm-up."""
        self.busy = []

    def busy_cores(self) -> float | None:
        """Return the median load by others over the windows; None where the kernel does not say."""
        return statistics.median(self.busy) if self.busy else None

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to an order.

        Raises:
            Lost: it said that it cannot go on, or it ended, held too much or took too long.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.link.send_bytes(json.dumps(order).encode())
        answer = json.loads(self._receive())
        if "lost" in answer:
            raise Lost(answer["lost"], answer["reason"])
        return answer

    def _receive(self) -> bytes:
        until = time.monotonic() + self.stall
        while not self.link.poll(POLL_SECONDS):
            if time.monotonic() > until:
                raise Lost("failed", f"no window ended within {self.stall:g} s (--stall)")
            held = resident(self.pid)
            if held > self.limit:
                text = f"held {held / 2**30:.1f} GiB; {self.limit / 2**30:.1f} GiB were free"
                raise Lost("out_of_memory", text)
        try:
            return self.link.recv_bytes()
        except (EOFError, ConnectionResetError):
            status = self.process.wait()
            killed = status == -signal.SIGKILL  # by the kernel, which was out of memory
            text = f"its process ended by itself with exit status {status}"
            raise Lost("out_of_memory" if killed else "failed", text) from None

    def holders(self) -> list[smi.Holder]:
        """Return the processes on the card; none on a CPU or where the driver does not say."""
        return (smi.holders(self.uuid) or []) if self.uuid else []

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.link.close()


def resident(pid: int) -> int:
    """Return the bytes that a process holds in memory now; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_ticks() -> list[int]:
    """Return the numbers of the line `cpu` of /proc/stat; none where there is none."""
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0].split()
    except OSError:
        return []
    return [int(value) for value in first[1:]] if first[:1] == ["cpu"] else []
