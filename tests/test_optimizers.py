"""Rates are functions of the budget; norms and biases can go without decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench.errors import UnknownName
from bench.optimizers import Schedule, build, parameter_groups


def test_cosine_rises_linearly_and_ends_near_zero() -> None:
    course = Schedule("cosine", 2.0, warmup_epochs=2)
    rates = [course.at(step, 20, 2) for step in range(20)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    expected = [1 + math.cos(math.pi * (step - 4) / 16) for step in range(4, 20)]
    assert rates[4:] == pytest.approx(expected)


def test_multistep_falls_at_shares_of_the_stage() -> None:
    course = Schedule("multistep", 1.0, milestones=(0.5, 0.75), gamma=0.1)
    rates = [course.at(step, 8, 2) for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_stays() -> None:
    assert {Schedule("constant", 0.3).at(step, 9, 3) for step in range(9)} == {0.3}


def test_norms_and_biases_lose_their_decay_only_if_asked() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (everything,) = parameter_groups(module, 0.1, True)
    assert everything["weight_decay"] == 0.1
    assert len(everything["params"]) == 4
    decayed, free = parameter_groups(module, 0.1, False)
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert free["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    (group,) = parameter_groups(module, 0.1, False)
    assert group["params"] == [module.weight]


def test_lars_adapts_filters_without_weight_decay_and_leaves_norms_alone() -> None:
    """The step of a layer is eta |w| / |g| of its gradient, of what is excluded the gradient."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    update = build("lars", parameter_groups(module, 0.0, False), 2.0, {"momentum": 0.0})
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    update.step()
    for parameter, old in zip(module.parameters(), before, strict=True):
        ratio = 1e-3 * old.norm() / parameter.grad.norm() if old.ndim > 1 else 1.0
        assert torch.allclose(old - parameter, 2.0 * ratio * parameter.grad, rtol=1e-4)


def test_fused_where_torch_offers_it_and_unknown_kinds_refused() -> None:
    groups = parameter_groups(nn.Linear(2, 2), 0.0, True)
    assert build("adamw", groups, 0.1, {"betas": [0.5, 0.9]}).defaults["fused"]
    assert build("sgd", groups, 0.1, {}).defaults["momentum"] == 0.9
    with pytest.raises(UnknownName, match="no optimizer 'adamx'; did you mean"):
        build("adamx", groups, 0.1, {})
