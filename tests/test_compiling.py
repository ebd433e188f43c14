"""The colour region for cards: the same values, and none of it where it cannot be compiled."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bench import augment, colour, compiling


def given(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, some of them gray, with all orders of changes, and some left alone."""
    generator = torch.Generator().manual_seed(0)
    orders = torch.tensor(list(itertools.permutations(range(4)))).repeat(2, 1)
    images = torch.rand(len(orders), channels, 8, 8, generator=generator)
    images[:12] = images[:12, :1]
    factors = torch.rand(len(orders), 4, generator=generator) * 1.6 + 0.2
    factors[:, 3] = torch.rand(len(orders), generator=generator) - 0.5
    return images, factors, orders, torch.rand(len(orders), generator=generator) < 0.8


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_batches_come_out_as_arranged_ones(channels: int) -> None:
    images, factors, orders, applied = given(channels)
    before = images.clone()
    found = compiling.jitter_whole(images, factors, orders, applied)
    expected = colour.jitter(images, factors, orders, applied=applied)
    assert torch.equal(images, before)
    assert (found - expected).abs().max() < 1e-5  # 1/255 is 4e-3
    assert torch.equal(found[~applied], images[~applied])


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor as a device to compile for, its state put back afterwards."""
    monkeypatch.setattr(compiling, "DEVICES", ("cpu",))
    monkeypatch.setattr(compiling, "_broken", [])
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object())
    compiling._compiled.cache_clear()
    yield
    compiling._compiled.cache_clear()


def test_a_view_is_made_by_the_region_where_there_is_a_compiler(card, monkeypatch) -> None:
    asked = []

    def compile_(function, **options):
        asked.append((function, options))
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    images = given(3)[0]
    view = augment.color_jitter(0.4, 0.4, 0.4, 0.1)
    by_region = [view(images, augment.Draws.of(images, 7)) for _ in range(2)]
    assert asked == [(compiling.jitter_whole, {"fullgraph": True, "dynamic": False})]
    monkeypatch.setattr(compiling, "DEVICES", ())
    assert (by_region[1] - view(images, augment.Draws.of(images, 7))).abs().max() < 1e-5


def test_a_compiler_that_fails_is_asked_once_and_said(card, monkeypatch) -> None:
    def compile_(function, **options):
        def fail(*arguments):
            raise RuntimeError("no ptxas\n  found")

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    images, factors, orders, applied = given(3)
    expected = colour.jitter(images, factors, orders, applied=applied)
    with pytest.warns(UserWarning, match="colour is not compiled: RuntimeError: no ptxas found"):
        found = compiling.jitter(images, factors, orders, applied=applied)
    assert torch.equal(found, expected)
    assert torch.equal(compiling.jitter(images, factors, orders, applied=applied), expected)


@pytest.mark.parametrize("missing", ["triton", "switch"])
def test_without_a_compiler_nothing_changes(card, monkeypatch, missing) -> None:
    if missing == "triton":
        monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setenv("BENCH_COMPILE", "0")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    images, factors, orders, applied = given(3)
    expected = colour.jitter(images, factors, orders, applied=applied)
    found = compiling.jitter(images, factors, orders, applied=applied)
    assert torch.equal(found, expected)
