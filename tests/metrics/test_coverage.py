"""Precision, recall, density, coverage: loops from the papers' equations, and known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.metrics import coverage


def rows(count: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return drawn * scale + shift


def slow_radius(features: Tensor, row: int, k: int) -> float:
    others = [i for i in range(len(features)) if i != row]
    return sorted(slow_norm(features[row], features[i]) for i in others)[k - 1]


def slow_norm(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm())


def slow(x: Tensor, y: Tensor, k_recall: int, k_coverage: int) -> tuple[float, ...]:
    """Kynkaanniemi et al., Eq. 1 and 2; Naeem et al., Eq. 4 and 5. x samples, y reference."""
    m, n = len(x), len(y)

    def share_in_balls(points: Tensor, centres: Tensor) -> float:
        reach = [slow_radius(centres, i, k_recall) for i in range(len(centres))]
        pairs = list(zip(centres, reach, strict=True))
        return sum(any(slow_norm(p, c) <= r for c, r in pairs) for p in points) / len(points)

    reach = [slow_radius(y, i, k_coverage) for i in range(n)]
    hits = [[slow_norm(x[j], y[i]) <= reach[i] for j in range(m)] for i in range(n)]
    density = sum(map(sum, hits)) / (k_coverage * m)
    return share_in_balls(x, y), share_in_balls(y, x), density, sum(map(any, hits)) / n


def as_tuple(found: coverage.Coverage) -> tuple[float, ...]:
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize("chunk", [7, 1024])
def test_all_four_are_the_loops(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_ROWS", chunk)
    x, y = rows(40, 0, shift=0.7, scale=0.8), rows(33, 1)
    found = as_tuple(coverage.measure(x, y))
    assert found == pytest.approx(slow(x, y, 3, 5))
    assert all(0.05 < value < 0.98 for value in found)  # a case in which each could be wrong
    assert as_tuple(coverage.measure(x, y, k_recall=1, k_coverage=2)) == pytest.approx(
        slow(x, y, 1, 2)
    )


def test_a_copy_of_the_reference_has_everything() -> None:
    """Each ball holds itself and its k neighbours: density is (k + 1) / k. Far from the origin,
    where squares cancel."""
    for shift in (0.0, 1e3):
        y = rows(60, 0, shift=shift)
        found = as_tuple(coverage.measure(y.clone(), y))
        assert found == pytest.approx((1, 1, 6 / 5, 1))


def test_one_mode_has_precision_and_no_recall() -> None:
    y = torch.cat([rows(200, 0, shift=-6), rows(200, 1, shift=6)])
    found = coverage.measure(rows(400, 2, shift=6), y)
    assert found.precision > 0.8  # of one half: all but outliers
    assert found.recall < 0.52
    assert found.coverage < 0.52
    spread = coverage.measure(rows(400, 2, scale=8), y)
    assert spread.precision < 0.2
    assert spread.recall > 0.9


def test_density_counts_where_precision_saturates_on_an_outlier() -> None:
    """Naeem et al., Figure 3: one far reference image gives all samples near it precision 1."""
    y = torch.cat([rows(100, 0), rows(1, 1, shift=30)])
    found = coverage.measure(rows(100, 2, shift=30), y)
    assert found.precision > 0.9
    assert found.density < 0.35
    assert found.coverage == pytest.approx(1 / 101)


def test_equal_rows_are_at_distance_nothing() -> None:
    """A reference of one image, five times over, has balls of radius 0, which hold that image."""
    y = torch.cat([rows(1, 0).expand(6, -1), rows(30, 1, shift=50)]) + 1e3
    samples = torch.cat([y[:1], rows(9, 2, shift=-50) + 1e3])
    found = coverage.measure(samples, y)
    assert found.precision == pytest.approx(0.1)
    assert found.coverage == pytest.approx(6 / 36)


def test_what_cannot_be_measured_is_refused() -> None:
    x = rows(30, 0)
    with pytest.raises(ValueError, match="at least 6 rows"):
        coverage.measure(x[:5], x)
    with pytest.raises(ValueError, match="k of 1 or more"):
        coverage.measure(x, x, k_recall=0)
    with pytest.raises(ValueError, match="30 of 30 rows"):
        coverage.measure(x * torch.nan, x)
