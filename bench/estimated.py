"""Cells that are estimated: a step's bytes by category and its operations, the largest batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bench import fitting, memory
from bench.costs import Spec
from bench.errors import UserError
from bench.fitting import UNIT

MOST = 2**16  # images per card, the largest candidate for the largest batch


class Estimated(NamedTuple):
    """Bytes on one card by category, at the peak of a step; operations per source image."""

    sizes: dict[str, int]
    flops_per_image: float

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    @property
    def activations(self) -> int:
        return self.sizes["activations"]


Estimator = Callable[[str, Spec, int], Estimated]
"""(plugin, spec, images per card) -> what a step takes.

Raises UserError where a step cannot be estimated, memory.Refused where the method refuses it."""


@contextlib.contextmanager
def estimator() -> Iterator[Estimator]:
    """Yield what estimates cells, with a process for each method's code."""
    with contextlib.ExitStack() as stack:
        asks: dict[str, Any] = {}

        def estimate(plugin: str, spec: Spec, per_card: int) -> Estimated:
            if plugin not in asks:
                asks[plugin] = stack.enter_context(memory.estimator())
            step = memory.Step(
                plugin,
                backbone=spec.backbone["name"],
                image_size=spec.image_size,
                batch_size=per_card * spec.cards,
                cards=spec.cards,
                recipe=spec.recipe,
                precision=spec.precision,
                chunk=spec.chunk,
                checkpointing=spec.checkpointing,
            )
            found = asks[plugin](step)
            sizes = {name: getattr(found, name) for name in memory.CATEGORIES}
            return Estimated(sizes, found.flops_per_image)

        yield estimate


def largest_batch(estimate: Estimator, plugin: str, spec: Spec, card_bytes: int) -> int | None:
    """Return the images per card, a multiple of UNIT, of the largest batch that is estimated to fit
    a card; 0 if none does, None where it cannot be estimated.

    None too in chunks, which hold little more of a larger batch: there time is what limits it. And
    None of a compiled step, whose memory is not estimated.
    """
    if spec.chunk is not None or spec.compile:
        return None
    try:
        found = fitting.largest(
            lambda units: estimate(plugin, spec, units * UNIT),
            card_bytes,
            start=spec.batch_per_card // UNIT,
            most=min(MOST, memory.IMAGES // spec.cards) // UNIT,
        )
    except UserError:
        return None
    return found[0] * UNIT if found else 0
