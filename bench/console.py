"""What `bench run` says while it works: a line per finished run; on a terminal a live line each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bench.expected import Remaining
from bench.meters import read_progress
from bench.runner import Active, seconds_left

if TYPE_CHECKING:
    from bench.plan import RunSpec
    from bench.results import Result


class Console:
    """Counts runs as they finish and shows those under way.

    Args:
        total: runs, finished ones among them.
        say: takes one plain line.
        live: whether a terminal is there to redraw.
        seconds: run id -> what a run that is to come will take, where that is known.
    """

    def __init__(
        self,
        total: int,
        say: Callable[[str], None],
        *,
        live: bool,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.say, self.total, self.done = say, total, 0
        self.remaining = Remaining(seconds or {})
        self.begun = time.monotonic()
        self._live: Any = None
        if live:
            from rich.live import Live

            self._live = Live(refresh_per_second=5, transient=True)

    def __enter__(self) -> Console:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def finished(self, spec: RunSpec, result: Result | None, skipped: bool) -> None:
        """Say what became of a run."""
        self.done += 1
        good = result is not None and result.status == "done" and not skipped
        self.remaining.ended(spec.run_id, result.cost.wall_seconds if result and good else None)
        name = f"{spec.spec['method']} seed {spec.spec['seed']}"
        line = f"[{self.done}/{self.total}] {name}: {outcome(result)}"
        self.print(line + (" (finished before)" if skipped else ""))

    def watching(self, active: list[Active], waiting: int) -> None:
        """Redraw the runs under way."""
        if self._live is None:
            return
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for run in active:
            table.add_row(*describe(run))
        now = time.monotonic()
        left = self.remaining.left({run.spec.run_id: now - run.begun for run in active}, waiting)
        ahead = "" if left is None else f"about {duration(left)} left in all"
        table.add_row(f"{waiting} waiting", f"{duration(now - self.begun)} so far", ahead)
        self._live.update(table)

    def print(self, line: str) -> None:
        if self._live is None:
            self.say(line)
        else:
            self._live.console.print(line, markup=False, highlight=False)


def outcome(result: Result | None) -> str:
    """Return a run's result in a line."""
    if result is None:
        return "no result: its worker ended early"
    if result.status != "done":
        return f"{result.status}: {result.reason}"
    scores = [
        f"{entry.id} {name.removesuffix('_top1')} {value:.1f}"
        for entry in result.evaluations.values()
        for name, value in (entry.metrics or entry.validation).items()
        if name in ("best_top1", "top1", "k10_top1", "kid")
    ]
    return f"{', '.join(scores)} ({duration(result.cost.wall_seconds)})"


def describe(run: Active) -> tuple[str, ...]:
    """Return the cells of a live line: name, step, loss, images/s, time left."""
    name, progress = run.spec.run_id.rpartition("-")[0], read_progress(run.folder)
    if progress is None or not progress.steps:
        return (name, "starting")
    if progress.step == progress.steps:
        return (name, "evaluating")
    left = seconds_left(run)
    loss = "" if math.isnan(progress.loss) else f"loss {progress.loss:.4g}"
    rate = progress.images_per_second
    speed = "" if math.isnan(rate) else f"{rate:.0f} images/s"
    step = f"step {progress.step}/{progress.steps}"
    return (name, step, loss, speed, "" if left is None else f"{duration(left)} left")


def duration(seconds: float) -> str:
    """Return a duration as 12 s, 3 min 20 s or 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
