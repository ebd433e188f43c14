"""Windows of steps: when a cell is warm, in which order cells take turns, what their times say.

Pure functions of seconds, and of whatever measures a window: a process in `bench cost`, a script of
known answers in tests.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MODES = ("step", "pipeline")
LEAST_STEPS = 2  # of a window, however slow a step is


class Lost(Exception):
    """A cell can be measured no further: `status` and `reason` as its result will say."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Timed(Protocol):
    """Something that takes steps on command."""

    def window(self, mode: str, steps: int) -> float:
        """Take `steps` steps and return the seconds until the last one's work was done.

        Raises:
            Lost: it ended instead.
        """


@dataclass(frozen=True)
class Warmth:
    """What came before the first measured window of one mode.

    Attributes:
        first_seconds: the first step, with all that is compiled, tuned or allocated at it.
        steps: of each later window.
        seconds: of the warm-up's windows, in order.
        reached: whether the last of them agreed; if not, the limit ended the warm-up.
    """

    first_seconds: float
    steps: int
    seconds: tuple[float, ...]
    reached: bool


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some values."""

    median: float
    low: float
    high: float


def agree(seconds: Sequence[float], count: int, tolerance: float) -> bool:
    """Return whether the last `count` windows differ by at most `tolerance` of their median."""
    last = seconds[-count:]
    if len(last) < count:
        return False
    return max(last) - min(last) <= tolerance * statistics.median(last)


def window_steps(
    step_seconds: float, wanted: int, most_seconds: float | None, least: int = LEAST_STEPS
) -> int:
    """Return the steps of a window: `wanted`, or as many as fit `most_seconds`, but `least`.

    Args:
        step_seconds: of one step, roughly.
        most_seconds: None where a window may take as long as it does.
    """
    if most_seconds is None or step_seconds * wanted <= most_seconds:
        return wanted
    return min(wanted, max(least, int(most_seconds / step_seconds)))


def begin(cell: Timed, settings: Mapping[str, Any], *, bounded: bool) -> dict[str, Warmth]:
    """Take a cell's first steps and warm it up, mode by mode.

    Args:
        settings: of the protocol `cost`.
        bounded: whether `cpu_window_seconds` shortens its windows.

    Raises:
        Lost: as `Timed.window`.
    """
    first = {mode: cell.window(mode, 1) for mode in MODES}
    return {mode: _warm(cell, mode, first[mode], settings, bounded) for mode in MODES}


def _warm(
    cell: Timed, mode: str, first: float, settings: Mapping[str, Any], bounded: bool
) -> Warmth:
    rough = cell.window(mode, LEAST_STEPS) / LEAST_STEPS
    most = settings["cpu_window_seconds"] if bounded else None
    steps = window_steps(rough, settings["window_steps"], most)
    seconds: list[float] = []
    reached = False
    while not reached and len(seconds) < settings["warm_limit"]:
        seconds.append(cell.window(mode, steps))
        reached = agree(seconds, settings["warm_windows"], settings["warm_tolerance"])
    return Warmth(first, steps, tuple(seconds), reached)


def order(cells: Sequence[str], rounds: int) -> Iterator[tuple[str, str]]:
    """Yield (cell, mode) in turns: A's two modes, B's two modes, A's again, for some rounds."""
    for _ in range(rounds):
        for cell in cells:
            for mode in MODES:
                yield cell, mode


def take_turns(
    cells: Mapping[str, Timed], warmth: Mapping[str, Mapping[str, Warmth]], rounds: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Lost]]:
    """Measure warm cells in turns; return seconds of windows by cell and mode, and who was lost.

    A cell that is lost ends alone; what it had until then is left out.
    """
    seconds = {cell: {mode: [] for mode in MODES} for cell in cells}
    lost: dict[str, Lost] = {}
    for cell, mode in order(list(cells), rounds):
        if cell in lost:
            continue
        try:
            taken = cells[cell].window(mode, warmth[cell][mode].steps)
        except Lost as end:
            lost[cell] = end
            continue
        seconds[cell][mode].append(taken)
    return {cell: found for cell, found in seconds.items() if cell not in lost}, lost


def rates(seconds: Sequence[float], steps: int, images: int) -> list[float]:
    """Return images per second of each window of `steps` steps over `images` source images."""
    return [steps * images / taken for taken in seconds]


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles (linear between the values, the extremes counted in)."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def efficiency(pipeline: Sequence[float], step: Sequence[float]) -> float:
    """Return the harness's own efficiency: the median over rounds of a round's pipeline rate over
    its step rate, images per second each. 1 where views and bookkeeping cost nothing."""
    return statistics.median(p / s for p, s in zip(pipeline, step, strict=True))


def epochs_seconds(rate: float, cards: int, num_images: int, epochs: int) -> float:
    """Return the seconds of `epochs` epochs on `cards` cards of `rate` images per second each."""
    return epochs * num_images / (rate * cards)


def utilisation(rate: float, flops_per_image: float, peak: float) -> float:
    """Return the share of a card's peak FLOP/s that training takes; `rate` in images/s."""
    return rate * flops_per_image / peak


def busy_cores(
    before: Sequence[int], after: Sequence[int], own_seconds: float, wall: float, ticks: int
) -> float:
    """Return how many cores others kept busy, 0 or more.

    Args:
        before, after: the numbers of the line `cpu` of /proc/stat: user, nice, system, idle,
            iowait, irq, softirq, steal, and guest times, which user has in it.
        own_seconds: processor time of the measured process in between.
        wall: seconds in between.
        ticks: per second, of /proc/stat.
    """
    spent = [b - a for a, b in zip(before, after, strict=True)]
    worked = sum(spent[:3]) + sum(spent[5:8])
    return max(0.0, (worked / ticks - own_seconds) / wall)
