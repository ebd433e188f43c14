"""What a method may ask of the other processes of its run; without any, each is a no-op.

Every process must make the same calls in the same order, with tensors of one shape and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together, 1 or more."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's index, 0 to `world_size() - 1`."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, concatenated over the first dimension in rank order.

    Differentiable: the gradient of a process's part is the sum of what all processes' losses send
    back to it. When gradients are then averaged over processes, the whole is the gradient of the
    mean of the processes' losses.

    Args:
        tensor: (B, ...), of one shape on all processes.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def largest(value: float, device: torch.device) -> float:
    """Return the largest of all processes' values; over several it waits for the device."""
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)


@torch.no_grad()
def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """Return the tensor of process `source` on all processes; carries no gradient."""
    if world_size() == 1:
        return tensor
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    dist.broadcast(tensor, source)
    return tensor


@torch.no_grad()
def encode_shuffled(encoder: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return `encoder(images)`, computed on the images of all processes in a random order.

    BatchNorm's statistics then tell no output which images its own image came with (MoCo,
    Section 3.3, shuffling BN). The result is in the order of `images` and carries no gradient.

    Args:
        encoder: (B, ...) to (B, D).
        images: (B, 3, H, W), of one shape on all processes.
    """
    everyone = gather(images)  # (N, 3, H, W) over all processes
    order = broadcast(torch.randperm(len(everyone), device=images.device))
    mine = order.chunk(world_size())[rank()]
    outputs = gather(encoder(everyone[mine]))  # (N, D), in shuffled order
    return outputs[order.argsort()].chunk(world_size())[rank()]


@torch.no_grad()
def average_buffers(tensors: Iterable[Tensor]) -> None:
    """Set each floating-point tensor to its mean over processes, in place, in one exchange.

    For statistics that each process gathers on its own images, such as BatchNorm's; integers
    (counters, equal everywhere) stay as they are.
    """
    if world_size() == 1:
        return
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not floating:
        return
    flat = torch.cat([tensor.flatten() for tensor in floating])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in floating])
    for tensor, mean in zip(floating, parts, strict=True):
        tensor.copy_(mean.view_as(tensor))
