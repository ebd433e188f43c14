"""From an interval to a word: what the results say of a claim. Pure; the rule is in the claim."""

from __future__ import annotations

from dataclasses import dataclass

from bench.contrasts import MOST_SEEDS, Estimate, seeds_until

REPRODUCED = "reproduced"
SMALLER = "reproduced, smaller"
CONTRADICTED = "contradicted"
NO_EFFECT = "no effect of that size here"
UNDECIDED = "undecided"
ROUNDING = 1e-6  # of delta: a claim's weights, as 0.0833333333, sum to a little less than they mean


@dataclass(frozen=True)
class Verdict:
    """What the results say.

    Attributes:
        word: one of this module's five.
        note: what else there is to say, or "".
        seeds: for an undecided claim, the seeds per cell that would decide it if estimate and
            variance stay as they are; None otherwise, and where no number up to 1,000 does.
    """

    word: str
    note: str = ""
    seeds: int | None = None


def superiority(value: float, low: float, high: float, delta: float) -> str:
    """Return the word for "the contrast is above 0, by `delta` or more"."""
    if low > 0:
        return REPRODUCED if value >= delta * (1 - ROUNDING) else SMALLER
    if high < 0:
        return CONTRADICTED
    if -delta < low and high < delta:
        return NO_EFFECT
    return UNDECIDED


def non_inferiority(value: float, low: float, high: float, delta: float) -> str:
    """Return the word for "the contrast is not below -`delta`"."""
    if low > -delta:
        return REPRODUCED
    return CONTRADICTED if high < -delta else UNDECIDED


def within(value: float, low: float, high: float, least: float, most: float) -> str:
    """Return the word for "the contrast lies in [least, most]", which holds of equality too."""
    if least <= low and high <= most:
        return REPRODUCED
    return CONTRADICTED if high < least or low > most else UNDECIDED


def judge(
    found: Estimate,
    *,
    rule: str,
    delta: float = 0.0,
    bounds: tuple[float, float] | None = None,
    of_runs: bool = False,
) -> Verdict:
    """Return the verdict on a contrast.

    Args:
        rule: superiority, non-inferiority or within; `bounds` belong to the last.
        of_runs: whether the values are those of trained runs, of which one decides nothing; an
            estimate that no seed changes may be one value.

    Raises:
        ValueError: another rule, or within without bounds.
    """

    def word(value: float, low: float, high: float) -> str:
        if rule == "superiority":
            return superiority(value, low, high, delta)
        if rule == "non-inferiority":
            return non_inferiority(value, low, high, delta)
        if rule == "within" and bounds is not None:
            return within(value, low, high, *bounds)
        raise ValueError(f"no rule {rule!r} with bounds {bounds!r}")

    said = word(found.value, found.low, found.high)
    if found.n < 2 and (of_runs or said == UNDECIDED):
        return Verdict(UNDECIDED, "a single seed tells nothing of the spread over seeds")
    if said == UNDECIDED:
        seeds = seeds_until(found, lambda *interval: word(*interval) != UNDECIDED)
        return Verdict(said, _note(found, seeds), seeds)
    if rule == "non-inferiority" and said == REPRODUCED:
        better = "better, not only as good: the interval is above 0" if found.low > 0 else ""
        worse = "worse, by less than the margin" if found.high < 0 else ""
        return Verdict(said, better or worse)
    return Verdict(said)


def _note(found: Estimate, seeds: int | None) -> str:
    if seeds is not None:
        return f"about {seeds} seeds would decide it, were estimate and spread to stay"
    images = found.image_variance > 0
    why = "the test images alone leave it open" if images else "the estimate is too near an edge"
    return f"no number of seeds up to {MOST_SEEDS:,} would decide it: {why}"
