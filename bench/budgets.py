"""What a run may spend, and how many optimiser steps that is.

A budget counts images drawn (as epochs, steps or images), training FLOPs, or seconds of a device.
Whatever it counts becomes a number of steps before the run, which is what is recorded and resumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import UnknownName, UserError

KINDS = ("epochs", "steps", "images", "flops", "device_seconds")
PRICED = ("flops", "device_seconds")  # how many steps one buys depends on the method
WHOLE = ("epochs", "steps", "images", "flops")
WARMUP = (2, 3)  # of a run's steps at most, unless its warm-up was asked for

Budget = Mapping[str, float]
"""One of `KINDS` and how much of it."""


@dataclass(frozen=True)
class Price:
    """What a method's training costs at its batch size.

    Attributes:
        images_per_unit: source images that it trains on with one unit of the budget, a FLOP or a
            second.
        flops_per_image: training FLOPs for each source image, forward and backward.
        parameters: of the backbone.
        note: what a row says of it, "" for nothing.
    """

    images_per_unit: float
    flops_per_image: float = 0.0
    parameters: int = 0
    note: str = ""

    def flops(self, images: int) -> float:
        """Return the training FLOPs of so many source images."""
        return self.flops_per_image * images


def parse(text: str) -> dict[str, float]:
    """Return the budget of `KIND=AMOUNT`: `epochs=3`, `flops=2.5e15`, `device-seconds=60`.

    Raises:
        UnknownName: another kind.
        UserError: another form, an amount of 0 or less, or a part of an epoch, step or image.
    """
    number = r"[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][+]?[0-9]{1,3})?"
    match = re.fullmatch(rf"([a-z_-]+)=({number})", text)
    if not match:
        raise UserError(f"--budget {text!r}: expected KIND=AMOUNT, as epochs=3 or flops=2.5e15")
    kind, amount = match[1].replace("-", "_"), float(match[2])
    if kind not in KINDS:
        raise UnknownName("kind of budget", match[1], [name.replace("_", "-") for name in KINDS])
    if not 0 < amount < 1e30:
        raise UserError(f"--budget {text!r}: the amount must be above 0, and below 1e30")
    if kind in WHOLE:
        if amount != int(amount):
            raise UserError(f"--budget {text!r}: {kind} come whole")
        amount = int(amount)
    return {kind: amount}


def total_steps(
    budget: Budget, num_images: int, batch_size: int, *, images_per_unit: float | None = None
) -> int:
    """Return the budget in optimiser steps; an epoch has `num_images // batch_size` of them.

    Args:
        images_per_unit: source images that one FLOP, or one second, trains on; needed where the
            budget counts those.

    Raises:
        UserError: the batch is larger than the training set or than the budget.
        ValueError: the budget has a price and none is given.
    """
    if batch_size > num_images:
        raise UserError(
            f"batch size {batch_size} is larger than the {num_images} training images; "
            "lower --batch-size or raise --limit"
        )
    kind, amount = next(iter(budget.items()))
    if kind == "steps":
        return int(amount)
    if kind == "epochs":
        return int(amount) * (num_images // batch_size)
    images = amount
    if kind in PRICED:
        if images_per_unit is None or images_per_unit <= 0:
            raise ValueError(f"a budget of {kind} needs what a method makes of one")
        images = amount * images_per_unit
    if images < batch_size:
        bought = f", {images:.3g} images here," if kind in PRICED else ""
        raise UserError(
            f"a budget of {words(budget)}{bought} is less than one batch of {batch_size}"
        )
    return int(images / batch_size + 1e-9)


def shortened(
    config: Mapping[str, Any], recipe: Mapping[str, Any], steps: int, steps_per_epoch: int
) -> tuple[dict[str, Any], str]:
    """Return a configuration whose warm-up leaves a third of the run, and what a row says of that.

    A recipe warms up for epochs, which fill a run of fewer: its rate would only rise. A value that
    is not the recipe's was asked for and stays.

    Args:
        config: with `warmup_epochs` where the method has a warm-up; of one that trains in stages it
            is held against the whole run.
        recipe: what `config` started from.
    """
    epochs = config.get("warmup_epochs")
    most = WARMUP[0] * steps // WARMUP[1]
    unasked = epochs is not None and epochs == recipe.get("warmup_epochs")
    if not unasked or most == 0 or round(epochs * steps_per_epoch) <= most:
        return dict(config), ""
    fitting = round(most / steps_per_epoch, 6)
    if isinstance(epochs, int):  # as the method's field has it
        fitting = most // steps_per_epoch
    note = f"warm-up cut from {epochs:g} to {fitting:.3g} epochs, two thirds of its {steps} steps"
    return dict(config) | {"warmup_epochs": fitting}, note


def words(budget: Budget) -> str:
    """Return a budget as pages say it: `3 epochs`, `2.5 TFLOP`, `60 device-seconds`."""
    kind, amount = next(iter(budget.items()))
    if kind == "flops":
        return flops_words(amount)
    return f"{amount:g} device-seconds" if kind == "device_seconds" else f"{amount} {kind}"


def flops_words(flops: float) -> str:
    """Return FLOPs with the prefix that leaves one to three digits: `2.5 TFLOP`."""
    power = min(max(int(math.log10(flops) // 3), 0), 6) if flops >= 1 else 0
    return f"{flops / 1000**power:.4g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}FLOP"
