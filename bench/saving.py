"""Two ways of a step to hold less: chunks of the batch, activations that are computed again.

Imports no torch.
"""

from __future__ import annotations

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


def words(chunk: int | None, checkpointing: bool) -> str:
    """Return what a row says of how its step saves memory; nothing if it does not."""
    parts = [f"chunks of {chunk}"] if chunk is not None else []
    return ", ".join([*parts, *["recomputed"] * checkpointing])


def each(chunk: int | None, checkpointing: bool) -> list[tuple[int | None, bool]]:
    """Return the plain step and each way alone of those that are asked for."""
    alone = [(chunk, False)] if chunk is not None else []
    return [(None, False), *alone, *[(None, True)] * checkpointing]
