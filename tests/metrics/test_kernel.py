"""Kernel distance: the double loop, no bias, an interval that covers, libraries' values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.metrics import kernel


def rows(count: int, seed: int, *, shift: float = 0.0, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def slow_distance(x: Tensor, y: Tensor) -> float:
    """Gretton et al. 2012, Eq. 3, pair by pair."""

    def k(a: Tensor, b: Tensor) -> float:
        return (sum(u * v for u, v in zip(a.tolist(), b.tolist(), strict=True)) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


def test_it_is_the_double_loop_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(23, 0), rows(17, 1, shift=0.4)
    slow = slow_distance(x, y)
    for chunk in (1, 5, 1024):
        monkeypatch.setattr(kernel, "_ROWS", chunk)
        assert kernel.distance(x, y) == pytest.approx(slow, rel=1e-9)


def test_it_is_torch_fidelity_s_on_one_subset() -> None:
    peer = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = rows(60, 0).double(), rows(60, 1, shift=0.2).double()
    theirs = peer.kid_features_to_metric(
        x, y, kid_subsets=1, kid_subset_size=60, verbose=False, rng_seed=0
    )
    assert kernel.distance(x, y) == pytest.approx(theirs[peer.KEY_METRIC_KID_MEAN], rel=1e-9)


def test_it_is_nothing_on_average_where_nothing_differs() -> None:
    """400 draws of 12 rows: their mean lies within four of its standard errors of 0.

    The draws are fixed. A biased estimate, with the diagonals, would stand 50 of them away.
    """
    found = torch.tensor(
        [kernel.distance(rows(12, 2 * i), rows(12, 2 * i + 1)) for i in range(400)]
    ).double()
    error = float(found.std()) / math.sqrt(400)
    assert abs(float(found.mean())) < 4 * error
    assert (found < 0).any()


def truth(shift: float, width: int) -> float:
    """Return MMD^2 of N(0, I) and N(shift, I), D wide, from the moments, worked by hand.

    (a + 1)^3 = a^3 + 3 a^2 + 3 a + 1 with a = x . y / D: the squared distances of the moments'
    tensors, over D^3, D^2 / 3 and D / 3. E y_i y_j y_k = s^3 + s (d_ij + d_ik + d_jk), and 0 for x.
    """
    s, d = shift, width
    third = s**6 * d**3 + 6 * s**4 * d**2 + s**2 * (3 * d**2 + 6 * d)
    return third / d**3 + 3 * (d * s**2) ** 2 / d**2 + 3 * d * s**2 / d


def test_it_is_the_known_distance_of_shifted_gaussians() -> None:
    """Fixed draws; their own spread was 0.05 and 3.0 / 2 (standard deviations over 300, 60)."""
    x, y = rows(1000, 0, width=16), rows(1000, 1, width=16, shift=0.5)
    assert kernel.distance(x, y) == pytest.approx(truth(0.5, 16), abs=0.2)
    x, y = rows(4000, 0, width=1), rows(4000, 1, width=1, shift=1.0)
    assert kernel.distance(x, y) == pytest.approx(truth(1.0, 1), abs=6)


def test_the_interval_is_of_disjoint_blocks_around_all_samples() -> None:
    x, y = rows(205, 0), rows(190, 1, shift=0.3)
    found = kernel.interval(x, y, seed=0)
    assert found.value == kernel.distance(x, y)
    assert len(found.blocks) == 10
    reach = (
        2.2621571628 * torch.tensor(found.blocks, dtype=torch.float64).std().item() / math.sqrt(10)
    )
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))
    assert found == kernel.interval(x, y, seed=0)
    assert found.blocks != kernel.interval(x, y, seed=1).blocks


def test_blocks_are_dealt_at_random_not_by_the_order_of_rows() -> None:
    """Rows sorted by class would give blocks of one class each: all far from the reference."""
    x = torch.cat([rows(100, 0, shift=-2), rows(100, 1, shift=2)])
    y = torch.cat([rows(100, 2, shift=-2), rows(100, 3, shift=2)])
    sorted_blocks = [kernel.distance(x[:20], y[180:]), kernel.distance(x[180:], y[:20])]
    assert max(kernel.interval(x, y, seed=0).blocks) < 0.5 * min(sorted_blocks)


def test_the_interval_covers_the_truth() -> None:
    """At 95 % nominal 190 of 200 fixed draws; fewer than 178 would be chance once in 5,000."""
    expected = truth(0.5, 16)
    covered = 0
    for draw in range(200):
        x, y = rows(200, 2 * draw, width=16), rows(200, 2 * draw + 1, width=16, shift=0.5)
        found = kernel.interval(x, y, seed=draw)
        covered += found.low <= expected <= found.high
    assert 178 <= covered <= 199


def test_what_cannot_be_measured_is_refused() -> None:
    x = rows(30, 0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel.distance(x[:1], x)
    with pytest.raises(ValueError, match=r"\(30, 6\) and \(30, 3\)"):
        kernel.distance(x, x[:, :3])
    with pytest.raises(ValueError, match="1 of 30 rows of the reference"):
        kernel.distance(x, x.index_fill(0, torch.tensor([2]), torch.nan))
    with pytest.raises(ValueError, match="20 of 30 and 30"):
        kernel.interval(x, x, seed=0, blocks=20)
