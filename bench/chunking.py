"""Gradient caching: the gradient of a whole batch's loss with the memory of one chunk.

Gao et al. 2021, https://arxiv.org/abs/2101.06983: embed without a graph, take the loss's gradient
at the embeddings, then embed once more chunk by chunk and push that gradient through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def cached_backward(
    model: nn.Module,
    views: Sequence[Tensor],
    chunk: int,
    seed_chunk: Callable[[int], None],
    autocast: Callable[[], torch.autocast],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Accumulate the gradients of `model.loss(*model.embed(*views))`; return loss and embeddings.

    Random numbers of a chunk's two passes are equal (`seed_chunk(i)` seeds both), and buffers
    such as BatchNorm's running statistics are updated once. BatchNorm in `embed` sees one chunk.

    Args:
        views: each (B, 3, h, w).
        chunk: images per chunk, at least 1.
        seed_chunk: seeds torch's generator for chunk i; -1 stands for the loss.
    """
    chunks = list(zip(*(view.split(chunk) for view in views), strict=True))
    buffers = [buffer.clone() for buffer in model.buffers()]
    parts = []
    with torch.no_grad():
        for index, piece in enumerate(chunks):
            seed_chunk(index)
            with autocast():
                parts.append(model.embed(*piece))
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    embeddings = [torch.cat(column).requires_grad_() for column in zip(*parts, strict=True)]

    seed_chunk(-1)
    with autocast():
        loss = model.loss(*embeddings)
    loss.backward()
    cached = [
        torch.zeros_like(e) if e.grad is None else e.grad for e in embeddings
    ]  # keys carry none
    pieces = zip(*(gradient.split(chunk) for gradient in cached), strict=True)
    for index, (piece, gradient) in enumerate(zip(chunks, pieces, strict=True)):
        seed_chunk(index)
        with autocast():
            outputs = model.embed(*piece)
        live = [(o, g) for o, g in zip(outputs, gradient, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in live], [g.to(o.dtype) for o, g in live])
    return loss.detach(), tuple(e.detach() for e in embeddings)
