"""The engine of a measured cell: the real one, whose steps are taken on command.

The plugin's own `pretrain` runs its own loop over `batches`; between two windows it waits there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import flops
from bench.augment import identity
from bench.engine import Trainer
from bench.hookspecs import Batch, View
from bench.identity import stream

Ask = Callable[[], dict[str, Any]]
Tell = Callable[[dict[str, Any]], None]


class Finished(BaseException):
    """No more windows are wanted; leaves the plugin's loop."""


class Stored:
    """Images (N, C, S, S) of which only some differ: image i is `base[i % len(base)]`.

    Says to be as large as all N would be, so that the engine treats it as it would treat them.
    """

    def __init__(self, base: np.ndarray, num_images: int) -> None:
        self.base, self.num_images = base, num_images
        self.shape = (num_images, *base.shape[1:])
        self.nbytes = base.nbytes // len(base) * num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.base[indices % len(self.base)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.base, dtype=dtype)


def stored(image_size: int, settings: dict[str, Any], *, channels: int = 3) -> Stored:
    """Return noise, uint8, `stored_mib` of it, as the `num_images` images of a data set."""
    count = settings["stored_mib"] * 2**20 // (channels * image_size**2)
    count = max(1, min(count, settings["num_images"]))
    generator = np.random.Generator(np.random.PCG64(stream(0, "views", "stored")))
    shape = (count, channels, image_size, image_size)
    base = generator.integers(0, 256, shape, dtype=np.uint8)
    return Stored(base, settings["num_images"])


class Gauge(Trainer):
    """A `Trainer` that takes windows of steps as `ask` says and answers each with `tell`.

    Orders: {"mode": "step" or "pipeline", "steps": n} is a window; {"flops": n} counts
    those of n steps; {"end": true} raises `Finished`. In the mode `step` the plugin gets one ready
    batch again and again, the last that was drawn, in `pipeline` what a run would give it: images
    drawn and seen, seeds, logs, signals. Both take the whole step of the plugin: passes, loss,
    backward, update, averages.

    Args:
        images: as of `stored`.
        ask, tell: to and from whoever measures.
        clock: seconds.
    """

    def __init__(
        self,
        images: Stored,
        labels: np.ndarray | None,
        num_classes: int | None,
        *,
        ask: Ask,
        tell: Tell,
        clock: Callable[[], float] = time.perf_counter,
        **engine: Any,
    ) -> None:
        super().__init__(images, labels, num_classes, checkpoint_seconds=float("inf"), **engine)  # type: ignore[arg-type]
        self.ask, self.tell, self.clock = ask, tell, clock
        self.on_card = images.base.nbytes if self._store.tensor is not None else 0
        self._different = len(images.base)
        self.earlier_stages = 0

    def _indices(self, step: int) -> np.ndarray:
        return super()._indices(step) % self._different

    def batches(self, views: tuple[View, ...] = (identity,), until: float = 1.0) -> Iterator[Batch]:
        """Yield batches as ordered, for ever; of a stage before the last, one.

        Raises:
            Finished: no more are wanted.
        """
        drawn = super().batches(views, until)
        ready = next(drawn)
        if until < 1.0:
            self.earlier_stages += 1
            self.step_index = round(until * self.steps)
            yield ready
            return
        for mode in self._turns():
            if mode == "step" and self.compiler is not None:
                self.compiler.begin_step()
            if mode == "pipeline":
                ready = next(drawn)  # kept for both: a run never holds a second batch of views
            yield ready

    def _turns(self) -> Iterator[str]:
        while "end" not in (order := self.ask()):
            if "flops" in order:
                with flops.counter() as counter:
                    for _ in range(order["flops"]):
                        yield "step"
                self.tell({"flops": counter.get_total_flops()})
                continue
            self._reset_peaks()
            self._synchronise()
            begun, worked = self.clock(), time.process_time()
            for _ in range(order["steps"]):
                yield order["mode"]
            self._synchronise()
            seconds = self.clock() - begun
            self.tell({"seconds": seconds, "worked": time.process_time() - worked} | self._peaks())
        raise Finished

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_peaks(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peaks(self) -> dict[str, int]:
        if self.device.type != "cuda":
            return {"rss": peak_rss()}
        return {
            "allocated": torch.cuda.max_memory_allocated(self.device),
            "reserved": torch.cuda.max_memory_reserved(self.device),
        }


def peak_rss(status: Path = Path("/proc/self/status")) -> int:
    """Return the most bytes that this process has held in memory since it began.

    Not `getrusage`: its figure counts what the process was before it executed this program.
    """
    lines = status.read_text().splitlines()
    found = next(line for line in lines if line.startswith("VmHWM:"))
    return int(found.split()[1]) * 1024
