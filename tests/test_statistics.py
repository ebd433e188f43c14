"""Statistics: against slow versions from the equations, and on simulated boards."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats
from scipy.optimize import brentq

from bench.pairs import holm
from bench.statistics import (
    Prior,
    cell,
    compare,
    logit_accuracy,
    moderate,
    one_more,
    seed_prior,
)


def simulate(
    rng: np.random.Generator,
    *,
    methods: int,
    seeds: int,
    spread: float = 0.0,
    lead: float = 0.0,
    seed_sd: float = 0.3,
    images: int = 500,
) -> dict[str, np.ndarray]:
    """Return answers of methods that are equal, but for `lead` seed sds of the first.

    An image is right if ability + seed's luck + image's ease + method's taste + noise > 0; the
    seed's sd differs between methods by a factor e^U(-spread, spread). The seeds' sd is large
    beside the images', where false separation is hardest to avoid.
    """
    sds = seed_sd * np.exp(rng.uniform(-spread, spread, methods))
    ability = special.ndtri(0.7) * np.sqrt(2.1) + sds[:, None] * rng.standard_normal(
        (methods, seeds)
    )
    ability[0] += lead * sds[0]
    ease = rng.standard_normal(images, dtype=np.float32)
    taste = 0.3 * rng.standard_normal((methods, 1, images), dtype=np.float32)
    noise = rng.standard_normal((methods, seeds, images), dtype=np.float32)
    right = ability[:, :, None].astype(np.float32) + ease + taste + noise > 0
    return {f"method{i:02d}": right[i] for i in range(methods)}


def separated(board: dict[str, np.ndarray]) -> bool:
    return any(ranks != (1, len(board)) for ranks in compare(board).ranks.values())


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("methods", [6, 18])
def test_equal_methods_are_rarely_separated(methods, seeds, spread):
    rng = np.random.default_rng([methods, seeds, int(spread)])
    boards = 1000
    false = sum(
        separated(simulate(rng, methods=methods, seeds=seeds, spread=spread)) for _ in range(boards)
    )
    assert false / boards <= (0.12 if spread else 0.07)


@pytest.mark.parametrize("methods", [6, 18])
def test_a_lead_of_four_seed_sds_is_found(methods):
    """Found: a pair's test shows it. Against every other of 17 at once it is harder."""
    rng = np.random.default_rng(methods)
    boards, shown, alone = 200, [], 0
    for _ in range(boards):
        comparison = compare(simulate(rng, methods=methods, seeds=5, lead=4.0))
        leads = [p for (a, _), p in comparison.p_values.items() if a == "method00"]
        shown.append(np.mean(np.array(leads) <= 0.05))
        alone += comparison.ranks["method00"] == (1, 1)
    assert np.mean(shown) >= 0.90
    assert alone / boards >= (0.90 if methods == 6 else 0.80)


def test_the_resolvable_difference_is_found_in_about_four_of_five_boards():
    rng = np.random.default_rng(5)
    options = {"methods": 6, "seeds": 5, "seed_sd": 0.15, "images": 2000}
    resolvable = np.median([compare(simulate(rng, **options)).resolvable for _ in range(60)])

    def gap(lead: float) -> float:  # in points, of two methods without noise
        scale = np.sqrt(2.09 + 0.15**2)
        base = special.ndtri(0.7) * np.sqrt(2.1)
        return 100 * float(np.diff(special.ndtr(np.array([base, base + 0.15 * lead]) / scale))[0])

    lead = brentq(lambda value: gap(value) - resolvable, 0.0, 20.0)
    found = []
    for _ in range(200):
        comparison = compare(simulate(rng, **options, lead=lead))
        leads = [p for (a, _), p in comparison.p_values.items() if a == "method00"]
        found.append(np.mean(np.array(leads) <= 0.05))
    assert 0.70 <= np.mean(found) <= 0.95


def simulate_draws(
    rng: np.random.Generator,
    *,
    methods: int,
    seeds: int,
    draws: int = 10,
    images: int = 300,
    lead: float = 0.0,
) -> dict[str, np.ndarray]:
    """Return the share of draws in which methods have each image right, (n, N).

    They are equal, but for `lead` seed sds of the first. A seed's draws of labelled images are the
    same for all methods: each moves all methods alike, and each method a little by itself.
    """
    seed = 0.15 * rng.standard_normal((methods, seeds, 1, 1))
    seed[0] += lead * np.sqrt(0.15**2 + (0.4**2 + 0.2**2) / draws)
    drawn = 0.4 * rng.standard_normal((1, seeds, draws, 1))
    own = 0.2 * rng.standard_normal((methods, seeds, draws, 1))
    ease = rng.standard_normal((1, 1, 1, images))
    taste = 0.3 * rng.standard_normal((methods, 1, 1, images))
    noise = rng.standard_normal((methods, seeds, draws, images), dtype=np.float32)
    right = 0.3 + seed + drawn + own + ease + taste + noise > 0
    return {f"method{i:02d}": share for i, share in enumerate(right.mean(axis=2))}


