"""Columns of distances: intervals, ranks, and how often ranks are wrong by chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench import distances


def test_interval_without_prior_is_students() -> None:
    values = [12.0, 15.0, 13.0, 18.0, 11.0]
    found = distances.cell(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    with pytest.raises(ValueError, match="two seeds"):
        distances.cell([3.0])


def test_lower_ranks_first() -> None:
    rng = np.random.default_rng(0)
    rows = {f"m{i}": (10.0 * (i + 1) + rng.normal(0, 0.5, 5)).tolist() for i in range(4)}
    found = distances.compare(rows)
    assert [found.ranks[f"m{i}"] for i in range(4)] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_single_seed_has_no_interval_and_no_rank() -> None:
    found = distances.compare({"one": [3.0], "a": [5.0, 6.0], "b": [5.5, 6.5]})
    assert "one" not in found.cells
    assert "one" not in found.ranks


def test_incomplete_row_ranks_below_all_others() -> None:
    rows = {"best": [1.0, 1.1, 0.9], "other": [9.0, 9.1, 8.9], "lacking": [0.1, 0.2]}
    assert distances.compare(rows, incomplete={"lacking"}).ranks["lacking"] == (3, 3)


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        distances.compare({"a": [1.0, float("nan")]})


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_methods_are_rarely_told_apart(seeds: int) -> None:
    """False separation stands in at most 7 % of boards of six equal methods.

    400 boards at a true 5 % or less: 7 % or more by chance in about 4 of 100, so the bound of the
    count is set at 9 %, which chance reaches in fewer than 1 of 1,000.
    """
    rng = np.random.default_rng(seeds)
    wrong = 0
    for _ in range(400):
        rows = {f"m{i}": rng.normal(100, 4, seeds) for i in range(6)}
        wrong += min(distances.compare(rows).p_values.values()) <= 0.05
    assert wrong <= 0.09 * 400


def test_lead_of_four_sds_is_found() -> None:
    """With six methods and five seeds, in 95 % or more of 200 boards (measured: all)."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        rows = {f"m{i}": rng.normal(100, 4, 5) for i in range(6)}
        rows["m0"] = rng.normal(84, 4, 5)
        found += distances.compare(rows).ranks["m0"] == (1, 1)
    assert found >= 190


def test_one_more_run_lies_where_it_should() -> None:
    """Of five seeds, as many intervals hold a sixth value as they say, within 5 sds of chance."""
    generator = np.random.default_rng(3)
    held, times = 0, 4000
    for _ in range(times):
        *values, another = generator.normal(50, 4, 6)
        low, high = distances.one_more(distances.cell(values))
        held += low <= another <= high
    assert held / times == pytest.approx(0.95, abs=5 * (0.95 * 0.05 / times) ** 0.5)
    alone, among = (distances.one_more(distances.cell(values), columns=c) for c in (1, 3))
    assert among[0] < alone[0] < alone[1] < among[1]
