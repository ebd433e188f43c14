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
_KNOWN = {**flop_registry, **_CPU_ATTENTION}


def of_call(func: Any, args: Any, kwargs: Any, outputs: Any) -> int:
    """Return the FLOPs of one call of an operator, `func(*args, **kwargs)`, as dispatched."""
    count = _KNOWN.get(func._overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=outputs)


def counter() -> FlopCounterMode:
    """Return a context that counts what runs inside; `get_total_flops()` says how much."""
    return FlopCounterMode(
        display=False, custom_mapping={op: _raw(count) for op, count in _CPU_ATTENTION.items()}
    )


def _raw(count: Callable[..., int]) -> Callable[..., int]:
    """Return the formula marked as one that takes tensors and not their shapes."""

    def counted(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return count(*args, **kwargs, out_val=out_val)

    counted._get_raw = True
    return counted