@pytest.mark.parametrize(("methods", "seeds"), [(6, 3), (6, 5), (12, 5)])
def test_equal_methods_of_many_draws_are_rarely_separated(methods, seeds):
    rng = np.random.default_rng([methods, seeds])
    boards = 400
    false = sum(separated(simulate_draws(rng, methods=methods, seeds=seeds)) for _ in range(boards))
    assert false / boards <= 0.07


def test_a_lead_over_many_draws_is_found():
    rng = np.random.default_rng(8)
    found = []
    for _ in range(60):
        board = simulate_draws(rng, methods=4, seeds=5, lead=4.0)
        found.append(compare(board).ranks["method00"] == (1, 1))
    assert np.mean(found) >= 0.90


def test_shares_of_one_draw_are_truths():
    board = simulate(np.random.default_rng(2), methods=4, seeds=3)
    plain, shares = compare(board), compare({k: v.astype(float) for k, v in board.items()})
    assert shares.p_values == pytest.approx(plain.p_values)
    assert shares.cells == plain.cells
    single = {name: right[:1] for name, right in board.items()}
    floats = compare({name: right.astype(float) for name, right in single.items()})
    for name, shown in compare(single).cells.items():
        assert floats.cells[name].low == pytest.approx(shown.low)


def test_a_single_run_of_draws_has_the_interval_of_its_images():
    """Over many test sets: about 95 % hold the truth, and truths' interval would be wider."""
    rng = np.random.default_rng(6)
    held, widths = [], []
    for _ in range(400):
        chance = rng.choice([0.1, 0.5, 0.9], 200)
        share = rng.binomial(20, chance) / 20
        shown = compare({"one": share[None]}).cells["one"]
        held.append(shown.low <= 50.0 <= shown.high)
        widths.append(shown.half_width / cell([100 * share.mean()], 200).half_width)
    assert 0.92 <= np.mean(held) <= 0.98
    assert np.mean(widths) < 0.8


def test_one_method_under_two_names_ties():
    rng = np.random.default_rng(3)
    boards, ties = 300, 0
    for _ in range(boards):
        board = simulate(rng, methods=5, seeds=5, lead=6.0)
        twin = simulate(rng, methods=1, seeds=10)["method00"]
        comparison = compare(board | {"twin0": twin[:5], "twin1": twin[5:]})
        ties += comparison.p_values["twin0", "twin1"] > 0.05
    assert ties / boards >= 0.95


def test_identical_rows_tie_at_every_rank():
    board = simulate(np.random.default_rng(0), methods=1, seeds=5)
    comparison = compare(dict.fromkeys(("a", "b", "c"), board["method00"]))
    assert comparison.ranks == {"a": (1, 3), "b": (1, 3), "c": (1, 3)}
    assert set(comparison.p_values.values()) == {1.0}
    assert comparison.difference("a", "b")[0] < 0 < comparison.difference("a", "b")[1]


def test_rows_without_any_variance_tie_or_differ_without_a_warning():
    right = np.ones((3, 40), dtype=bool)
    half = np.tile(np.arange(40) % 2 == 0, (3, 1))
    with np.errstate(all="raise"):
        comparison = compare({"all": right, "too": right, "half": half})
    assert comparison.p_values["all", "too"] == 1.0
    assert comparison.ranks["half"] == (3, 3)
    assert comparison.difference("all", "too") == (0.0, 0.0)


def test_pair_errors_match_the_equation_image_by_image():
    rng = np.random.default_rng(7)
    board = simulate(rng, methods=3, seeds=4, images=60)
    comparison = compare(board)
    a, b = board["method00"], board["method02"]
    moderated, centers, slopes = [], [], []
    for right in (a, b):
        logits = [np.log((row.sum() + 0.5) / (60 - row.sum() + 0.5)) for row in right]
        moderated.append(moderate(float(np.var(logits, ddof=1)), 3, comparison.prior)[0])
        centers.append(np.mean(logits))
        share = 1 / (1 + np.exp(-np.mean(logits)))
        slopes.append(1 / (share * (1 - share)))
    per_image = [
        np.mean([row[x] for row in a]) * slopes[0] - np.mean([row[x] for row in b]) * slopes[1]
        for x in range(60)
    ]
    expected = np.sqrt(sum(moderated) / 4 + np.var(per_image, ddof=1) / 60)
    assert comparison.errors[0, 2] == pytest.approx(expected, rel=1e-12)
    assert comparison.centers[0] - comparison.centers[2] == pytest.approx(centers[0] - centers[1])


