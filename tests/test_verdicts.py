"""Verdicts: the order of the words, their edges, and how often they are wrong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bench.contrasts import Cell, Estimate, estimate
from bench.verdicts import (
    CONTRADICTED,
    NO_EFFECT,
    REPRODUCED,
    SMALLER,
    UNDECIDED,
    judge,
    non_inferiority,
    superiority,
    within,
)


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (3.0, 1.0, 5.0, REPRODUCED),
        (2.0, 1.0, 3.0, REPRODUCED),  # an estimate of delta itself
        (1.9, 0.1, 3.7, SMALLER),
        (1.0, 0.5, 1.5, SMALLER),  # within (-delta, delta) too; above 0 comes first
        (-1.0, -1.5, -0.5, CONTRADICTED),  # within (-delta, delta) too; below 0 comes first
        (-9.0, -12.0, -6.0, CONTRADICTED),
        (0.0, -1.9, 1.9, NO_EFFECT),
        (0.5, 0.0, 1.0, NO_EFFECT),  # an interval that touches 0 is not above it
        (0.0, -2.0, 1.9, UNDECIDED),  # one that touches -delta is not inside
        (0.0, -1.9, 2.0, UNDECIDED),
        (3.0, -0.1, 6.1, UNDECIDED),
        (5.0, 0.0, 10.0, UNDECIDED),
    ],
)
def test_superiority_at_delta_2(value, low, high, word):
    assert superiority(value, low, high, 2.0) == word


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.1, 0.3, REPRODUCED), (-0.3, -0.1, CONTRADICTED), (-0.1, 0.1, UNDECIDED)],
)
def test_superiority_at_delta_0_is_a_sign(low, high, word):
    assert superiority((low + high) / 2, low, high, 0.0) == word


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.9, 0.5, REPRODUCED),
        (-0.9, -0.1, REPRODUCED),
        (0.5, 2.0, REPRODUCED),
        (-1.0, 0.5, UNDECIDED),
        (-3.0, -0.5, UNDECIDED),
        (-3.0, -1.0, UNDECIDED),
        (-3.0, -1.1, CONTRADICTED),
    ],
)
def test_non_inferiority_within_1(low, high, word):
    assert non_inferiority((low + high) / 2, low, high, 1.0) == word


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.3, 1.7, REPRODUCED),
        (1.5, 1.5, REPRODUCED),
        (1.2, 1.6, UNDECIDED),
        (1.0, 2.0, UNDECIDED),
        (1.7, 1.9, UNDECIDED),
        (1.71, 1.9, CONTRADICTED),
        (1.0, 1.29, CONTRADICTED),
    ],
)
def test_within_a_range(low, high, word):
    assert within((low + high) / 2, low, high, 1.3, 1.7) == word


def found(value: float, reach: float, n: int = 5, images: float = 0.0) -> Estimate:
    return Estimate(value, value - reach, value + reach, n, n - 1.0, reach**2, images)


def test_an_undecided_claim_says_how_many_seeds_would_decide():
    said = judge(found(1.0, 3.0), rule="superiority", delta=2.0)
    assert said.word == UNDECIDED
    assert said.seeds is not None
    assert said.seeds > 5
    assert f"about {said.seeds} seeds" in said.note


def test_an_undecided_claim_that_no_seeds_decide_says_why():
    said = judge(found(2.0, 3.0, images=4.0), rule="superiority", delta=1.0)
    assert (said.word, said.seeds) == (UNDECIDED, None)
    assert "the test images alone leave it open" in said.note
    said = judge(found(1.3, 0.5), rule="within", bounds=(1.3, 1.7))
    assert said.note.endswith("too near an edge")


def test_one_seed_decides_nothing_alone():
    said = judge(found(1.0, 3.0, n=1), rule="superiority", delta=2.0)
    assert "a single seed" in said.note
    sure = found(5.0, 0.0, n=1)  # without images a single run's interval has no width
    assert judge(sure, rule="superiority", delta=2.0, of_runs=True).word == UNDECIDED
    assert judge(sure, rule="superiority", delta=2.0).word == REPRODUCED  # an exact estimate's


def test_non_inferiority_says_on_which_side_it_is():
    better = judge(found(2.0, 1.0), rule="non-inferiority", delta=1.0)
    assert better.word == REPRODUCED
    assert better.note.startswith("better")
    worse = judge(found(-0.5, 0.4), rule="non-inferiority", delta=1.0)
    assert worse.note.startswith("worse")
    assert judge(found(0.0, 0.4), rule="non-inferiority", delta=1.0).note == ""


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="no rule"):
        judge(found(1.0, 3.0), rule="inferiority")
    with pytest.raises(ValueError, match="no rule 'within'"):
        judge(found(1.0, 3.0), rule="within")


def share(truth: float, deviation: float) -> Counter[str]:
    """Return how often each word is said of five seeds a side whose true difference is `truth`."""
    generator, words = np.random.default_rng(1), Counter()
    for _ in range(1000):
        sides = [generator.normal(mean, deviation, 5) for mean in (truth, 0.0)]
        drawn = estimate([Cell(s, None, w) for s, w in zip(sides, (1, -1), strict=True)])
        words[superiority(drawn.value, drawn.low, drawn.high, 2.0)] += 1
    return words


def test_what_is_not_so_is_seldom_reproduced():
    nothing = share(0.0, 0.8)
    assert nothing[REPRODUCED] + nothing[SMALLER] <= 40  # 25 expected
    assert nothing[CONTRADICTED] <= 40
    assert nothing[NO_EFFECT] >= 700


def test_what_is_so_is_mostly_reproduced():
    assert share(3.0, 0.5)[REPRODUCED] >= 950
    assert share(-3.0, 0.5)[CONTRADICTED] >= 990
    assert share(1.0, 0.3)[SMALLER] >= 950
