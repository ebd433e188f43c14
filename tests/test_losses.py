"""Losses equal a slow loop written from the paper's equation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.losses import info_nce, nt_xent, unit


def pair(rows: int = 6, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2)
    )


def slow_nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """SimCLR, Eq. 1: l(i, j) = -log exp(s_ij / t) / sum over k != i of exp(s_ik / t)."""
    views = [row for couple in zip(z0, z1, strict=True) for row in couple]  # 2k-1 and 2k
    count = len(views)

    def similarity(i: int, j: int) -> float:
        a, b = views[i], views[j]
        return float((a @ b) / (a.norm() * b.norm()))

    total = 0.0
    for i in range(count):
        partner = i + 1 if i % 2 == 0 else i - 1
        below = sum(math.exp(similarity(i, k) / temperature) for k in range(count) if k != i)
        total -= math.log(math.exp(similarity(i, partner) / temperature) / below)
    return total / count


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_matches_the_double_loop(temperature: float) -> None:
    z0, z1 = pair()
    expected = slow_nt_xent(z0, z1, temperature)
    assert float(nt_xent(z0, z1, temperature)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_info_nce_matches_the_double_loop(temperature: float) -> None:
    queries, keys = (unit(z) for z in pair())
    negatives = unit(pair(9)[1])
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(float(query @ key) / temperature)
        others = sum(math.exp(float(query @ row) / temperature) for row in negatives)
        total -= math.log(positive / (positive + others))
    loss = info_nce(queries, keys, negatives, temperature)
    assert float(loss) == pytest.approx(total / len(queries), abs=1e-10)


def test_nt_xent_of_equal_embeddings_is_log_of_the_candidates() -> None:
    same = torch.ones(8, 4, dtype=torch.float64)
    assert float(nt_xent(same, same, 0.5)) == pytest.approx(math.log(15))


def test_losses_refuse_other_shapes() -> None:
    z0, z1 = pair()
    with pytest.raises(ValueError, match="two views of one shape"):
        nt_xent(z0, z1[:3], 0.1)
    with pytest.raises(ValueError, match="one key per query"):
        info_nce(z0, z1[:3], z0, 0.1)
