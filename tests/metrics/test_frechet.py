"""Frechet distance: closed forms, scipy's square root, the libraries', any rank, and its bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.metrics import frechet


def gaussian(rows: int, width: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Return correlated rows: a mixture of all columns, the same mixture for all seeds."""
    mixture = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + seed)
    return scale * torch.randn(rows, width, generator=generator) @ mixture + shift


def with_moments(rows: int, mean: Tensor, variances: Tensor, seed: int) -> Tensor:
    """Return rows (N, D) whose mean is `mean` and whose covariance is exactly diagonal."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, len(mean), generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(drawn - drawn.mean(0)).Q * math.sqrt(rows - 1)
    return white * variances.sqrt() + mean


def by_square_root(x: Tensor, y: Tensor) -> float:
    """Heusel et al., Eq. 6, by scipy's matrix square root."""
    from scipy.linalg import sqrtm

    x, y = x.double().numpy(), y.double().numpy()
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real))


def by_roots_of_covariances(x: Tensor, y: Tensor) -> float:
    """At any rank: the nuclear norm of S1^(1/2) S2^(1/2), roots by symmetric eigenvectors."""

    def root(features: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(torch.cov(features.double().T))
        return vectors * values.clamp_min(0).sqrt() @ vectors.T

    difference = x.double().mean(0) - y.double().mean(0)
    traces = torch.cov(x.double().T).trace() + torch.cov(y.double().T).trace()
    shared = torch.linalg.svdvals(root(x) @ root(y)).sum()
    return float(difference @ difference + traces - 2 * shared)


def test_diagonal_gaussians_have_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    variances = torch.rand(2, 20, generator=generator, dtype=torch.float64) + 0.1
    x, y = (with_moments(60, means[i], variances[i], i) for i in range(2))
    roots = variances.sqrt()
    exact = (means[0] - means[1]).square().sum() + (roots[0] - roots[1]).square().sum()
    assert frechet.distance(x, y) == pytest.approx(float(exact), rel=1e-11)


def test_it_is_scipy_s_square_root_on_full_rank_features() -> None:
    x, y = gaussian(300, 48, 0), gaussian(260, 48, 1, scale=1.4, shift=0.5)
    assert frechet.distance(x, y) == pytest.approx(by_square_root(x, y), rel=1e-8)


def test_the_root_is_scipy_s_in_blocks_of_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.linalg import sqrtm

    x, y = gaussian(300, 48, 0), gaussian(260, 48, 1, scale=1.4)
    s1, s2 = (torch.cov(features.double().T) for features in (x, y))
    exact = float(np.trace(sqrtm(s1.numpy() @ s2.numpy()).real))
    whole = frechet.distance(x, y)
    for block in (1, 7, 16, 48):
        monkeypatch.setattr(frechet, "_BLOCK", block)
        assert torch.allclose(frechet._gram(x), x.T @ x, rtol=1e-4, atol=1e-3)
        found, error = frechet.root_trace(s1, s2)
        assert found == pytest.approx(exact, rel=1e-9)
        assert error < 1e-9 * exact
        assert frechet.distance(x, y) == pytest.approx(whole, rel=1e-9)


def test_the_root_says_where_it_cannot_be_taken() -> None:
    """Singular, and so nearly singular that roots of rounding would count."""
    s2 = torch.eye(6, dtype=torch.float64)
    for least, trusted in ((0.0, False), (1e-15, False), (1e-4, True)):
        s1 = torch.diag(torch.tensor([1, 1, 1, 1, 1, least], dtype=torch.float64))
        _, error = frechet.root_trace(s1, s2)
        assert (error < 1e-9) == trusted


def test_it_is_torch_fidelity_s() -> None:
    peer = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = gaussian(300, 48, 0).double(), gaussian(260, 48, 1, scale=1.4).double()
    theirs = peer.fid_statistics_to_metric(
        peer.fid_features_to_statistics(x), peer.fid_features_to_statistics(y), False
    )
    assert frechet.distance(x, y) == pytest.approx(theirs[peer.KEY_METRIC_FID], rel=1e-8)


def test_it_is_torchmetrics() -> None:
    peer = pytest.importorskip("torchmetrics.image.fid")
    x, y = gaussian(300, 48, 0).double(), gaussian(260, 48, 1, scale=1.4).double()
    theirs = peer._compute_fid(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert frechet.distance(x, y) == pytest.approx(float(theirs), rel=1e-8)


@pytest.mark.parametrize(
    ("rows", "others"), [(20, 30), (20, 200), (200, 20), (48, 49), (49, 49), (200, 300)]
)
def test_few_rows_on_either_side(rows: int, others: int) -> None:
    """48 features: a side of at most 48 rows has a singular covariance."""
    x, y = gaussian(rows, 48, 0), gaussian(others, 48, 1, scale=0.7, shift=0.2)
    assert frechet.distance(x, y) == pytest.approx(by_roots_of_covariances(x, y), rel=1e-6)
    assert frechet.distance(x, y) == pytest.approx(frechet.distance(y, x), rel=1e-9)


@pytest.mark.parametrize("singular", ["first", "second", "both"])
def test_many_rows_of_low_rank(singular: str) -> None:
    """A constant, a doubled and a summed feature, where an unread `info` gave -9412."""
    x, y = gaussian(300, 12, 0).double(), gaussian(300, 12, 1, scale=1.3).double()
    for name, features in (("first", x), ("second", y)):
        if singular in (name, "both"):
            features[:, 3] = 2.0
            features[:, 5] = features[:, 4]
            features[:, 6] = features[:, 7] + features[:, 8]
    assert frechet.distance(x, y) == pytest.approx(by_roots_of_covariances(x, y), rel=1e-6)


def test_small_directions_are_not_lost() -> None:
    """Standard deviations from 1 to 1e-7, half of those on the other side: known to the digit."""
    deviations = torch.logspace(0, -7, 24, dtype=torch.float64)
    x = with_moments(100, torch.zeros(24).double(), deviations.square(), 0)
    y = with_moments(100, torch.zeros(24).double(), deviations.square() / 4, 1)
    exact = float((deviations / 2).square().sum())
    assert frechet.distance(x, y) == pytest.approx(exact, rel=1e-12)


def test_it_does_not_see_rotation_and_grows_with_the_square_of_scale() -> None:
    x, y = gaussian(200, 16, 0).double(), gaussian(200, 16, 1, shift=1.0).double()
    turn = torch.linalg.qr(gaussian(16, 16, 2).double()).Q
    found = frechet.distance(x, y)
    assert frechet.distance(x @ turn + 5, y @ turn + 5) == pytest.approx(found, rel=1e-9)
    assert frechet.distance(3 * x, 3 * y) == pytest.approx(9 * found, rel=1e-9)


@pytest.mark.parametrize("rows", [10, 200])
@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_no_scale_overflows_or_vanishes(rows: int, scale: float) -> None:
    x, y = gaussian(rows, 16, 0).double(), gaussian(rows, 16, 1, shift=1.0).double()
    found = frechet.distance(scale * x, scale * y)
    assert found == pytest.approx(scale**2 * frechet.distance(x, y), rel=1e-9)


def test_constant_features_are_as_far_apart_as_their_means() -> None:
    ones = torch.ones(20, 3)
    assert frechet.distance(ones, 3 * ones) == 12
    assert frechet.distance(ones, ones) == 0


@pytest.mark.parametrize("rows", [10, 40, 400])
def test_a_set_is_at_nothing_from_itself_and_never_below(rows: int) -> None:
    x = gaussian(rows, 32, 0) * 100
    found = frechet.distance(x, x)
    assert 0 <= found <= 1e-9 * float(x.double().var(0).sum())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:1], "at least 2 rows"),
        (lambda x: x[:, :3], r"\(40, 3\) and \(40, 8\)"),
        (lambda x: x[0], r"expected features \(N, D\)"),
        (lambda x: x[:, :0], "got"),
        (lambda x: x.index_fill(0, torch.tensor([4, 7]), torch.nan), "2 of 40 rows of the samples"),
        (lambda x: x.index_fill(1, torch.tensor([0]), torch.inf), "40 of 40 rows"),
        (lambda x: x.double() * 1e200, "too large"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, words: str) -> None:
    x = gaussian(40, 8, 0)
    with pytest.raises(ValueError, match=words):
        frechet.distance(change(x), x)


