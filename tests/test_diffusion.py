"""Diffusion: closed forms against Monte Carlo, both samplers against each other, the bound."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bench.diffusion import (
    Schedule,
    alpha_bar,
    ancestral_step,
    bound_terms,
    bound_weights,
    check_sampling,
    course,
    ddim_step,
    denoise,
    denoised,
    linear_schedule,
    noise_loss,
    noised,
    posterior,
    sample,
)

SCHEDULE = linear_schedule()


def steps(*t: int) -> Tensor:
    return torch.tensor(t)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def forward(images: Tensor, last: int, schedule: Schedule, seed: int) -> list[Tensor]:
    """Return x_0 .. x_last of the chain, step by step (Eq. 2)."""
    generator = torch.Generator().manual_seed(seed)
    chain = [images]
    for beta in schedule.betas[: last + 1].tolist():
        fresh = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        chain.append(math.sqrt(1 - beta) * chain[-1] + math.sqrt(beta) * fresh)
    return chain


def test_schedule_is_the_paper_s() -> None:
    assert len(SCHEDULE) == 1000
    assert float(SCHEDULE.betas[0]) == pytest.approx(1e-4)
    assert float(SCHEDULE.betas[-1]) == pytest.approx(0.02)
    product = 1.0
    for t, beta in enumerate(SCHEDULE.betas.tolist()):
        product *= 1 - beta
        assert float(SCHEDULE.alpha_bars[t]) == pytest.approx(product, rel=1e-12)
    latent = linear_schedule(1000, 0.0015, 0.0195, power=2)
    roots = latent.betas.sqrt()
    assert float(roots[0]) == pytest.approx(math.sqrt(0.0015))
    assert torch.allclose(roots.diff(), roots.diff()[:1])


def test_the_forward_process_keeps_unit_variance_to_its_end() -> None:
    """The lecture prints the mean as (1 - beta) x, which would end at 0.505."""
    exact, printed = 1.0, 1.0
    for beta in SCHEDULE.betas.tolist():
        exact = (1 - beta) * exact + beta
        printed = (1 - beta) ** 2 * printed + beta
    assert exact == pytest.approx(1, abs=1e-9)
    assert printed == pytest.approx(0.505, abs=1e-3)
    one, zero = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1).double()
    of_image = float(noised(SCHEDULE, one, zero, steps(999))) ** 2
    of_noise = float(noised(SCHEDULE, zero, one, steps(999))) ** 2
    assert of_image + of_noise == pytest.approx(exact, abs=1e-3)  # of an image of unit variance
    assert of_image == pytest.approx(float(alpha_bar(SCHEDULE, steps(999))))
    assert of_image < 1e-4  # nothing of the image is left
    t = torch.full((400_000,), 999)
    images = normal(400_000, 1, 1, 1)
    ended = noised(SCHEDULE, images, normal(400_000, 1, 1, 1, seed=1), t)
    assert float(ended.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / 400_000))


def test_noised_in_one_step_is_the_chain_of_all_steps() -> None:
    """Mean and variance of x_40 from 100,000 chains; the bars are five standard errors."""
    count, t = 100_000, 40
    images = torch.full((count, 1, 1, 1), 0.7, dtype=torch.float64)
    ended = forward(images, t, SCHEDULE, seed=2)[-1]
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    mean = float(noised(SCHEDULE, images[:1], zero, steps(t)))
    variance = float(noised(SCHEDULE, zero, one, steps(t))) ** 2
    assert float(ended.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert float(ended.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


def test_denoised_undoes_noised_from_the_first_to_the_last_step() -> None:
    images, noise, t = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1), steps(0, 500, 999)
    found = denoised(SCHEDULE, noised(SCHEDULE, images, noise, t), noise, t)
    assert torch.allclose(found, images, atol=1e-10)


@pytest.mark.parametrize(("t", "earlier"), [(1, 0), (37, 36), (999, 998), (500, 480), (20, 0)])
def test_posterior_is_bayes_rule_over_two_normals(t, earlier) -> None:
    """q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0): precisions add, means are weighted by them."""
    images, noisy = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1)
    before = float(SCHEDULE.alpha_bars[earlier])
    alpha, beta = 1.0, 0.0
    for each in SCHEDULE.betas[earlier + 1 : t + 1].tolist():  # x_s to x_t, step by step
        alpha, beta = alpha * (1 - each), beta * (1 - each) + each
    precision = alpha / beta + 1 / (1 - before)
    weighted = math.sqrt(alpha) / beta * noisy + math.sqrt(before) / (1 - before) * images
    mean, variance = posterior(SCHEDULE, noisy, images, steps(t), steps(earlier))
    assert float(variance) == pytest.approx(1 / precision, rel=1e-9)
    assert torch.allclose(mean, weighted / precision, rtol=1e-9)


def test_posterior_is_the_regression_of_the_chain() -> None:
    """Over chains from one x_0, E[x_{t-1} | x_t] is linear: slope, offset and residual variance.

    100,000 chains; the bars are five standard errors of the least-squares fit.
    """
    count, t = 100_000, 30
    images = torch.full((count, 1, 1, 1), 0.7, dtype=torch.float64)
    *_, before, now = (x.flatten() for x in forward(images, t, SCHEDULE, seed=3))
    slope = float(((now - now.mean()) * (before - before.mean())).mean() / now.var())
    rest = before - before.mean() - slope * (now - now.mean())
    at = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    mean, variance = posterior(SCHEDULE, at, images[:2], steps(t, t), steps(t - 1, t - 1))
    error = math.sqrt(float(rest.var() / now.var()) / count)
    assert float(mean[1] - mean[0]) == pytest.approx(slope, abs=5 * error)
    level = float(before.mean()) + slope * (0 - float(now.mean()))
    assert float(mean[0]) == pytest.approx(level, abs=6 * error)
    assert float(variance[0]) == pytest.approx(float(rest.var()), rel=5 * math.sqrt(2 / count))


def test_from_the_first_step_the_posterior_is_the_image() -> None:
    images, noisy = normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1)
    mean, variance = posterior(SCHEDULE, noisy, images, steps(0, 0), steps(-1, -1))
    assert torch.allclose(mean, images, atol=1e-12)
    assert float(variance.abs().max()) == 0


def test_ancestral_mean_is_algorithm_2() -> None:
    noisy, noise = normal(3, 3, 2, 2), normal(3, 3, 2, 2, seed=1)
    t = steps(1, 400, 999)
    mean, variance = ancestral_step(SCHEDULE, noisy, noise, t, t - 1, clip=False)
    for i, step in enumerate(t.tolist()):
        beta, kept = float(SCHEDULE.betas[step]), float(SCHEDULE.alpha_bars[step])
        expected = (noisy[i] - beta / math.sqrt(1 - kept) * noise[i]) / math.sqrt(1 - beta)
        assert torch.allclose(mean[i], expected, rtol=1e-8, atol=1e-8)
        assert float(variance[i]) == pytest.approx(beta)
    _, small = ancestral_step(SCHEDULE, noisy, noise, t, t - 1, variance="fixedsmall")
    assert (small < variance).all()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("stride", [1, 20])
def test_ddim_with_eta_1_is_the_ancestral_step(clip, stride) -> None:
    noisy, noise = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1)
    t = steps(stride, 300, 700, 999)
    found = ddim_step(SCHEDULE, noisy, noise, t, t - stride, eta=1.0, clip=clip)
    expected = ancestral_step(
        SCHEDULE, noisy, noise, t, t - stride, variance="fixedsmall", clip=clip
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def test_ddim_with_eta_0_is_the_papers_update() -> None:
    noisy, noise, t, earlier = normal(1, 3, 2, 2), normal(1, 3, 2, 2, seed=1), 700, 650
    kept, before = float(SCHEDULE.alpha_bars[t]), float(SCHEDULE.alpha_bars[earlier])
    image = (noisy - math.sqrt(1 - kept) * noise) / math.sqrt(kept)
    expected = math.sqrt(before) * image + math.sqrt(1 - before) * noise
    mean, variance = ddim_step(SCHEDULE, noisy, noise, steps(t), steps(earlier), clip=False)
    assert torch.allclose(mean, expected)
    assert float(variance) == 0


def gaussian(mean: float, std: float):
    """Return the best prediction of the noise where pixels are N(mean, std^2)."""

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        kept = alpha_bar(SCHEDULE, t).to(noisy.dtype)
        total = kept * std**2 + 1 - kept
        return (1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / total

    return predict


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ddim", "steps": 1000},
        {"sampler": "ddim", "steps": 1000, "eta": 1.0},
        {"sampler": "ancestral", "steps": 1000, "variance": "fixedlarge"},
        {"sampler": "ancestral", "steps": 1000, "variance": "fixedsmall"},
    ],
    ids=["ddim", "ddim-eta", "fixedlarge", "fixedsmall"],
)
def test_every_sampler_draws_from_the_data_s_distribution(settings) -> None:
    """20,000 values by the exact predictor: mean within 0.02, deviation within 5 %.

    With all steps: of 50, DDIM's leave a deviation of 0.18.
    """
    torch.manual_seed(0)
    start = torch.randn(20, 1, 25, 40, dtype=torch.float64)
    found = sample(gaussian(0.3, 0.2), SCHEDULE, start, clip=False, **settings)
    assert float(found.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(found.std()) == pytest.approx(0.2, rel=0.05)


def test_samplers_visit_the_steps_evenly_from_last_to_first() -> None:
    assert course(SCHEDULE, 1000) == list(range(999, -1, -1))
    assert course(SCHEDULE, 2000) == course(SCHEDULE, 1000)
    assert course(SCHEDULE, 1) == [999]
    found = course(SCHEDULE, 50)
    assert (len(found), found[0], found[-1]) == (50, 999, 0)
    assert {a - b for a, b in pairwise(found)} == {20, 21}


def test_conditions_follow_their_images_in_any_number() -> None:
    """More samples than the network sees at once: each must keep its own row."""
    values = torch.linspace(-0.9, 0.9, 510)

    def predict(noisy: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        kept = alpha_bar(SCHEDULE, t).to(noisy.dtype)
        return (noisy - kept.sqrt() * targets.view(-1, 1, 1, 1)) / (1 - kept).sqrt()

    found = sample(predict, SCHEDULE, torch.randn(510, 1, 2, 2), values, steps=5)
    assert torch.allclose(found, values.view(-1, 1, 1, 1).expand_as(found), atol=1e-3)


def test_denoise_yields_as_many_images_as_steps_and_stays_in_range() -> None:
    torch.manual_seed(0)
    chain = list(denoise(gaussian(0, 1), SCHEDULE, torch.randn(2, 3, 4, 4), steps=7))
    assert len(chain) == 7
    assert float(chain[-1].abs().max()) <= 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("euler", 50, 0.0, "fixedlarge"), "expected ancestral or ddim"),
        (("ddim", 0, 0.0, "fixedlarge"), "expected 1 or more"),
        (("ddim", 50, 1.5, "fixedlarge"), "expected 0 to 1"),
        (("ancestral", 50, 0.0, "learned"), "expected fixedlarge or fixedsmall"),
    ],
)
def test_unknown_settings_are_refused(settings, said) -> None:
    with pytest.raises(ValueError, match=said):
        check_sampling(*settings)


def test_loss_is_1_for_a_network_that_says_zero_and_0_for_one_that_knows() -> None:
    images = normal(64, 3, 8, 8).clamp(-1, 1)
    torch.manual_seed(0)
    silent = noise_loss(lambda noisy, t: torch.zeros_like(noisy), SCHEDULE, images)
    assert float(silent) == pytest.approx(1, abs=0.05)

    def knows(noisy: Tensor, t: Tensor) -> Tensor:
        kept = alpha_bar(SCHEDULE, t)
        return (noisy - kept.sqrt() * images) / (1 - kept).sqrt()

    assert float(noise_loss(knows, SCHEDULE, images)) < 1e-8


def test_weighted_loss_is_the_weighted_mean() -> None:
    images = normal(16, 3, 4, 4)
    seen: list[Tensor] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.zeros_like(noisy)

    weights = torch.arange(1000, dtype=torch.float64)
    torch.manual_seed(5)
    found = noise_loss(predict, SCHEDULE, images, weights=weights)
    torch.manual_seed(5)
    torch.randint(1000, (16,))
    error = torch.randn_like(images).square().mean((1, 2, 3))
    assert float(found) == pytest.approx(float((error * seen[0]).mean()), rel=1e-5)


@pytest.mark.parametrize("variance", ["fixedlarge", "fixedsmall"])
def test_weights_are_those_of_the_divergences(variance) -> None:
    """KL of step t with one error of the noise, over that error: Eq. 12, up to one factor."""
    weights = bound_weights(SCHEDULE, variance)
    assert float(weights.mean()) == pytest.approx(1)
    noisy, noise, off = normal(1, 1, 1, 1), normal(1, 1, 1, 1, seed=1), 0.01
    ratios = []
    for now in (1, 10, 500, 999):
        t = steps(now)
        right, small = ancestral_step(SCHEDULE, noisy, noise, t, t - 1, clip=False)
        wrong, _ = ancestral_step(SCHEDULE, noisy, noise + off, t, t - 1, clip=False)
        _, small = posterior(SCHEDULE, noisy, noisy, t, t - 1)
        sigma2 = small if variance == "fixedsmall" else SCHEDULE.betas[now]
        divergence = float((right - wrong) ** 2 / (2 * sigma2))
        ratios.append(divergence / off**2 / float(weights[now]))
    assert ratios == pytest.approx([ratios[0]] * 4, rel=1e-6)


@pytest.mark.parametrize("variance", ["fixedlarge", "fixedsmall"])
def test_no_term_of_the_bound_is_negative_and_their_sum_is_above_the_entropy(variance) -> None:
    """8-bit images of independent uniform pixels carry 8 bits each: no bound is below 8."""
    schedule = linear_schedule(100, 1e-3, 0.2)
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(256, (4, 3, 8, 8), generator=generator)
    images = values.double() / 127.5 - 1
    torch.manual_seed(0)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        kept = alpha_bar(schedule, t)
        return (1 - kept).sqrt() * noisy / (kept / 3 + 1 - kept)

    terms = bound_terms(predict, schedule, images, variance=variance)
    assert terms.shape == (4, 101)
    assert (terms >= 0).all()
    bits = terms.sum(1).mean() / (3 * 8 * 8 * math.log(2))
    assert 8 < float(bits) < 12


def test_the_bound_of_the_exact_predictor_is_near_the_entropy() -> None:
    """N(0, 0.3^2) in bins of 2/255. 1,536 values estimate the entropy to 0.03 bits; the fixed
    variances cost 0.17 here, most of it in the first steps."""
    torch.manual_seed(0)
    values = ((torch.randn(2, 3, 16, 16).double() * 0.3).clamp(-1, 1) * 127.5 + 127.5).round()
    images = values / 127.5 - 1
    terms = bound_terms(gaussian(0.0, 0.3), SCHEDULE, images, variance="fixedlarge")
    bits = float(terms.sum(1).mean()) / (3 * 16 * 16 * math.log(2))
    entropy = math.log2(0.3 * 127.5 * math.sqrt(2 * math.pi * math.e))
    assert (terms >= 0).all()
    assert entropy - 0.1 < bits < entropy + 0.3
