"""Buffers of modules, such as BatchNorm's running statistics, over passes that are made twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_LOANS: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()  # of `lent`


def copied(module: nn.Module) -> list[Tensor]:
    """Return copies of the module's buffers, in the module's order."""
    return [buffer.detach().clone() for buffer in module.buffers()]


def restore(module: nn.Module, values: Iterable[Tensor]) -> None:
    """Set the module's buffers to `values`, in place."""
    _fill(list(module.buffers()), list(values))


@torch.no_grad()
def _fill(tensors: list[Tensor], values: list[Tensor]) -> None:
    if tensors:
        torch._foreach_copy_(tensors, values)


@torch.no_grad()
def add_to_mean(means: list[Tensor], module: nn.Module, count: int) -> None:
    """Make means of `count - 1` states of the module's buffers those of `count`, in place.

    Means of equal values are these values to the bit, infinite ones too. What is no
    floating-point number, such as a counter, is taken as it is now.
    """
    for mean, buffer in zip(means, module.buffers(), strict=True):
        if count > 1 and (mean.is_floating_point() or mean.is_complex()):
            mean.copy_(torch.where(buffer == mean, mean, mean + (buffer - mean) / count))
        else:
            mean.copy_(buffer)


@contextlib.contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """Lend the module copies of its buffers; what runs inside moves these and not its own.

    A graph that is built inside holds the copies: the module's own may change before its backward
    pass, which autograd would refuse had it saved them. A module has the same copies each time, as
    CUDA graphs ask of what they read; the graph before must be gone by then.
    """
    mine = list(module.buffers())
    loan = _LOANS.get(module, [])
    if [_kind(copy) for copy in loan] == [_kind(buffer) for buffer in mine]:
        _fill(loan, mine)
    else:
        loan = _LOANS[module] = copied(module)
    copies = {id(buffer): copy for buffer, copy in zip(mine, loan, strict=True)}
    places = [part._buffers for part in module.modules()]
    own = [dict(buffers) for buffers in places]
    for buffers in places:
        buffers |= {n: copies[id(b)] for n, b in buffers.items() if b is not None}
    try:
        yield
    finally:
        for buffers, before in zip(places, own, strict=True):
            buffers |= before


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


@contextlib.contextmanager
def kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave all buffers as they are now, whatever runs inside does to them.

    A backward pass that computes activations again runs BatchNorm's forward again: inside, the
    running statistics move once a step and not twice.
    """
    before = [(module, copied(module)) for module in modules]
    try:
        yield
    finally:
        for module, values in before:
            restore(module, values)
