"""How long planned runs will take, by what such runs took before.

Imports no torch. What is said is no promise: another machine, or other work beside, changes it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import results
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.plan import RunSpec
    from bench.results import Result

SAME = ("backbone", "image_size", "precision", "threads")  # of the spec, or it says nothing
TRIED = "studies/trials", "studies/results", "tuning"  # beside the results of runs and of boards


@dataclass(frozen=True)
class Expected:
    """What some runs will take together.

    Attributes:
        core_seconds: of the runs of which something is known, each times its threads.
        unknown: the methods of the others, by name, each with its number of runs.
        earlier: how many finished runs say so.
        seconds: of each run of which something is known, by its id; wall seconds.
    """

    core_seconds: float
    unknown: dict[str, int]
    earlier: int
    seconds: dict[str, float]

    def __str__(self) -> str:
        """As in "about 2.4 core-hours, as 18 earlier runs took; 3 runs of mine: unknown"."""
        parts = []
        if self.earlier:
            hours = self.core_seconds / 3600
            amount = f"{hours:.1f} core-hours" if hours >= 1 else f"{60 * hours:.0f} core-minutes"
            runs = "1 earlier run" if self.earlier == 1 else f"{self.earlier} earlier runs"
            parts.append(f"about {amount}, as {runs} took")
        for method, count in self.unknown.items():
            parts.append(f"{count} run{'s' * (count > 1)} of {method}: unknown")
        return "; ".join(parts) or "nothing"


def expected(
    specs: Iterable[RunSpec], folders: Sequence[Path], processor: str = "", device: str = "cpu"
) -> Expected:
    """Return what runs will take by the finished runs that lie in `folders`.

    A run's training is that of runs with its method, backbone, image size, precision and threads,
    by the number of images; those of the same processor, data and batch size say it first. Its
    evaluations are those of the same names. Of several runs it is the median.

    Args:
        folders: of runs or of boards: with `results/`, and with `studies/` where there are claims.
        processor: this machine's, as results name it.
        device: "cpu", or "cuda" for runs on any card.
    """
    known: dict[str, list[Result]] = {}
    seconds, unknown, used = dict[str, float](), dict[str, int](), set[str]()
    together = 0.0
    for spec in specs:
        method = spec.spec["method"]
        if method not in known:
            known[method] = [r for r in _finished(method, folders) if _ran_on(r, device)]
        alike = _nearest(spec.spec, known[method], processor)
        if not alike:
            unknown[method] = unknown.get(method, 0) + 1
            continue
        asked = {evaluation["name"] for evaluation in spec.evaluations}
        took = statistics.median(_seconds(spec.spec, asked, result) for result in alike)
        together += took * spec.spec["threads"]
        seconds[spec.run_id] = took
        used |= {result.content_sha256 for result in alike}
    return Expected(together, dict(sorted(unknown.items())), len(used), seconds)


class Remaining:
    """What is left of some runs, by what was expected and how long those that ended took here.

    Args:
        seconds: run id -> what it is expected to take; runs of which nothing is known are left out.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._to_come = dict(seconds)
        self._took = self._said = 0.0

    def ended(self, run_id: str, took: float | None) -> None:
        """Note that a run ended, after `took` seconds; None if it ended before or badly."""
        said = self._to_come.pop(run_id, None)
        if said and took is not None:
            self._took, self._said = self._took + took, self._said + said

    def left(self, active: Mapping[str, float], waiting: int) -> float | None:
        """Return the seconds until all runs have ended, or None where one of them is unknown.

        Args:
            active: the runs under way: run id -> seconds since it began.
            waiting: how many have not begun.
        """
        if not active or len(self._to_come) < len(active) + waiting:
            return None
        pace = self._took / self._said if self._said else 1.0
        left = {run: max(0.0, pace * s - active.get(run, 0.0)) for run, s in self._to_come.items()}
        return max(sum(left.values()) / len(active), *(left.get(run, 0.0) for run in active))


def _finished(method: str, folders: Sequence[Path]) -> Iterable[Result]:
    once = dict.fromkeys(folder.resolve() for folder in folders)
    places = [folder / name for folder in once for name in ("results", *TRIED)]
    for place in places:
        for file in sorted(place.glob(f"*/{method}-s*.json")):
            try:
                found = results.read(file)
            except UserError:
                continue
            if found.status == "done" and found.method == method:
                yield found


def _ran_on(result: Result, device: str) -> bool:
    return (result.machine.device == "cpu") == (device == "cpu")


def _nearest(spec: dict[str, Any], known: Sequence[Result], processor: str) -> list[Result]:
    alike = [r for r in known if all(r.spec.get(key) == spec.get(key) for key in SAME)]
    if _images(spec):
        alike = [r for r in alike if _images(r.spec)]

    def agreeing(result: Result) -> int:
        here = result.machine.processor == processor
        data = result.spec["data"]["name"] == spec["data"]["name"]
        return 4 * here + 2 * data + (result.spec["batch_size"] == spec["batch_size"])

    most = max(map(agreeing, alike), default=0)
    return [result for result in alike if agreeing(result) == most]


def _images(spec: dict[str, Any]) -> int:
    return spec["budget"]["steps"] * spec["batch_size"]


def _seconds(spec: dict[str, Any], asked: set[str], result: Result) -> float:
    """Return what a run will take if it goes as this one did."""
    cost, images = result.cost, _images(result.spec)
    training = cost.train_seconds * _images(spec) / images if images else 0.0
    others = sum(entry.seconds for entry in result.evaluations.values() if entry.id not in asked)
    return training + max(0.0, cost.wall_seconds - cost.train_seconds - others)