def test_two_plain_rows_have_welch_degrees_of_freedom():
    """Rows that are not moderated: Welch's test, where the test set is too large to matter."""
    rng = np.random.default_rng(11)
    images = 4000
    counts = {"a": rng.integers(2000, 2400, 4), "b": rng.integers(2300, 3500, 6)}
    board = {name: np.arange(images)[None] < values[:, None] for name, values in counts.items()}
    comparison = compare(board, untrained=("a", "b"))
    logits = [logit_accuracy(values, images) for values in counts.values()]
    welch = stats.ttest_ind(*logits, equal_var=False)
    seeds_only = sum(values.var(ddof=1) / len(values) for values in logits)
    assert seeds_only <= comparison.errors[0, 1] ** 2 <= 1.2 * seeds_only
    assert welch.df <= comparison.df[0, 1] <= 1.5 * welch.df


def test_the_prior_is_found_again_in_simulated_variances():
    rng = np.random.default_rng(1)
    true_df, true_variance, df = 8.0, 0.04, 4
    sigma2 = true_variance * true_df / rng.chisquare(true_df, 4000)
    prior = seed_prior(sigma2 * rng.chisquare(df, 4000) / df, [df] * 4000)
    assert prior.df == pytest.approx(true_df, rel=0.15)
    assert prior.variance == pytest.approx(true_variance, rel=0.05)


def test_the_prior_solves_the_moment_equations():
    variances, df = [0.01, 0.4, 0.03, 1.2, 0.002], [4, 4, 2, 4, 3]
    prior = seed_prior(variances, df)
    e = [
        np.log(v) - special.digamma(d / 2) + np.log(d / 2)
        for v, d in zip(variances, df, strict=True)
    ]
    excess = np.var(e, ddof=1) - np.mean([special.polygamma(1, d / 2) for d in df])
    half = brentq(lambda y: special.polygamma(1, y) - excess, 1e-3, 1e3)
    assert prior.df == pytest.approx(2 * half, rel=1e-8)
    assert np.log(prior.variance) == pytest.approx(
        np.mean(e) + special.digamma(half) - np.log(half)
    )


def test_equal_variances_are_pooled_outright():
    prior = seed_prior([0.2, 0.2, 0.2], [4, 4, 2])
    assert prior == Prior(np.inf, pytest.approx(0.2), 10.0)
    assert moderate(5.0, 4, prior) == (pytest.approx(0.2), 10.0)


def test_a_moderated_variance_lies_between_its_own_and_the_prior():
    variance, df = moderate(0.09, 4, Prior(df=6.0, variance=0.01, pooled_df=40.0))
    assert variance == pytest.approx((6 * 0.01 + 4 * 0.09) / 10)
    assert df == 10


def test_one_method_alone_has_its_own_variance():
    assert moderate(0.09, 4, seed_prior([0.09], [4])) == (pytest.approx(0.09), 4.0)


def test_a_row_of_one_seed_beside_one_method_has_that_ones_variance():
    """Not none: a floor of one seed would else lie below whatever is above its luck."""
    assert moderate(0.0, 0, seed_prior([0.09], [4])) == (pytest.approx(0.09), 4.0)


def test_a_cell_is_the_back_transformed_t_interval():
    accuracies, images = np.array([90.0, 91.2, 90.4]), 500
    shown = cell(accuracies, images)
    logits = np.log((accuracies * 5 + 0.5) / (500 - accuracies * 5 + 0.5))
    reach = stats.t.ppf(0.975, 2) * logits.std(ddof=1) / np.sqrt(3)
    low, high = (100 / (1 + np.exp(-(logits.mean() + side * reach))) for side in (-1, 1))
    assert (shown.low, shown.high) == (pytest.approx(low), pytest.approx(high))
    assert shown.mean == pytest.approx(accuracies.mean())
    assert shown.half_width == pytest.approx((high - low) / 2)
    assert shown.n == 3


