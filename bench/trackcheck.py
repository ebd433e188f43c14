"""Whether a track may rank: three conditions on its floors and its label reference alone.

A track on which labels are hardly worth more than pixels, or seeds scatter as far as methods
differ, or a test image weighs too much, cannot order methods, however many run on it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

GAP_POINTS = 20.0  # of the label reference above the best floor, at least
GAP_SDS = 10.0  # the same gap in pooled seed standard deviations, at least
HALF_WIDTH_POINTS = 1.5  # binomial, 95 %, at an accuracy of one half; at most
SEEDS = 5
LEAST_SAMPLES = 1000


@dataclass(frozen=True)
class Condition:
    """One condition: what is asked, what was met. `holds` is None where it cannot be told yet."""

    asked: str
    met: str
    holds: bool | None


@dataclass(frozen=True)
class TrackCheck:
    """The three conditions of a track."""

    conditions: tuple[Condition, ...]

    @property
    def passed(self) -> bool:
        return all(condition.holds for condition in self.conditions)

    @property
    def failed(self) -> bool:
        """Return whether a condition is known not to hold."""
        return any(condition.holds is False for condition in self.conditions)


def check(
    floors: Mapping[str, Sequence[float]],
    reference: Sequence[float],
    num_images: int,
    *,
    untrained: Collection[str] = (),
) -> TrackCheck:
    """Return the conditions for one headline.

    Args:
        floors: name -> accuracies in percent, one per seed; none where a floor did not run.
        reference: of the method that learns from the labels.
        num_images: of the split that the accuracies are on.
        untrained: floors that have no seed of their own; one value is enough of these, and how
            their values scatter, by validation split or draws alone, is no seed's deviation.
    """
    absent = [name for name, values in floors.items() if not len(values)]
    known = {name: values for name, values in floors.items() if len(values)}
    drawn = [values for name, values in known.items() if name not in untrained]
    enough = bool(known) and min(len(reference), *map(len, drawn), SEEDS) >= SEEDS
    if absent or not enough:
        few = f"fewer than {SEEDS} seeds of a floor or of the reference"
        said = f"no {' and no '.join(sorted(absent))}" if absent else few
        gap = Condition(_asked_gap(), said, None)
        spread = Condition(_asked_spread(), said, None)
    else:
        best = max(known, key=lambda name: (_mean(known[name]), name))
        points = _mean(reference) - _mean(known[best])
        sd = pooled_sd([*drawn, reference])
        gap = Condition(
            _asked_gap(),
            f"{points:.1f} points ({_mean(reference):.1f} above {_mean(known[best]):.1f}, {best})",
            points >= GAP_POINTS,
        )
        sds = points / sd if sd > 0 else math.inf
        spread = Condition(
            _asked_spread(), f"{sds:.3g} (sd {sd:.2f} points)", points > 0 and sds >= GAP_SDS
        )
    width = 100 * 1.96 * 0.5 / math.sqrt(num_images) if num_images else math.inf
    test = Condition(
        f"binomial 95 % half-width at most {HALF_WIDTH_POINTS} points",
        f"{width:.1f} points with {num_images} images",
        width <= HALF_WIDTH_POINTS,
    )
    return TrackCheck((gap, spread, test))


def check_distance(
    good: Sequence[float],
    bad: Sequence[float],
    trained: Sequence[Sequence[float]],
    num_samples: int,
) -> TrackCheck:
    """Return the conditions for a headline that is a distance between sets of images.

    Args:
        good: distance of real images to other real ones, one for each seed.
        bad: distance of real images of one class only.
        trained: of each trained method, one for each seed. The median of their deviations counts,
            so that one method that is unstable says nothing of the track.
        num_samples: behind each distance.
    """
    asked = f"one class only at least {GAP_SDS:.0f} seed sds above other real images"
    if min(len(good), len(bad)) < SEEDS - 2 or not trained:
        gap = Condition(asked, "no calibration of three seeds or more", None)
        floor = Condition(_asked_floor(), "no calibration of three seeds or more", None)
    else:
        spreads = [pooled_sd([values]) for values in trained if len(values) > 1]
        sd = max(pooled_sd([good, bad]), statistics.median(spreads) if spreads else 0.0)
        sds = (_mean(bad) - _mean(good)) / sd if sd > 0 else math.inf
        met = f"{sds:.3g} (from {_mean(good):.3g} to {_mean(bad):.3g}, sd {sd:.3g})"
        gap = Condition(asked, met, sds >= GAP_SDS)
        best = min(_mean(values) for values in trained if len(values))
        met = f"{_mean(good):.3g} against {best:.3g} of the best"
        floor = Condition(_asked_floor(), met, _mean(good) < best)
    enough = Condition(
        f"at least {LEAST_SAMPLES} samples", f"{num_samples}", num_samples >= LEAST_SAMPLES
    )
    return TrackCheck((gap, floor, enough))


def pooled_sd(rows: Sequence[Sequence[float]]) -> float:
    """Return the square root of the mean seed variance in points, weighted by degrees of freedom.

    Rows of one seed say nothing; 0 if none says anything.
    """
    sums = [(sum((v - _mean(row)) ** 2 for v in row), len(row) - 1) for row in rows]
    freedom = sum(df for _, df in sums)
    return math.sqrt(sum(total for total, _ in sums) / freedom) if freedom else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _asked_gap() -> str:
    return f"label reference at least {GAP_POINTS:.0f} points above the best floor"


def _asked_spread() -> str:
    return f"that gap at least {GAP_SDS:.0f} pooled seed sds"


def _asked_floor() -> str:
    return "other real images nearer than every generator"
