"""A contrast of cells, its 95 % interval, and how many seeds would decide it.

As on the boards (`bench.statistics`), a difference errs by the seeds that were drawn and by the
test images that were drawn. Here it is in the metric's own unit, since a contrast may be of more
than two cells, or of a difference inside a run. A page draws its rows' variances towards a common
one; two to four cells are too few for that (simulated: five seeds, deviations 1 and 10, 91.8 % of
intervals of nominal 95 % cover), so each cell has its own, with Welch and Satterthwaite's degrees
of freedom. Runs of two cells that share a seed share no more than the validation split, so cells
are not paired by seed; what is measured on one and the same run is one value of that run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from bench.pairs import LEVEL, MOST_DF

MOST_SEEDS = 1000
ROUNDING = 1e-12  # of the parts of a sum: less is nothing


@dataclass(frozen=True, eq=False)
class Cell:
    """One side: a value per seed, and where it is a mean over test images, that of each image.

    Attributes:
        values: (n,) one per seed, in the contrast's unit.
        images: (N,) the mean over seeds of each image's value in the same unit, or None.
        weight: of the cell's mean in the contrast.
        share: whether each value is 0 or 100, a thing that happened or did not. Seeds that agree
            then still leave open how often it happens: three of three is no certainty.
    """

    values: np.ndarray
    images: np.ndarray | None = None
    weight: float = 1.0
    share: bool = False

    @property
    def variance(self) -> float:
        """Return the seeds' variance s^2; 0 of a single seed, which tells nothing.

        Of a share whose n seeds agree, p (1 - p) where p is half a seed more away from the edge,
        (1/2) / (n + 1): the mean of p given the seeds under Jeffreys' prior.
        """
        n = len(self.values)
        if n < 2:
            return 0.0
        found = float(self.values.var(ddof=1))
        return 100.0**2 * (n + 0.5) * 0.5 / (n + 1) ** 2 if self.share and not found else found


@dataclass(frozen=True)
class Estimate:
    """A contrast and its 95 % interval.

    Attributes:
        n: seeds of the smallest cell; with 1 the seeds' share of the error is unknown, taken as 0.
        seed_variance: sum of weight^2 s^2 over cells; divided by n it is the seeds' share of the
            squared error. image_variance: the images' share, which more seeds do not lower.
        df: degrees of freedom. measure: difference, ratio or relative; the variances of the latter
            two are of logarithms.
    """

    value: float
    low: float
    high: float
    n: int
    df: float
    seed_variance: float
    image_variance: float
    measure: str = "difference"


def estimate(cells: Sequence[Cell], measure: str = "difference") -> Estimate:
    """Return the weighted sum of the cells' means; or, of two cells, their ratio.

    Args:
        measure: "difference"; "ratio": the cell of weight above 0 over the other, by logarithms;
            "relative": 100 * (ratio - 1).

    Raises:
        ValueError: no cell, an empty one, or a ratio of values that are not above 0.
    """
    if not cells or any(len(cell.values) == 0 for cell in cells):
        raise ValueError("a contrast needs cells with a value each")
    if measure != "difference":
        cells = [_logarithms(cell) for cell in cells]
    n = min(len(cell.values) for cell in cells)
    parts = [cell.weight * float(cell.values.mean()) for cell in cells]
    value = math.fsum(parts)
    if abs(value) <= ROUNDING * math.fsum(map(abs, parts)):
        value = 0.0
    shares, df = _seed_shares(cells)
    images, num_images = _image_variance(cells)
    square = sum(shares) + images
    loss = (sum(shares) ** 2 / df if df else 0.0) + images**2 / max(num_images - 1, 1)
    freedom = min(max(square**2 / loss, 1.0), MOST_DF) if loss > 0 else MOST_DF
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * square**0.5
    shown = _shown(measure)
    return Estimate(
        value=shown(value),
        low=shown(value - reach),
        high=shown(value + reach),
        n=n,
        df=freedom,
        seed_variance=sum(shares) * n,
        image_variance=images,
        measure=measure,
    )


def regret(places: Mapping[tuple[str, str], np.ndarray]) -> Estimate:
    """Return what the option costs that is least bad everywhere, in percent, where lower is better.

    In each group the best option is known; the option whose largest excess over it, over groups, is
    smallest is chosen for all of them. Choosing and measuring by the same values would find an
    excess in noise alone; so for each seed the others choose (best options, the option for all, the
    group in which it does worst), and the seed's own values say chosen / best there. The mean over
    seeds is of logarithms. Seeds share in each other's choices: of noise alone some 7 % of
    intervals lie above 0, and not 2.5 % (simulated, five seeds, three options in two groups).

    Args:
        places: (group, option) -> (n,) values by seed, every option in every group.

    Raises:
        ValueError: fewer than two seeds, or values that are not above 0.
    """
    groups = sorted({group for group, _ in places})
    options = sorted({option for _, option in places})
    values = np.array([[places[group, option] for option in options] for group in groups])
    if values.shape[-1] < 2:
        raise ValueError("regret needs two seeds: one measures what others choose")
    if not (values > 0).all():
        raise ValueError(f"regret needs values above 0, got {values.min():g}")
    found = []
    for seed in range(values.shape[-1]):
        means = np.delete(values, seed, axis=-1).mean(axis=-1)  # (groups, options)
        excess = means / means.min(axis=1, keepdims=True) - 1
        chosen = int(excess.max(axis=0).argmin())
        worst = int(excess[:, chosen].argmax())
        own = values[worst, :, seed]
        found.append(own[chosen] / own[int(means[worst].argmin())])
    return estimate([Cell(np.array(found))], "relative")


def quotient(one: Cell, other: Cell) -> Cell:
    """Return two cells of the same runs as one, for a ratio of both that is taken seed by seed.

    Raises:
        ValueError: values that are not above 0.
    """
    logs = [_logarithms(cell) for cell in (one, other)]
    return Cell(np.exp(sum(cell.weight * cell.values for cell in logs)), None, 1.0)


def _logarithms(cell: Cell) -> Cell:
    if not (cell.values > 0).all():
        raise ValueError(f"a ratio needs values above 0, got {cell.values.min():g}")
    return Cell(np.log(cell.values), None, float(np.sign(cell.weight)))


def _shown(measure: str) -> Callable[[float], float]:
    """Return how the number on the scale of the errors is shown."""
    if measure == "ratio":
        return lambda value: float(np.exp(value))
    if measure == "relative":
        return lambda value: 100 * float(np.expm1(value))
    return float


def _seed_shares(cells: Sequence[Cell]) -> tuple[list[float], float]:
    """Return each cell's weight^2 s^2 / n, and their sum's degrees of freedom."""
    sizes = [len(cell.values) for cell in cells]
    shares = [
        cell.weight**2 * cell.variance / size for cell, size in zip(cells, sizes, strict=True)
    ]
    return shares, satterthwaite(shares, [float(size - 1) for size in sizes])


def satterthwaite(shares: Sequence[float], degrees: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of independent variances; 0 if all are 0."""
    loss = sum(s**2 / d for s, d in zip(shares, degrees, strict=True) if s > 0 and d > 0)
    return sum(shares) ** 2 / loss if loss > 0 else 0.0


