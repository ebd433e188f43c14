"""Cells that are estimated: the bytes of a step by category, and the largest batch that fits."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from bench import timing
from bench.costs import Spec
from bench.errors import UserError

UNIT, MOST = 8, 2**16  # images per card between two candidates for the largest batch; the largest

Estimator = Callable[[str, Spec, int], dict[str, int]]
"""(plugin, spec, images per card) -> bytes on one card by category, at the peak of a step.

Raises UserError where a step cannot be estimated."""


@contextlib.contextmanager
def estimator() -> Iterator[Estimator | None]:
    """Yield what estimates cells, None where this version of `bench` has no estimates."""
    if importlib.util.find_spec("bench.memory") is None:
        yield None
        return
    from bench import memory

    with contextlib.ExitStack() as stack:
        asks: dict[str, Any] = {}

        def estimate(plugin: str, spec: Spec, per_card: int) -> dict[str, int]:
            if plugin not in asks:  # a process for each method's code
                asks[plugin] = stack.enter_context(memory.estimator())
            step = memory.Step(
                plugin,
                backbone=spec.backbone["name"],
                image_size=spec.image_size,
                batch_size=per_card * spec.cards,
                cards=spec.cards,
                recipe=spec.recipe,
                precision=spec.precision,
            )
            found = asks[plugin](step)
            return {name: getattr(found, name) for name in memory.CATEGORIES}

        yield estimate


def largest_batch(estimate: Estimator, plugin: str, spec: Spec, card_bytes: int) -> int | None:
    """Return the images per card, a multiple of UNIT, of the largest batch that is estimated to fit
    a card; 0 if none does, None where it cannot be estimated."""

    @functools.cache
    def fits(units: int) -> bool:
        return sum(estimate(plugin, spec, units * UNIT).values()) <= card_bytes

    high = 1
    try:
        while high * UNIT < MOST and fits(high):
            high *= 2
        return timing.largest(fits, 1, high) * UNIT
    except UserError:
        return None
