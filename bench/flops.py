"""How many floating-point operations torch's operators take, on real tensors and fake ones.

A multiplication and an addition are two. Convolutions, products of matrices and attention count,
what works on single elements does not, as in torch's own `FlopCounterMode`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_ATEN = torch.ops.aten
_CPU_ATTENTION = {  # torch's registry lacks what its attention is on a CPU
    _ATEN._scaled_dot_product_flash_attention_for_cpu: (
        flop_registry[_ATEN._scaled_dot_product_flash_attention]
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        flop_registry[_ATEN._scaled_dot_product_flash_attention_backward]
    ),
}


def _convolution_backward(*args: Any, out_val: Any, **_: Any) -> int:
    """As torch's formula has it, but for the weight's gradient in groups: torch counts it as that
    of a convolution without, as many times as there are groups."""
    groups, (of_input, of_weight, _bias) = args[9], args[10]
    base = flop_registry[_ATEN.convolution_backward]
    whole = base(*args[:10], [False, of_weight, False], out_val=out_val)
    return base(*args[:10], [of_input, False, False], out_val=out_val) + whole // groups


_OURS = {**_CPU_ATTENTION, _ATEN.convolution_backward: _convolution_backward}
_KNOWN = {**flop_registry, **_OURS}


def of_call(func: Any, args: Any, kwargs: Any, outputs: Any) -> int:
    """Return the FLOPs of one call of an operator, `func(*args, **kwargs)`, as dispatched."""
    count = _KNOWN.get(func._overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=outputs)


def counter() -> FlopCounterMode:
    """Return a context that counts what runs inside; `get_total_flops()` says how much."""
    return FlopCounterMode(
        display=False, custom_mapping={op: _raw(count) for op, count in _OURS.items()}
    )


def _raw(count: Callable[..., int]) -> Callable[..., int]:
    """Return the formula marked as one that takes tensors and not their shapes."""

    def counted(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return count(*args, **kwargs, out_val=out_val)

    counted._get_raw = True
    return counted
