"""An optimiser's step and a moving average, as the engine makes them, against loops over tensors.

Rounds alternate as in `test_ratios`. AdamW is what the recipes of the small tracks have; SGD is
MoCo's own.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_ratios import ratio
from torch import nn

from bench import optimizers
from bench.backbones import build
from bench.layers import ema_update, projection_mlp

SIZE, DIM, RATE, DECAY, MOMENTUM, STEPS, ROUNDS = 32, 128, 1e-3, 1e-4, 0.99, 20, 15
BACKBONES = {
    "test_resnet": {"name": "test_resnet", "args": {}, "stem": None},
    "moco": {
        "name": "resnet18",
        "args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
        "stem": {"kernel": 3, "stride": 2, "max_pool": False},
    },
}
LOOPS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Return an encoder with its head and gradients, and its moving average."""
    torch.manual_seed(0)
    backbone = build(BACKBONES[name], SIZE)
    head = projection_mlp(backbone.num_features, backbone.num_features, DIM)
    network = nn.Sequential(backbone, head).to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return network, average


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("name", BACKBONES)
def test_update_takes_at_most_six_tenths_of_loops(benchmark: Any, name: str, kind: str) -> None:
    torch.set_num_threads(1)
    settings = {"momentum": 0.9} if kind == "sgd" else {}
    network, average = pair(name)
    groups = optimizers.parameter_groups(network, DECAY, True)
    update = optimizers.build(kind, groups, RATE, settings)

    def ours() -> None:
        for _ in range(STEPS):
            update.step()
            with torch.no_grad():
                ema_update(average, network, MOMENTUM)

    plain, plain_average = pair(name)
    groups = optimizers.parameter_groups(plain, DECAY, True)
    loop = LOOPS[kind](groups, lr=RATE, foreach=False, fused=False, **settings)

    def naive() -> None:
        for _ in range(STEPS):
            loop.step()
            with torch.no_grad():
                for slow, fast in zip(plain_average.parameters(), plain.parameters(), strict=True):
                    slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)
                for slow, fast in zip(plain_average.buffers(), plain.buffers(), strict=True):
                    slow.copy_(fast)

    ours(), naive()
    for mine, other in zip(average.parameters(), plain_average.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    assert ratio(benchmark, ours, naive, ROUNDS) >= 1 / 0.6
