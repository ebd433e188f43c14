"""The timed trial behind `precision = "auto"`: a backbone's whole step, in fp32 and in bf16."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench import backbones, optimizers
from bench.errors import UserError
from bench.identity import stream
from bench.precision import Round, rounds_of
from bench.seeing import layout

QUIET_SECONDS = 10.0  # between two lines of a long trial
RATE = 1e-6  # the weights stay where they are


class Step:
    """Steps of a backbone on noise as a run takes them: autocast or not, backward, SGD.

    The weights are the same in both precisions; only the passes differ, as in `bench.engine`. Views
    and the method's own parts are left out: they dilute a difference and do not turn it.

    Args:
        backbone: as `bench.backbones.build` takes it.
        device: "cpu" or "cuda".
        clock: seconds.
        synchronise: waits until the device has done what it was given.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        image_size: int,
        batch_size: int,
        device: str = "cpu",
        *,
        clock: Callable[[], float] = time.perf_counter,
        synchronise: Callable[[], None] | None = None,
    ) -> None:
        torch.manual_seed(stream(0, "init"))
        self.device = torch.device(device)
        self.clock = clock
        on_card = self.device.type == "cuda"
        self.synchronise = synchronise or (torch.cuda.synchronize if on_card else lambda: None)
        model = backbones.build(backbone, image_size).train()
        convolutional = any(isinstance(m, torch.nn.Conv2d) for m in model.modules())
        form = torch.channels_last if convolutional else torch.preserve_format
        self.model = model.to(self.device, memory_format=form)
        images = torch.randn(batch_size, 3, image_size, image_size)  # (B, 3, H, W)
        self.images = layout(images.to(self.device))
        groups = optimizers.parameter_groups(self.model, 1e-4, True)
        self.optimizer = optimizers.build("sgd", groups, RATE, {})
        with torch.no_grad():
            self.direction = torch.randn_like(self.model(self.images))  # (B, D)

    def window(self, mode: str, steps: int) -> float:
        """See `bench.timing.Timed`; the mode is fp32 or bf16."""
        self.synchronise()
        begun = self.clock()
        for _ in range(steps):
            self._take(mode)
        self.synchronise()
        return self.clock() - begun

    def _take(self, mode: str) -> None:
        half = mode == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            features = self.model(self.images)
        loss = (features.float() * self.direction).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


class Telling:
    """A step that says now and then how it goes on.

    Args:
        say: told a line where `QUIET_SECONDS` went by without one.
    """

    def __init__(self, step: Step, say: Callable[[str], None]) -> None:
        self.step, self.say = step, say
        self.last = step.clock()

    def window(self, mode: str, steps: int) -> float:
        """See `bench.timing.Timed`."""
        seconds = self.step.window(mode, steps)
        now = self.step.clock()
        if now - self.last >= QUIET_SECONDS:
            self.last = now
            self.say(f"precision auto: a step in {mode} took {seconds / steps:.3g} s")
        return seconds


def run(asked: dict[str, Any], say: Callable[[str], None]) -> list[Round]:
    """Return the rounds of a trial, made in this process.

    Args:
        asked: {"backbone", "image_size", "batch_size", "device", "threads"}.
        say: as of `Telling`.

    Raises:
        UserError: the backbone cannot be built, or the device has not enough memory for a step.
    """
    torch.set_num_threads(asked["threads"])
    try:
        step = Step(**{key: value for key, value in asked.items() if key != "threads"})
        return rounds_of(Telling(step, say))
    except (RuntimeError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the trial of fp32 against bf16 at {asked['image_size']} px and batch "
            f"{asked['batch_size']} ended: {first[:200]}; give --precision fp32 or bf16"
        ) from error
