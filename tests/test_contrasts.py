"""Contrasts: known answers, coverage by simulation, the number of seeds that would decide."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.contrasts import Cell, estimate, regret, seeds_until
from bench.verdicts import NO_EFFECT, REPRODUCED, superiority

SIMULATIONS = 1500  # at a coverage of 95 %, 0.56 points of standard error; the seeds are fixed


def cells(*values: list[float]) -> list[Cell]:
    signs = [1, -1, -1, 1]
    return [Cell(np.array(v), None, w) for v, w in zip(values, signs, strict=False)]


def test_two_cells_are_welchs_interval():
    a, b = [88.1, 88.6, 87.9, 88.4, 88.2], [86.0, 87.5, 85.1, 86.8, 86.2]
    found = estimate(cells(a, b))
    reference = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.n == 5


def test_one_cell_is_students_interval():
    a = [5.0, 7.0, 6.0]
    found = estimate(cells(a))
    reference = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


def test_a_ratio_is_a_difference_of_logarithms():
    found = estimate(cells([2.0, 2.2, 1.9], [1.0, 1.1, 1.0]), "ratio")
    logs = estimate(cells(np.log([2.0, 2.2, 1.9]), np.log([1.0, 1.1, 1.0])))
    assert (found.value, found.low, found.high) == pytest.approx(
        (np.exp(logs.value), np.exp(logs.low), np.exp(logs.high))
    )
    relative = estimate(cells([2.0, 2.2, 1.9], [1.0, 1.1, 1.0]), "relative")
    assert relative.low == pytest.approx(100 * (found.low - 1))


def test_cells_of_the_same_images_err_by_their_difference_alone():
    generator = np.random.default_rng(0)
    hard = generator.uniform(size=1000) < 0.5
    a, b = 100.0 * hard, 100.0 * hard
    b[:10] = 100.0 - b[:10]
    same = estimate([Cell(np.array([50.0]), a, 1), Cell(np.array([50.0]), b, -1)])
    slow = np.sqrt(np.var(a - b, ddof=1) / 1000)
    assert (same.high - same.low) / 2 == pytest.approx(stats.t.ppf(0.975, 999) * slow)
    apart = estimate([Cell(np.array([50.0]), a, 1), Cell(np.array([50.0]), b[:999], -1)])
    assert apart.image_variance > 20 * same.image_variance


@pytest.mark.parametrize("values", [([],), ([1.0], [])])
def test_an_empty_cell_is_refused(values):
    with pytest.raises(ValueError, match="a value each"):
        estimate(cells(*values))


def test_a_ratio_of_what_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        estimate(cells([1.0, 0.0], [1.0, 1.0]), "ratio")


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("deviations", [(1,), (1, 1), (1, 10), (1, 0.5, 2, 3)])
def test_intervals_cover_the_truth(seeds, deviations):
    generator = np.random.default_rng([seeds, len(deviations)])
    covered = 0
    for _ in range(SIMULATIONS):
        drawn = [generator.normal(0, deviation, seeds).tolist() for deviation in deviations]
        found = estimate(cells(*drawn))
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / SIMULATIONS <= 0.985


def test_intervals_over_drawn_images_cover_the_truth():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(300):
        luck = generator.normal(0, 0.02, (2, 5, 1))
        hard = generator.uniform(-0.3, 0.1, 400)
        correct = 100.0 * (generator.uniform(size=(2, 5, 400)) < 0.85 + hard + luck)
        found = estimate(
            [Cell(c.mean(1), c.mean(0), w) for c, w in zip(correct, (1, -1), strict=True)]
        )
        covered += found.low <= 0 <= found.high
    assert covered / 300 >= 0.93


def test_the_seeds_that_would_decide_are_the_fewest():
    found = estimate(cells([1.0, 3.0, -1.5, 2.5, 0.0], [0.5, -1.0, 1.5, -2.0, 0.2]))
    assert found.low < 0 < found.high
    seeds = seeds_until(found, lambda value, low, high: low > 0)
    df = found.df / 4

    def low(n: int) -> float:
        return found.value - stats.t.ppf(0.975, df * (n - 1)) * np.sqrt(found.seed_variance / n)

    assert low(seeds) > 0 >= low(seeds - 1)


def test_no_number_of_seeds_helps_against_too_few_images():
    generator = np.random.default_rng(0)
    images = 100.0 * (generator.uniform(size=50) < 0.5)
    found = estimate([Cell(np.array([1.0, 1.1, 0.9]), images, 1)])
    assert seeds_until(found, lambda value, low, high: low > 0) is None


# Regret


def places(**values: list[float]) -> dict[tuple[str, str], np.ndarray]:
    """Return values of options a and b in groups x and y, from `xa=[...], xb=...`."""
    return {(name[0], name[1]): np.array(v) for name, v in values.items()}


def test_regret_is_what_the_least_bad_option_costs_where_it_costs_most():
    found = regret(places(xa=[1, 1, 1], xb=[2, 2, 2], ya=[3, 3, 3], yb=[2, 2, 2]))
    assert (found.value, found.low, found.high, found.n) == (50.0, 50.0, 50.0, 3)
    same = regret(places(xa=[1, 2, 3], xb=[2, 3, 4], ya=[1, 1, 1], yb=[3, 2, 3]))
    assert (same.value, same.low, same.high) == (0, 0, 0)  # a is best in both


def test_a_seed_is_measured_by_what_the_others_chose():
    """Seed 0 alone would choose a everywhere at no cost; by the others, b, at 100 %."""
    found = regret(places(xa=[1, 2, 2], xb=[2, 1, 1], ya=[1, 2, 2], yb=[2, 1, 1]))
    assert found.value == pytest.approx(0)  # b, best in both by any two seeds
    found = regret(places(xa=[1, 9, 9], xb=[1, 1, 1], ya=[1, 1, 1], yb=[2, 2, 2]))
    assert found.value == pytest.approx(100)  # b for all, twice as far as a in y


def test_noise_alone_is_no_regret():
    generator = np.random.default_rng(7)
    found = []
    for _ in range(SIMULATIONS):
        drawn = np.exp(generator.normal(0, 0.1, (2, 3, 5)))
        groups = {(str(g), str(o)): drawn[g, o] for g in range(2) for o in range(3)}
        found.append(regret(groups))
    assert abs(np.mean([f.value for f in found])) < 0.9  # 2.1 if chosen by what measures
    # Seeds share in each other's choices, so more than 2.5 % lie above 0: 6.8 %.
    assert np.mean([f.low > 0 for f in found]) < 0.085


@pytest.mark.parametrize(
    ("values", "complaint"), [([1.0], "two seeds"), ([1.0, 0.0], "above 0, got 0")]
)
def test_regret_of_what_has_none_is_refused(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        regret(places(xa=values, xb=values))


def shares(*working: int, n: int = 3, weight: float = 0.0833333333) -> list[Cell]:
    """Cells of n seeds, one per setting, of which so many work."""
    return [Cell(100.0 * (np.arange(n) < k), None, weight, share=True) for k in working]


@pytest.mark.parametrize("both", range(13))
def test_equal_shares_differ_by_nothing_at_all(both: int):
    work = [3] * both + [0] * (12 - both)
    found = estimate(shares(*work) + shares(*work, weight=-0.0833333333))
    assert found.value == 0.0
    assert found.high == -found.low
    assert superiority(found.value, found.low, found.high, 25.0) == NO_EFFECT


def test_three_seeds_of_three_are_no_certainty():
    one = estimate(shares(3, *[0] * 11) + shares(*[0] * 12, weight=-0.0833333333))
    # By hand: each of 24 cells p = 1/8 or 7/8, 10^4 p (1 - p) / 3 of it, weight 1/12, df 24 * 2.
    reach = stats.t.ppf(0.975, 48) * 100 * (24 * (7 / 64) / 3) ** 0.5 / 12
    assert (one.high - one.low) / 2 == pytest.approx(reach, rel=1e-6)
    assert one.low < 0 < one.value
    three = estimate(shares(*[3] * 3, *[0] * 9) + shares(*[0] * 12, weight=-0.0833333333))
    assert superiority(three.value, three.low, three.high, 25.0) == REPRODUCED
    assert estimate([Cell(np.array([7.0, 7.0]))]).low == 7.0  # what is no share may be certain


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 50.0])
def test_intervals_of_shares_cover_the_truth(beta: float):
    """Chances that settings work from nearly all 0 or 1 (beta 0.1) to all about a half (50)."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(SIMULATIONS):
        chances = generator.beta(beta, beta, 24)
        working = generator.binomial(3, chances)
        found = estimate(shares(*working[:12]) + shares(*working[12:], weight=-0.0833333333))
        truth = 100 * (chances[:12].mean() - chances[12:].mean())
        covered += found.low <= truth <= found.high
    assert covered / SIMULATIONS > 0.95 - 3 * 0.0056
