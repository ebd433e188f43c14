"""Intervals, pairwise tests and rank intervals for the columns of a leaderboard.

All on the logit of accuracy. What varies from seed to seed is estimated by the moderated variance
of Smyth 2004 (https://doi.org/10.2202/1544-6115.1027): every row's own variance is drawn towards
what the page's trained methods have in common, which three or five seeds alone cannot tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, expit, logit, ndtri, polygamma, stdtrit

from bench.pairs import LEVEL, MOST_DF, Ranking, rank, satterthwaite


@dataclass(frozen=True)
class Prior:
    """What the trained methods' seed variances have in common.

    Attributes:
        df: the degrees of freedom that it is worth; 0 if nothing is shared, inf if all is.
        variance: of the logit accuracy over seeds.
        pooled_df: degrees of freedom of all the variances together; no estimate has more.
    """

    df: float
    variance: float
    pooled_df: float


NO_PRIOR = Prior(df=0.0, variance=0.0, pooled_df=0.0)


@dataclass(frozen=True)
class Cell:
    """An accuracy in percent: the mean over `n` seeds and its 95 % interval.

    `df` are the degrees of freedom of the seeds' variance behind the interval, 0 with one seed.
    """

    mean: float
    low: float
    high: float
    n: int
    df: float = 0.0

    @property
    def half_width(self) -> float:
        """Return half of the interval's length in points."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Comparison:
    """A column's rows beside each other.

    Attributes:
        names: the M rows, in the order of the matrices.
        cells: name -> its mean and interval.
        ranks: name -> (best, worst) rank that the tests leave open; ranked names only.
        p_values: (a, b) -> Holm's adjusted two-sided p for each tested pair, a before b in `names`.
        resolvable: the smallest difference in points that a pair of this column shows with 80 %
            power after Holm's correction, at the median accuracy; None without a pair.
        prior: the common seed variance.
        centers: (M,) mean logit accuracies.
        errors: (M, M) standard errors of their differences.
        df: (M, M) degrees of freedom of those.
    """

    names: tuple[str, ...]
    cells: dict[str, Cell]
    ranks: dict[str, tuple[int, int]]
    p_values: dict[tuple[str, str], float]
    resolvable: float | None
    prior: Prior
    centers: np.ndarray
    errors: np.ndarray
    df: np.ndarray

    def difference(self, a: str, b: str) -> tuple[float, float]:
        """Return the 95 % interval of a - b in logits, not corrected for other pairs."""
        i, j = self.names.index(a), self.names.index(b)
        reach = stdtrit(self.df[i, j], 1 - LEVEL / 2) * self.errors[i, j]
        center = self.centers[i] - self.centers[j]
        return float(center - reach), float(center + reach)


def logit_accuracy(correct_images: np.ndarray, num_images: int) -> np.ndarray:
    """Return log(p / (1 - p)) with p = (k + 1/2) / (N + 1), finite at 0 and at N of N."""
    correct_images = np.asarray(correct_images, dtype=np.float64)
    return np.log((correct_images + 0.5) / (num_images - correct_images + 0.5))


def seed_prior(variances: Sequence[float], df: Sequence[int], *, least: float = 0.0) -> Prior:
    """Return the common variance and its weight, by the moments of log s^2 (Smyth 2004, 6.2).

    Args:
        variances: s^2 of each method over its seeds.
        df: seeds less one of each; methods with none are left out.
        least: variances below are taken as this one; what rounding to whole images hides.
    """
    degrees = np.asarray(df, dtype=np.float64)
    s2 = np.asarray(variances, dtype=np.float64)[degrees > 0]
    degrees = degrees[degrees > 0]
    if len(s2) == 0:
        return NO_PRIOR
    pooled = float(degrees.sum())
    mean = float((degrees * s2).sum() / pooled)
    s2 = np.maximum(s2, max(least, 1e-5 * float(np.median(s2))))
    if len(s2) == 1 or not s2.all():
        return Prior(0.0 if len(s2) == 1 else np.inf, mean, pooled)
    logs = np.log(s2) - digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, degrees / 2).mean())
    if excess <= 0:  # the variances differ no more than their own noise
        return Prior(np.inf, mean, pooled)
    half = _inverse_trigamma(excess)
    variance = float(np.exp(logs.mean() + digamma(half) - np.log(half)))
    return Prior(2 * half, variance, pooled)


def accuracies_prior(rows: Sequence[Sequence[float]], num_images: Sequence[int]) -> Prior:
    """Return the prior of methods of which only the accuracies in percent are known."""
    logits = [
        logit_accuracy(np.asarray(percent) / 100 * count, count)
        for percent, count in zip(rows, num_images, strict=True)
    ]
    seen = [values for values in logits if len(values) > 1]
    return seed_prior([float(values.var(ddof=1)) for values in seen], [len(v) - 1 for v in seen])


