"""Speed of a compiled network's step on a processor against the plain one; rounds alternate."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from test_ratios import ratio

from bench.backbones import build
from bench.compiled import Compiler
from bench.errors import UserError

SPEC = {
    "name": "resnet18",
    "args": {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}


def step(compiled: bool) -> Any:
    """Return forward, backward and AdamW of the small tracks' ResNet, 128 images of 32 px."""
    torch.manual_seed(0)
    backbone = build(SPEC, 32).to(memory_format=torch.channels_last).train()
    if compiled:
        Compiler("cpu").add(backbone)
    optimizer = torch.optim.AdamW(backbone.parameters(), fused=True)
    images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)

    def once() -> None:
        loss = backbone(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return once


def test_a_compiled_step_on_a_processor(benchmark: Any) -> None:
    """Compiling takes minutes; the step must at least not become slower for it."""
    try:
        compiled = step(True)
    except UserError as error:
        pytest.skip(str(error))
    torch.set_num_threads(1)
    begun = time.perf_counter()
    compiled()
    print(f"\ncompiled in {time.perf_counter() - begun:.0f} s")
    assert ratio(benchmark, compiled, step(False), 15) >= 0.95
