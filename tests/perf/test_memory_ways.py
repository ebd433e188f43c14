"""What saving memory costs in time: a SimCLR step in chunks, or recomputed, over the plain step.

Rounds alternate as in `test_ratios`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_plugins import simclr
from test_ratios import ratio

from bench import heap
from bench.backbones import build
from bench.buffers import kept
from bench.chunking import cached_backward

BATCH, SIZE = 256, 32


def step(*, chunk: int | None = None, again: bool = False) -> Callable[[], None]:
    """Return one step on ready-made views, as the engine makes it in a run's process."""
    heap.keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build({"name": "test_resnet", "args": {}, "stem": None}, SIZE)
    if again:
        backbone.set_grad_checkpointing(True)
    model = simclr.SimCLR(backbone, simclr.Config()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    layout = torch.channels_last
    views = [torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=layout) for _ in range(2)]

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(*model.embed(*views))
        with kept([model] if again else []):
            loss.backward()
        optimizer.step()

    def chunked() -> None:
        optimizer.zero_grad(set_to_none=True)
        cast = torch.autocast("cpu", enabled=False)
        cached_backward(model, views, chunk, torch.manual_seed, lambda: cast)
        optimizer.step()

    return plain if chunk is None else chunked


@pytest.mark.parametrize(
    ("ways", "most"),
    [({"chunk": BATCH // 4}, 1.6), ({"again": True}, 1.4)],
    ids=["chunks", "again"],
)
def test_saving_memory_costs_a_forward_pass(
    benchmark: Any, ways: dict[str, Any], most: float
) -> None:
    """A third of the step, if backward takes twice as long as forward."""
    assert ratio(benchmark, step(), step(**ways), 15) <= most