def _image_variance(cells: Sequence[Cell]) -> tuple[float, int]:
    """Return the squared error that the draw of test images adds, and the number of images.

    Cells judged on equally many images are judged on the same ones: differences are per image.
    """
    sums: dict[int, np.ndarray] = {}
    for cell in cells:
        if cell.images is not None:
            size = len(cell.images)
            sums[size] = sums.get(size, np.zeros(size)) + cell.weight * cell.images
    spread = [float(total.var(ddof=1)) / size for size, total in sums.items() if size > 1]
    return sum(spread), min(sums, default=0)


def seeds_until(
    found: Estimate, decided: Callable[[float, float, float], bool], *, most: int = MOST_SEEDS
) -> int | None:
    """Return how many seeds per cell would decide, were the estimate and the variance to stay.

    Args:
        decided: of (value, low, high), whether such an interval decides.

    Returns:
        A number above the seeds at hand and at most `most`, or None: the test images alone leave
        it open, or it takes more.
    """
    per_seed = found.df / max(found.n - 1, 1)  # degrees of freedom that each further seed brings
    center, shown = _unshown(found), _shown(found.measure)
    for n in range(found.n + 1, most + 1):
        square = found.seed_variance / n + found.image_variance
        reach = float(stdtrit(max(per_seed * (n - 1), 1.0), 1 - LEVEL / 2)) * square**0.5
        if decided(found.value, shown(center - reach), shown(center + reach)):
            return n
    return None


def _unshown(found: Estimate) -> float:
    if found.measure == "ratio":
        return float(np.log(found.value))
    if found.measure == "relative":
        return float(np.log1p(found.value / 100))
    return found.value
