"""Tests of the pairs of a column, and the ranks that they leave open: in any unit, higher first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.05  # of every interval, and of a column's pairs together
POWER = 0.80  # of the difference that a board is said to resolve
MOST_DF = 1e6  # where Student's t is the normal distribution to all printed digits


@dataclass(frozen=True)
class Ranking:
    """What tests of pairs say of rows.

    Attributes:
        ranks: name -> (best, worst) rank that the tests leave open; ranked names only.
        p_values: (a, b) -> Holm's adjusted two-sided p for each tested pair, in the names' order.
        tested: places of the rows that were tested.
        resolvable: the smallest difference that the median pair shows with 80 % power, in the
            errors' unit; None without a pair.
    """

    ranks: dict[str, tuple[int, int]]
    p_values: dict[tuple[str, str], float]
    tested: list[int]
    resolvable: float | None


def rank(
    names: Sequence[str],
    seeds: np.ndarray,
    centers: np.ndarray,
    errors: np.ndarray,
    df: np.ndarray,
    *,
    ranked: Collection[str] | None,
    incomplete: Collection[str],
) -> Ranking:
    """Test every pair of ranked rows with two seeds or more.

    Args:
        seeds, centers: (M,) numbers of seeds and means; errors, df: (M, M) of their differences.
        ranked: rows that are tested against each other; all if None.
        incomplete: rows among the ranked that lack seeds: below every other one, not tested.
    """
    allowed = names if ranked is None else [name for name in names if name in ranked]
    places = [names.index(name) for name in allowed if name not in incomplete]
    tested = [place for place in places if seeds[place] > 1]
    below = [name for name in allowed if name in incomplete]
    p_values = _test(tested, centers, errors, df)
    ranks = _intervals(tested, centers, p_values, len(below))
    last = (len(tested) + 1, len(tested) + len(below))
    return Ranking(
        ranks={names[i]: interval for i, interval in ranks.items()} | dict.fromkeys(below, last),
        p_values={(names[i], names[j]): p for (i, j), p in p_values.items()},
        tested=tested,
        resolvable=_resolvable(tested, errors, df),
    )


def satterthwaite(variances: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Return the (M, M) degrees of freedom of the sums of two variances with (M,) of their own."""
    loss = np.where(variances > 0, variances**2 / np.maximum(df, 1e-9), 0.0)
    square, loss = np.add.outer(variances, variances) ** 2, np.add.outer(loss, loss)
    return np.divide(square, loss, out=np.full_like(square, MOST_DF), where=loss > 0)


def _test(
    tested: list[int], centers: np.ndarray, errors: np.ndarray, df: np.ndarray
) -> dict[tuple[int, int], float]:
    """Return Holm's adjusted p of every pair of tested rows."""
    pairs = [(i, j) for at, i in enumerate(tested) for j in tested[at + 1 :]]
    if not pairs:
        return {}
    rows, others = np.array(pairs).T
    gaps, widths = np.abs(centers[rows] - centers[others]), errors[rows, others]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(gaps == 0, 0.0, gaps / widths)
    p = 2 * stdtr(df[rows, others], -t)
    return dict(zip(pairs, holm(p).tolist(), strict=True))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * steps), 1.0)
    return adjusted


def _intervals(
    tested: list[int], centers: np.ndarray, p_values: dict[tuple[int, int], float], below: int
) -> dict[int, tuple[int, int]]:
    """Return [1 + number significantly better, M - number significantly worse] of each row."""
    better, worse = dict.fromkeys(tested, 0), dict.fromkeys(tested, below)
    for (i, j), p in p_values.items():
        if p <= LEVEL:
            above, under = (i, j) if centers[i] > centers[j] else (j, i)
            better[under] += 1
            worse[above] += 1
    return {i: (1 + better[i], len(tested) + below - worse[i]) for i in tested}


def _resolvable(tested: list[int], errors: np.ndarray, df: np.ndarray) -> float | None:
    """Return the difference that the median pair shows with 80 % power, in the errors' unit."""
    upper = np.triu_indices(len(tested), k=1)
    if len(upper[0]) == 0:
        return None
    error = float(np.median(errors[np.ix_(tested, tested)][upper]))
    freedom = float(np.median(df[np.ix_(tested, tested)][upper]))
    strictest = LEVEL / len(upper[0])
    return float((stdtrit(freedom, 1 - strictest / 2) + stdtrit(freedom, POWER)) * error)
