"""Gradient caching: the gradient of a whole batch's loss with the memory of one chunk.

Gao et al. 2021, https://arxiv.org/abs/2101.06983: embed without a graph, take the loss's gradient
at the embeddings, then embed once more chunk by chunk and push that gradient through. The last
chunk is embedded once: its graph, no larger than any other's, waits for the loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from bench import buffers
from bench.errors import Unsupported

LOSS = -1  # the address of the loss's random numbers, among the chunks' 0, 1, ...


def cached_backward(
    model: nn.Module,
    views: Sequence[Tensor],
    chunk: int,
    seed_chunk: Callable[[int], None],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Accumulate the gradients of `model.loss(*model.embed(*views))`; return loss and embeddings.

    Random numbers of a chunk's passes are equal: `seed_chunk(i)` seeds both. BatchNorm in
    `embed` normalises one chunk at a time, as cards that do not synchronise would. Each chunk
    finds the buffers as they were before the step, and the step leaves their mean over the chunks,
    so that running statistics move once, towards the mean of the chunks' statistics. BatchNorm in
    `loss` sees the whole batch.

    Args:
        model: `embed` returns tensors with a row per image; those that carry no gradient get none.
        views: each (B, 3, h, w).
        chunk: images per chunk, a divisor of B.
        seed_chunk: seeds torch's generator for chunk i; LOSS stands for the loss.
        autocast: the context of forward passes.

    Raises:
        Unsupported: an embedding has no row per image, so that chunks do not add up to the batch.
    """
    chunks = list(zip(*(view.split(chunk) for view in views), strict=True))
    before = buffers.copied(model)
    moved = buffers.copied(model)
    parts = []
    for index, piece in enumerate(chunks):
        last = index == len(chunks) - 1
        buffers.restore(model, before)
        with buffers.lent(model) if last else contextlib.nullcontext():
            seed_chunk(index)
            with torch.set_grad_enabled(last), autocast():
                parts.append(model.embed(*piece))
            _check_rows(parts[-1], len(piece[0]))
            buffers.add_to_mean(moved, model, index + 1)
    buffers.restore(model, moved)
    *earlier, kept = parts
    leaves = []  # an empty list for a batch of one chunk
    for index, output in enumerate(kept if earlier else ()):
        leaf = torch.cat([part[index] for part in earlier])
        leaves.append(leaf.requires_grad_(output.requires_grad))  # keys carry no gradient
    del parts, earlier
    embeddings = [torch.cat(pair) for pair in zip(leaves, kept, strict=True)] if leaves else kept
    del kept

    seed_chunk(LOSS)
    with autocast():
        loss = model.loss(*embeddings)
    after = buffers.copied(model)
    loss.backward()  # and through the last chunk
    _push(model, chunks[:-1], [leaf.grad for leaf in leaves], before, seed_chunk, autocast)
    buffers.restore(model, after)
    return loss.detach(), tuple(e.detach() for e in embeddings)


def _push(
    model: nn.Module,
    chunks: Sequence[tuple[Tensor, ...]],
    gradients: Sequence[Tensor | None],
    before: list[Tensor],
    seed_chunk: Callable[[int], None],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Embed each chunk again and push the loss's gradient at its embeddings through."""
    first = 0
    for index, piece in enumerate(chunks):
        rows = slice(first, first := first + len(piece[0]))
        buffers.restore(model, before)
        seed_chunk(index)
        with autocast():
            outputs = model.embed(*piece)
        live = [
            (output, gradient[rows])
            for output, gradient in zip(outputs, gradients, strict=True)
            if output.requires_grad and gradient is not None
        ]
        if live:
            torch.autograd.backward(*(list(column) for column in zip(*live, strict=True)))


def _check_rows(embeddings: Sequence[Tensor], images: int) -> None:
    for embedding in embeddings:
        shape = tuple(embedding.shape)
        if not shape or shape[0] != images:
            raise Unsupported(
                f"embed gave a tensor of shape {shape} for a chunk of {images} images; in chunks "
                "every embedding needs a row per image"
            )