@pytest.mark.parametrize("correct", [0, 1, 250, 499, 500])
def test_a_single_run_has_the_test_sets_interval(correct):
    shown = cell([correct / 5], 500)
    wilson = stats.binomtest(correct, 500).proportion_ci(method="wilson")
    assert (shown.low, shown.high) == (
        pytest.approx(100 * wilson.low, abs=1e-9),
        pytest.approx(100 * wilson.high, abs=1e-9),
    )


def test_cells_cover_the_mean_of_many_more_seeds():
    rng = np.random.default_rng(9)
    held = []
    for _ in range(60):
        board = simulate(rng, methods=6, seeds=65)
        cells = compare({name: right[:5] for name, right in board.items()}).cells
        for name, right in board.items():
            truth = 100 * special.expit(logit_accuracy(right[5:].sum(axis=1), 500).mean())
            held.append(cells[name].low <= truth <= cells[name].high)
    assert 0.92 <= np.mean(held) <= 0.985


def test_one_more_run_is_the_t_prediction_interval():
    num_images, percent = 500, np.array([90.0, 92.4, 91.0, 89.2])
    hits = percent / 100 * num_images
    logits = np.log((hits + 0.5) / (num_images - hits + 0.5))
    reach = stats.t.ppf(1 - 0.05 / 3 / 2, 3) * logits.std(ddof=1) * np.sqrt(1 + 1 / 4)
    low, high = one_more(cell(percent, num_images), num_images, columns=3)
    for end, of_logits in ((low, logits.mean() - reach), (high, logits.mean() + reach)):
        assert logit_accuracy(end / 100 * num_images, num_images) == pytest.approx(of_logits)


def test_one_more_run_lies_inside_as_often_as_said():
    rng = np.random.default_rng(3)
    boards, num_images, inside = 2000, 10_000, 0
    for _ in range(boards):
        shares = special.expit(1.0 + 0.2 * rng.standard_normal(6))
        percent = 100 * np.rint(shares * num_images) / num_images
        low, high = one_more(cell(percent[:5], num_images), num_images)
        inside += low <= percent[5] <= high
    assert inside / boards == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / boards))


@pytest.mark.parametrize("percent", [0.0, 37.2, 100.0])
def test_one_more_run_of_equal_runs_is_that_run(percent):
    low, high = one_more(cell([percent] * 5, 500), 500, columns=4)
    assert low - 1e-9 <= percent <= high + 1e-9
    assert high - low < 1e-9


def test_one_more_run_of_a_single_run_has_the_test_sets_interval():
    single = cell([91.0], 500)
    assert one_more(single, 500, columns=4) == (single.low, single.high)


def test_one_more_run_where_seeds_tell_nothing_is_between_none_and_all():
    low, high = one_more(cell([0.0, 100.0], 500), 500)
    assert (low, high) == (0.0, 100.0)


def test_holm_matches_the_step_down_loop():
    p = np.random.default_rng(2).uniform(0, 0.2, 12)
    expected, largest = np.empty(12), 0.0
    for step, at in enumerate(sorted(range(12), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (12 - step) * p[at]))
        expected[at] = largest
    assert np.allclose(holm(p), expected, rtol=0, atol=1e-15)


def test_incomplete_rows_rank_below_every_complete_one():
    rng = np.random.default_rng(4)
    board = simulate(rng, methods=3, seeds=5)
    board["lucky"] = np.ones((4, 500), dtype=bool)
    comparison = compare(board, incomplete=("lucky",))
    assert comparison.ranks["lucky"] == (4, 4)
    assert all(comparison.ranks[f"method0{i}"][1] <= 3 for i in range(3))
    assert not any("lucky" in pair for pair in comparison.p_values)


def test_single_runs_have_a_cell_and_no_rank():
    board = simulate(np.random.default_rng(6), methods=3, seeds=5)
    board["single"] = board["method00"][:1]
    comparison = compare(board)
    assert "single" not in comparison.ranks
    assert comparison.cells["single"].n == 1
    low, high = comparison.difference("single", "method00")
    assert low < 0 < high


def test_floors_do_not_move_the_prior():
    board = simulate(np.random.default_rng(8), methods=4, seeds=5)
    floor = np.tile(board["method00"][:1], (5, 1))
    with_floor = compare(board | {"floor": floor}, untrained=("floor",))
    alone = compare(board)
    assert (with_floor.prior.df, with_floor.prior.variance) == pytest.approx(
        (alone.prior.df, alone.prior.variance)
    )
    assert with_floor.cells["floor"].half_width == 0.0


def test_rows_of_different_test_sets_are_refused():
    with pytest.raises(ValueError, match="same test images"):
        compare({"a": np.ones((2, 10), bool), "b": np.ones((2, 11), bool)})
