"""The ways of a step beside the plain one: chunks of the batch or activations that are computed
again, which hold less, and compiled networks, which take less time.

Imports no torch.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.errors import UserError


def images_per_chunk(chunk: int, batch_size: int, world: int) -> int:
    """Return the images of a chunk that one process embeds.

    Args:
        chunk: source images of a chunk over all processes.
        batch_size: source images of a step over all processes.
        world: the processes.

    Raises:
        UserError: the batch is not a number of equal chunks, or a chunk not of equal parts.
    """
    if chunk < 1 or batch_size % chunk:
        raise UserError(
            f"chunk {chunk} does not divide a batch of {batch_size} images; choose a divisor"
        )
    if chunk % world:
        raise UserError(
            f"a chunk of {chunk} images cannot be shared by {world} processes; choose a multiple"
        )
    return chunk // world


class Way(NamedTuple):
    """How a step is taken; chunk in source images over all processes."""

    chunk: int | None = None
    checkpointing: bool = False
    compile: bool = False

    @property
    def words(self) -> str:
        """What a row says of it; nothing of the plain step."""
        parts = [f"chunks of {self.chunk}"] if self.chunk is not None else []
        return ", ".join(
            [*parts, *["recomputed"] * self.checkpointing, *["compiled"] * self.compile]
        )

    @property
    def alone(self) -> list[Way]:
        """The plain step, and each part of this way by itself."""
        parts = [Way(self.chunk), Way(checkpointing=self.checkpointing), Way(compile=self.compile)]
        return list(dict.fromkeys([Way(), *parts]))