def _inverse_trigamma(value: float) -> float:
    """Return y with trigamma(y) = value > 0, by Newton's method on 1/trigamma (convex in y)."""
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        change = trigamma * (1 - trigamma / value) / float(polygamma(2, y))
        y += change
        if abs(change) < 1e-10 * y:
            break
    return y


def moderate(variance: float, df: int, prior: Prior) -> tuple[float, float]:
    """Return the variance drawn towards the prior's, and its degrees of freedom."""
    if prior.pooled_df == 0:
        return variance, float(df)
    if np.isinf(prior.df):
        return prior.variance, prior.pooled_df
    total = prior.df + df
    if total == 0:  # a row of one seed beside one method of several
        return prior.variance, prior.pooled_df
    drawn = (prior.df * prior.variance + df * variance) / total
    return drawn, min(total, prior.pooled_df)


def cell(
    accuracies: Sequence[float],
    num_images: int,
    prior: Prior | None = None,
    *,
    design_effect: float = 1.0,
) -> Cell:
    """Return the mean of accuracies in percent and its 95 % interval.

    With several seeds the interval is that of the mean over seeds, with the moderated variance if
    there is a prior; with one seed it is Wilson's for this test set.

    Args:
        design_effect: the variance over images as a share of p (1 - p), which shares of draws stay
            below; Wilson's interval is that of num_images / design_effect images.
    """
    percent = np.asarray(accuracies, dtype=np.float64)
    mean = float(percent.mean())
    if len(percent) == 1:
        return Cell(mean, *_wilson(mean / 100, num_images / design_effect), n=1)
    logits = logit_accuracy(percent / 100 * num_images, num_images)
    variance, df = float(logits.var(ddof=1)), float(len(percent) - 1)
    if prior is not None:
        variance, df = moderate(variance, len(percent) - 1, prior)
    reach = stdtrit(df, 1 - LEVEL / 2) * np.sqrt(variance / len(percent))
    low, high = 100 * expit(logits.mean() + np.array([-reach, reach]))
    return Cell(mean, float(low), float(high), len(percent), df)


def one_more(cell: Cell, num_images: int, *, columns: int = 1) -> tuple[float, float]:
    """Return the interval in percent in which one more run of a cell's row lies with 95 %.

    The cell's interval is that of the mean over n seeds. A run differs from its row's mean by its
    own seed too, so that its interval is sqrt(n + 1) times as wide in logits. With one seed nothing
    is known of seeds, and the interval is the cell's.

    Args:
        num_images: test images behind each of the accuracies.
        columns: how many intervals are to hold at the same time (Bonferroni).
    """
    if cell.n == 1:
        return cell.low, cell.high
    low, high = logit(np.clip([cell.low / 100, cell.high / 100], 1e-15, 1 - 1e-15))
    level = LEVEL / columns
    wider = stdtrit(cell.df, 1 - level / 2) / stdtrit(cell.df, 1 - LEVEL / 2)
    reach = (high - low) / 2 * np.sqrt(cell.n + 1) * wider
    shares = expit((low + high) / 2 + np.array([-reach, reach]))
    ends = 100 * (shares * (num_images + 1) - 0.5) / num_images  # logit_accuracy's halves undone
    return float(max(ends[0], 0.0)), float(min(ends[1], 100.0))


def _design_effect(correct: np.ndarray) -> float:
    """Return the variance over images of a row's shares (n, N) as a share of p (1 - p)."""
    if correct.dtype == bool:
        return 1.0
    share = float(correct.mean())
    binomial = share * (1 - share)
    return float(np.clip(correct.mean(axis=0).var() / binomial, 1e-3, 1.0)) if binomial else 1.0


def _wilson(share: float, num_images: float) -> tuple[float, float]:
    """Return the 95 % score interval of a binomial share, in percent (Wilson 1927)."""
    z = float(ndtri(1 - LEVEL / 2))
    shrink = 1 + z * z / num_images
    center = (share + z * z / (2 * num_images)) / shrink
    spread = share * (1 - share) / num_images + z * z / (4 * num_images**2)
    reach = z * float(np.sqrt(spread)) / shrink
    return 100 * max(center - reach, 0.0), 100 * min(center + reach, 1.0)


