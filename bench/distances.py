"""Intervals, tests and ranks for columns of distances: lower is better, no upper bound, no images.

As `bench.statistics` does it for accuracies, on the values themselves: what varies from seed to
seed is the moderated variance (Smyth 2004), pairs are tested by Student's t with Holm's correction.
A distance between sets has no part for each test image, so the seeds alone make its error; the
draw of the samples and of the reference is among what a seed decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from bench.pairs import LEVEL, MOST_DF, rank, satterthwaite
from bench.statistics import NO_PRIOR, Cell, Comparison, Prior, moderate, seed_prior


def cell(values: Sequence[float], prior: Prior | None = None) -> Cell:
    """Return the mean and its 95 % interval over two seeds or more.

    Args:
        prior: of the page's trained methods; their own variance alone if there is none.

    Raises:
        ValueError: one seed says nothing of an interval.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        raise ValueError(f"an interval needs two seeds, got {len(numbers)}")
    variance, df = float(numbers.var(ddof=1)), float(len(numbers) - 1)
    if prior is not None:
        variance, df = moderate(variance, len(numbers) - 1, prior)
    reach = float(stdtrit(df, 1 - LEVEL / 2) * np.sqrt(variance / len(numbers)))
    mean = float(numbers.mean())
    return Cell(mean, mean - reach, mean + reach, len(numbers), df)


def one_more(cell: Cell, *, columns: int = 1) -> tuple[float, float]:
    """Return the interval in which one more run of a cell's row lies with 95 %.

    That of the mean over n seeds, sqrt(n + 1) times as wide: a run has its own seed's share too.

    Args:
        columns: how many intervals are to hold at the same time (Bonferroni).
    """
    wider = stdtrit(cell.df, 1 - LEVEL / columns / 2) / stdtrit(cell.df, 1 - LEVEL / 2)
    reach = float((cell.high - cell.low) / 2 * np.sqrt(cell.n + 1) * wider)
    return cell.mean - reach, cell.mean + reach


def compare(
    columns: Mapping[str, Sequence[float]],
    *,
    pool: Collection[str] | None = None,
    untrained: Collection[str] = (),
    ranked: Collection[str] | None = None,
    incomplete: Collection[str] = (),
) -> Comparison:
    """Compare the rows of one column; `centers` are negated means, so that higher is better.

    Args:
        columns: name -> one value for each of n >= 1 seeds, finite.
        pool, untrained, ranked, incomplete: as for `bench.statistics.compare`.

    Raises:
        ValueError: there is no row, a row is empty, or a value is not finite.
    """
    names = tuple(columns)
    rows = [np.asarray(columns[name], dtype=np.float64) for name in names]
    if not rows or any(len(row) == 0 or not np.isfinite(row).all() for row in rows):
        raise ValueError("rows need a finite value for each of one seed or more")
    seeds = np.array([len(row) for row in rows])
    centers = -np.array([row.mean() for row in rows])
    own = np.array([row.var(ddof=1) if len(row) > 1 else 0.0 for row in rows])
    pooled = [name not in untrained if pool is None else name in pool for name in names]
    prior = seed_prior(own[pooled], (seeds - 1)[pooled])
    priors = [NO_PRIOR if name in untrained else prior for name in names]
    moderated = [moderate(own[i], seeds[i] - 1, priors[i]) for i in range(len(names))]
    variances, df = np.array(moderated).T
    errors, pair_df = _pair_errors(variances / seeds, seeds - 1, df, prior, names, untrained)

    ranking = rank(names, seeds, centers, errors, pair_df, ranked=ranked, incomplete=incomplete)
    return Comparison(
        names=names,
        cells={n: cell(rows[i], priors[i]) for i, n in enumerate(names) if seeds[i] > 1},
        ranks=ranking.ranks,
        p_values=ranking.p_values,
        resolvable=ranking.resolvable,
        prior=prior,
        centers=centers,
        errors=errors,
        df=pair_df,
    )


def _pair_errors(
    seed_errors: np.ndarray,
    own_df: np.ndarray,
    df: np.ndarray,
    prior: Prior,
    names: Sequence[str],
    untrained: Collection[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Return standard errors and degrees of freedom of all differences, each (M, M).

    Two rows that are drawn to the prior share it: it counts once.
    """
    square = seed_errors[:, None] + seed_errors[None, :]
    drawn = np.array([name not in untrained for name in names]) & (prior.pooled_df > 0)
    shared = np.minimum(
        prior.df + satterthwaite(seed_errors, own_df.astype(np.float64)), prior.pooled_df
    )
    both = drawn[:, None] & drawn[None, :]
    return np.sqrt(square), np.where(both, shared, satterthwaite(seed_errors, df)).clip(
        1.0, MOST_DF
    )
