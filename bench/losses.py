"""Contrastive losses as functions of tensors, right for any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.distributed import gather, rank


def unit(vectors: Tensor) -> Tensor:
    """Return the vectors (B, D) at length 1, in float32 or the wider type that they have."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss (SimCLR, Eq. 1) over the views of all processes.

    Each of this process's 2B views must find its partner among the views of all processes,
    itself excluded. The result is the mean over this process's views: its mean over processes is
    the loss of the whole batch.

    Args:
        z0, z1: projections of the two views, (B, D), of any length; row i of each shows image i.
            B is the same on all processes.
        temperature: divides the cosine similarities, above 0.

    Raises:
        ValueError: z0 and z1 differ in shape.
    """
    if z0.shape != z1.shape:
        raise ValueError(f"two views of one shape expected, got {(*z0.shape,)} and {(*z1.shape,)}")
    z0, z1 = unit(z0), unit(z1)
    everyone = gather(torch.stack([z0, z1], dim=1))  # (N, 2, D): N images over all processes
    candidates = everyone.transpose(0, 1).flatten(0, 1)  # (2N, D): first views, then second views
    with torch.autocast(z0.device.type, enabled=False):  # half precision is too coarse for logits
        logits = torch.cat([z0, z1]) @ candidates.T / temperature  # (2B, 2N)

    first = rank() * len(z0) + torch.arange(len(z0), device=z0.device)  # this process's columns
    second = first + len(everyone)
    itself = torch.cat([first, second]).unsqueeze(1)
    partner = torch.cat([second, first])
    return F.cross_entropy(logits.scatter(1, itself, float("-inf")), partner)


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss (MoCo, Eq. 1): each query must tell its key from the negatives.

    The mean over this process's queries; nothing is exchanged between processes.

    Args:
        queries, keys: (B, D) of length 1 (`unit`); row i of each shows image i.
        negatives: (K, D) of length 1, the same for every query.
        temperature: divides the similarities, above 0.

    Raises:
        ValueError: queries and keys differ in shape.
    """
    if queries.shape != keys.shape:
        raise ValueError(
            f"one key per query expected, got {(*queries.shape,)} and {(*keys.shape,)}"
        )
    with torch.autocast(queries.device.type, enabled=False):
        positive = (queries * keys).sum(dim=1, keepdim=True)  # (B, 1)
        logits = torch.cat([positive, queries @ negatives.T], dim=1) / temperature  # (B, 1 + K)
    labels = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    return F.cross_entropy(logits, labels)