def test_float32_would_be_wrong() -> None:
    """Features on a large mean, as pooled activations are: float64 sees the spread alone."""
    x, y = gaussian(200, 16, 0), gaussian(200, 16, 1, scale=1.2)
    offset = 1e4
    moved = [(features.double() + offset) for features in (x, y)]
    assert frechet.distance(*moved) == pytest.approx(frechet.distance(x, y), rel=1e-9)


def test_the_limit_in_one_over_n_is_nearer_the_truth_than_the_distance() -> None:
    """One distribution on both sides: the truth is 0, and at N = 600 of 24 dimensions bias rules.

    Of 40 other draws the worst limit was 0.37 of its distance.
    """
    for seed in range(3):
        x, y = gaussian(600, 24, 10 + seed), gaussian(600, 24, 50 + seed)
        line = frechet.extrapolate(x, y, seed=0)
        assert abs(line.limit) < 0.5 * line.distances[0]
        assert line.slope > 0
        assert line.distances[0] == pytest.approx(frechet.distance(x, y), rel=1e-9)
        assert line.sizes == (600, 300, 200, 150)


def test_the_limit_is_the_line_of_least_squares_with_its_residual() -> None:
    x, y = gaussian(500, 6, 0), gaussian(400, 6, 1, shift=0.3)
    line = frechet.extrapolate(x, y, seed=3, points=5)
    slope, limit = np.polyfit(1 / np.array(line.sizes), line.distances, 1)
    missed = np.array(line.distances) - limit - slope / np.array(line.sizes)
    assert (line.limit, line.slope) == pytest.approx((limit, slope), rel=1e-8)
    assert line.residual == pytest.approx(math.sqrt((missed**2).sum() / 3), rel=1e-6)
    assert line == frechet.extrapolate(x, y, seed=3, points=5)


