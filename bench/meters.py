"""What a run records while it trains: metrics.jsonl, the progress record, the billed clock."""

from __future__ import annotations

import json
import os
import resource
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.files import write_atomically

if TYPE_CHECKING:
    import torch

RECORD = struct.Struct("<qqddq")  # step, steps, images per second, loss, beats


class Progress(NamedTuple):
    """How far a run is; loss and images_per_second are NaN before the first log interval.

    `beats` counts signs of life outside training, as while samples are drawn.
    """

    step: int
    steps: int
    images_per_second: float
    loss: float
    beats: int = 0


def read_progress(folder: Path) -> Progress | None:
    """Return what the run in `folder` last recorded, or None before its first step."""
    try:
        content = (folder / "progress").read_bytes()
    except OSError:
        return None
    return Progress(*RECORD.unpack(content)) if len(content) == RECORD.size else None


def read_metrics(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics.jsonl; an unfinished last line is left out."""
    try:
        lines = (folder / name).read_text().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def peak_gib(device: str) -> float:
    """Return the most memory that this process has held: of its card, else of the host."""
    if not device.startswith("cuda"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


class Meter:
    """Writes a run's records, and bills only the time between `start` and `stop`."""

    def __init__(
        self, folder: Path, steps: int, batch_size: int, *, write: bool, device: str = "cpu"
    ) -> None:
        self.device, self.earlier_peak = device, 0.0
        self.folder, self.steps, self.batch_size, self.write = folder, steps, batch_size, write
        self.seconds = 0.0
        self.windows: list[float] = []
        self.passes = {"with_grad": 0.0, "without_grad": 0.0}
        self.health: dict[str, float] = {}
        self.rate = self.loss = float("nan")
        self.beats = 0
        self.updates = 0  # of any optimizer
        self._pending: dict[str, torch.Tensor | float] = {}
        self._loss_sum: torch.Tensor | float | None = None
        self._loss_count = 0
        self._window_start = (0, 0.0)
        self._started: float | None = None
        self._progress = (
            os.open(folder / "progress", os.O_WRONLY | os.O_CREAT, 0o644) if write else None
        )

    def resume(self, state: dict[str, Any], step: int) -> None:
        """Go on from a checkpoint's clock and sums; lines of the records after `step` go."""
        self.seconds = state.get("seconds", 0.0)
        self.windows = list(state.get("windows", []))
        self.passes.update(state.get("passes", {}))
        self.health = dict(state.get("health", {}))
        self.updates = state.get("updates", step)
        self.earlier_peak = state.get("peak_gib", 0.0)
        self._window_start = (step, self.seconds)
        self._pending = dict(state.get("pending", {}))
        if "loss" in state:
            self._loss_count, self._loss_sum = state["loss"]
        for name in ("metrics.jsonl", "health.jsonl") if self.write else ():
            kept = [row for row in read_metrics(self.folder, name) if row["step"] <= step]
            if kept or (self.folder / name).exists():
                text = "".join(json.dumps(row) + "\n" for row in kept)
                write_atomically(self.folder / name, text.encode())

    def state(self) -> dict[str, Any]:
        """Return what `resume` goes on from; waits for the device."""
        total = self._loss_sum
        return {
            "pending": {name: float(value) for name, value in self._pending.items()},
            **({} if total is None else {"loss": (self._loss_count, float(total))}),
            "seconds": self.seconds,
            "windows": self.windows,
            "passes": dict(self.passes),
            "health": self.health,
            "peak_gib": self.peak_gib,
            "updates": self.updates,
        }

    @property
    def peak_gib(self) -> float:
        """The most memory that a process of this run has held, those before a resume too."""
        return max(self.earlier_peak, peak_gib(self.device))

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self._started = None

    def record(self, step: int) -> None:
        """Leave a sign of life: the step count, read by whoever watches the run."""
        if self._progress is not None:
            record = RECORD.pack(step, self.steps, self.rate, self.loss, self.beats)
            os.pwrite(self._progress, record, 0)

    def beat(self, step: int) -> None:
        """Leave a sign of life of what is no training."""
        self.beats += 1
        self.record(step)

    def record_health(self, step: int, values: dict[str, float]) -> None:
        """Keep the newest diagnostics of the features and append them to health.jsonl."""
        self.health = {name: float(value) for name, value in values.items()}
        row = {"step": step} | {name: _plain(value) for name, value in self.health.items()}
        with (self.folder / "health.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def add_loss(self, loss: torch.Tensor) -> None:
        """Count an update, and its loss for the next line."""
        self.updates += 1
        loss = loss.detach().float()
        self._loss_sum = loss.clone() if self._loss_sum is None else loss + self._loss_sum
        self._loss_count += 1

    def add(self, scalars: dict[str, Any]) -> None:
        for name, value in scalars.items():
            # A clone: what a compiled network gives is overwritten by its next call on CUDA.
            self._pending[name] = value.detach().clone() if hasattr(value, "detach") else value

    def flush(self, step: int) -> None:
        """Write one line of metrics.jsonl: means of the loss since the last, newest of the rest."""
        before, seconds = self._window_start
        if self.seconds > seconds and step > before:
            self.rate = (step - before) * self.batch_size / (self.seconds - seconds)
            self.windows = [*self.windows[-255:], self.rate]
        self._window_start = (step, self.seconds)
        row: dict[str, Any] = {"step": step, "images_per_second": _plain(self.rate)}
        if self._loss_sum is not None:
            self.loss = float(self._loss_sum) / self._loss_count
            row["loss"] = _plain(self.loss)
        row |= {name: _plain(float(value)) for name, value in self._pending.items()}
        self._loss_sum, self._loss_count, self._pending = None, 0, {}
        if self.write:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


def _plain(value: float) -> float | str:
    return round(value, 6) if value == value and abs(value) != float("inf") else str(value)
