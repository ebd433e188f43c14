"""Likelihoods of 8-bit values: masses that sum to one, divergences against Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.likelihoods import (
    bits_per_dim,
    discretised_logistic,
    discretised_normal,
    kl_normal,
    kl_standard_normal,
)

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1
LAWS = pytest.mark.parametrize("law", [discretised_logistic, discretised_normal])


def at(law, values: Tensor, mean: float, scale: float) -> Tensor:
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (mean, math.log(scale)))
    return law(values.view(1, 1, 1, -1), *numbers).flatten()


@LAWS
@pytest.mark.parametrize("mean", [-1.7, -1.0, 0.003, 0.4, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.3, 5.0])
def test_masses_of_the_256_values_sum_to_one(law, mean, scale) -> None:
    nats = at(law, VALUES, mean, scale)
    assert nats.isfinite().all()
    assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-9)


@LAWS
def test_a_mass_is_the_difference_of_the_law_s_distribution_function(law) -> None:
    def below(x: float) -> float:
        if law is discretised_logistic:
            return 1 / (1 + math.exp(-x))
        return 0.5 * math.erfc(-x / math.sqrt(2))

    mean, scale = 0.1, 0.2
    for value, nats in zip(VALUES.tolist(), at(law, VALUES, mean, scale).tolist(), strict=True):
        low = 0.0 if value == -1 else below((value - 1 / 255 - mean) / scale)
        high = 1.0 if value == 1 else below((value + 1 / 255 - mean) / scale)
        assert math.exp(-nats) == pytest.approx(high - low, rel=1e-6)


@LAWS
def test_float32_stays_finite_with_gradients_far_out(law) -> None:
    mean = torch.tensor([[-30.0, -1.0, 0.0, 30.0]], requires_grad=True)
    log_scale = torch.full((1, 4), -5.0, requires_grad=True)
    law(VALUES.float()[:, None], mean, log_scale).sum().backward()
    assert mean.grad.isfinite().all()
    assert log_scale.grad.isfinite().all()


def test_nats_of_a_uniform_guess_are_8_bits_per_value() -> None:
    uniform = torch.full((2,), 3 * 4 * 4 * math.log(256), dtype=torch.float64)
    assert bits_per_dim(uniform, 3 * 4 * 4).tolist() == pytest.approx([8.0, 8.0], abs=1e-12)


@LAWS
def test_on_uniform_noise_no_model_beats_8_bits(law) -> None:
    """The mean over all 256 values is a cross-entropy; a density would get below."""
    for mean in (-0.5, 0.0, 0.9):
        for scale in (0.01, 0.3, 0.6, 4.0):
            assert float(bits_per_dim(at(law, VALUES, mean, scale).mean(), 1)) > 8
    assert float(bits_per_dim(at(law, VALUES, 0.0, 0.6).mean(), 1)) < 8.7


def test_divergence_is_what_monte_carlo_says() -> None:
    """The mean of 200,000 differences of log densities; the bar is five standard errors."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([[0.5, -1.0, 0.0]], dtype=torch.float64)
    log_var = torch.tensor([[0.2, -1.0, 0.0]], dtype=torch.float64)
    noise = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    latents = mean + torch.exp(log_var / 2) * noise
    of_q = -0.5 * (noise.square() + log_var + math.log(2 * math.pi))
    of_prior = -0.5 * (latents.square() + math.log(2 * math.pi))
    ratios = (of_q - of_prior).sum(1)
    error = float(ratios.std() / math.sqrt(len(ratios)))
    assert float(kl_standard_normal(mean, log_var)) == pytest.approx(
        float(ratios.mean()), abs=5 * error
    )


def test_divergence_is_torch_s_and_never_below_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    mean0, mean1 = torch.randn(2, 500, generator=generator, dtype=torch.float64)
    log_var0, log_var1 = torch.randn(2, 500, generator=generator, dtype=torch.float64)
    laws = [
        torch.distributions.Normal(mean, torch.exp(log_var / 2))
        for mean, log_var in ((mean0, log_var0), (mean1, log_var1))
    ]
    found = kl_normal(mean0, log_var0, mean1, log_var1)
    assert torch.allclose(found, torch.distributions.kl_divergence(*laws))
    assert (found >= 0).all()
    assert float(kl_normal(mean0, log_var0, mean0, log_var0).abs().max()) == 0