def test_the_residual_says_how_far_the_limit_may_be_off() -> None:
    """The truth is 0. Blocks of fewer rows than features have no bias K / N: a large residual."""
    x, y = gaussian(2000, 32, 0), gaussian(2000, 32, 1)
    line = frechet.extrapolate(x, y, seed=0)
    bent = frechet.extrapolate(x[:64], y[:64], seed=0, points=6)
    assert abs(line.limit) < 4 * line.residual < 0.5 * line.distances[0]
    assert bent.limit > 0.3 * bent.distances[0]  # wrong, and no more than four residuals from 0
    assert bent.limit < 4 * bent.residual


def test_too_few_points_or_rows_are_refused() -> None:
    x = gaussian(40, 4, 0)
    with pytest.raises(ValueError, match="3 points"):
        frechet.extrapolate(x, x, seed=0, points=2)
    with pytest.raises(ValueError, match="30 of 40"):
        frechet.extrapolate(x, x, seed=0, points=30)


def test_principal_directions_are_those_of_largest_variance_and_hashed() -> None:
    variances = torch.arange(1.0, 13.0).double()
    x = with_moments(100, torch.zeros(12).double(), variances, 0)
    found = frechet.principal_directions(x, 4)
    expected = torch.eye(12)[:, [11, 10, 9, 8]]
    assert torch.allclose(found.basis, expected, atol=1e-6)
    assert found.explained == pytest.approx(42 / 78)
    assert found.sha256 == frechet.principal_directions(x, 4).sha256
    assert found.sha256 != frechet.principal_directions(x[:90], 4).sha256
    assert torch.allclose(found(x), x[:, [11, 10, 9, 8]], atol=1e-5)
    assert found(x).dtype == torch.float64


def test_directions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="along 19 directions, not 64"):
        frechet.principal_directions(gaussian(20, 100, 0))
    with pytest.raises(ValueError, match="along 0 directions, not 2"):
        frechet.principal_directions(torch.ones(20, 10), 2)


def test_few_directions_take_most_of_the_bias_away() -> None:
    """What FD64 is for: at equal N the same distribution is nearer to nothing."""
    x, y, train = (gaussian(300, 200, seed) for seed in range(3))
    few = frechet.principal_directions(train, 16)
    share = frechet.distance(few(x), few(y)) / float(few(y).var(0).sum())
    assert share < 0.3 * frechet.distance(x, y) / float(y.double().var(0).sum())