def compare(
    columns: Mapping[str, np.ndarray],
    *,
    pool: Collection[str] | None = None,
    untrained: Collection[str] = (),
    ranked: Collection[str] | None = None,
    incomplete: Collection[str] = (),
) -> Comparison:
    """Compare the rows of one column.

    Args:
        columns: name -> (n, N): whether each of n >= 1 seeds was right on each of the N test
            images, bool, or in which share of its draws, in [0, 1]; the same images in the same
            order for all.
        pool: the trained methods whose seed variances make the prior; default: all but `untrained`.
        untrained: rows with a seed variance of their own kind (floors), not drawn to the prior.
        ranked: rows that are tested against each other; default: all with two seeds or more.
        incomplete: rows among the ranked that lack seeds: below every other one, not tested.

    Raises:
        ValueError: there is no row, a row is empty, or the numbers of test images differ.
    """
    names = tuple(columns)
    correct = [np.atleast_2d(np.asarray(columns[name])) for name in names]
    sizes = {array.shape[1] for array in correct}
    if len(sizes) != 1 or 0 in sizes or any(len(array) == 0 for array in correct):
        raise ValueError(f"rows need the same test images and a seed, got N of {sorted(sizes)}")
    (num_images,) = sizes

    seeds = np.array([len(array) for array in correct])
    counts = [array.sum(axis=1) for array in correct]
    logits = [logit_accuracy(count, num_images) for count in counts]
    centers = np.array([values.mean() for values in logits])
    slopes = 1 / (expit(centers) * expit(-centers))  # d logit / d accuracy
    own = np.array([values.var(ddof=1) if len(values) > 1 else 0.0 for values in logits])

    pooled = [name not in untrained if pool is None else name in pool for name in names]
    least = float(np.median(slopes)) ** 2 / (12 * num_images**2)  # of rounding to whole images
    prior = seed_prior(own[pooled], (seeds - 1)[pooled], least=least)
    moderated = [
        moderate(own[i], seeds[i] - 1, NO_PRIOR if name in untrained else prior)
        for i, name in enumerate(names)
    ]
    variances, df = np.array(moderated).T
    drawn = np.array([name not in untrained for name in names]) & (prior.pooled_df > 0)
    errors, pair_df = _pair_errors(correct, slopes, variances / seeds, df, prior, drawn)

    cells = {
        name: cell(
            100 * counts[i] / num_images,
            num_images,
            None if name in untrained else prior,
            design_effect=_design_effect(correct[i]),
        )
        for i, name in enumerate(names)
    }
    ranking = rank(names, seeds, centers, errors, pair_df, ranked=ranked, incomplete=incomplete)
    return Comparison(
        names=names,
        cells=cells,
        ranks=ranking.ranks,
        p_values=ranking.p_values,
        resolvable=_in_points(ranking, centers),
        prior=prior,
        centers=centers,
        errors=errors,
        df=pair_df,
    )


def _pair_errors(
    correct: list[np.ndarray],
    slopes: np.ndarray,
    seed_errors: np.ndarray,
    df: np.ndarray,
    prior: Prior,
    drawn: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return standard errors and degrees of freedom of all differences, each (M, M).

    A difference errs by the seeds that were drawn, s_i^2/n + s_j^2/n, and by the images that were
    drawn, the variance over images of the seed-averaged difference in logits (delta method) / N.
    The degrees of freedom are Satterthwaite's for these terms, except that two rows `drawn` to the
    prior share it: it counts once, d0 + Satterthwaite's of their own.
    """
    num_images = correct[0].shape[1]
    scores = np.stack([array.mean(axis=0) for array in correct]) * slopes[:, None]  # (M, N)
    scores -= scores.mean(axis=1, keepdims=True)
    squares = scores @ scores.T / max(num_images - 1, 1)
    own = np.diag(squares)
    images = np.maximum(own[:, None] + own[None, :] - 2 * squares, 0.0) / num_images
    images[images < 1e-12 * own.max(initial=0.0)] = 0.0

    from_seeds = seed_errors[:, None] + seed_errors[None, :]
    own_df = np.array([len(array) - 1 for array in correct], dtype=np.float64)
    shared = np.minimum(prior.df + satterthwaite(seed_errors, own_df), prior.pooled_df)
    both = drawn[:, None] & drawn[None, :]
    seeds_df = np.where(both, shared, satterthwaite(seed_errors, df)).clip(1.0, MOST_DF)
    square = from_seeds + images
    loss = from_seeds**2 / seeds_df + images**2 / max(num_images - 1, 1)
    pair_df = np.divide(square**2, loss, out=np.full_like(square, MOST_DF), where=loss > 0)
    return np.sqrt(square), pair_df.clip(1.0, MOST_DF)


def _in_points(ranking: Ranking, centers: np.ndarray) -> float | None:
    """Return the difference in points that the median pair shows, at the median accuracy."""
    if ranking.resolvable is None:
        return None
    middle = float(np.median(centers[ranking.tested]))
    half = ranking.resolvable / 2
    return 100 * float(expit(middle + half) - expit(middle - half))
