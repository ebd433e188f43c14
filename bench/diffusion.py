"""Denoising diffusion as functions: the forward process, its posterior, two samplers, the bound.

Paper:   Ho et al., NeurIPS 2020 (https://arxiv.org/abs/2006.11239); DDIM: Song et al., ICLR 2021
         (https://arxiv.org/abs/2010.02502).

Steps are numbered from 0: index t is the papers' t + 1, and -1 is the image itself. Coefficients
are computed in float64 and rounded once, to the type of the images that they multiply.

`predict(noisy, t, *conditions)` is a network's guess of the noise: (B, C, H, W), int64 (B,) and
whatever else has a row per image, to (B, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.likelihoods import discretised_normal, kl_normal

Predict = Callable[..., Tensor]
SAMPLERS = ("ancestral", "ddim")
VARIANCES = ("fixedlarge", "fixedsmall")
AT_ONCE = 250  # images that a sampler shows the network together


@dataclass(frozen=True)
class Schedule:
    """How much noise each step adds.

    Attributes:
        betas: float64 (T,), variance that step t adds to what it shrinks by sqrt(1 - beta).
        alpha_bars: float64 (T,), the share of the image's variance that is left after step t.
    """

    betas: Tensor
    alpha_bars: Tensor

    def __len__(self) -> int:
        return len(self.betas)


def linear_schedule(
    steps: int = 1000,
    first: float = 1e-4,
    last: float = 0.02,
    *,
    power: float = 1.0,
    device: torch.device | str = "cpu",
) -> Schedule:
    """Return the schedule whose beta ** (1 / power) grows linearly (Ho et al., Section 4).

    Args:
        power: 1 in the paper; 2 in latent diffusion's code.
    """
    roots = torch.linspace(first ** (1 / power), last ** (1 / power), steps, dtype=torch.float64)
    betas = roots**power
    return Schedule(betas.to(device), torch.cumprod(1 - betas, 0).to(device))


def alpha_bar(schedule: Schedule, t: Tensor) -> Tensor:
    """Return the image's share of the variance at steps t (B,), 1 at -1: float64 (B, 1, 1, 1)."""
    found = torch.where(t < 0, 1.0, schedule.alpha_bars[t.clamp(min=0)])
    return found.view(-1, 1, 1, 1)


def noised(schedule: Schedule, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t of q(x_t | x_0) (Eq. 4): sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
    kept = alpha_bar(schedule, t)
    return kept.sqrt().to(images.dtype) * images + (1 - kept).sqrt().to(images.dtype) * noise


def denoised(schedule: Schedule, noisy: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the x_0 of which `noisy` is x_t with this noise: Eq. 4 solved for x_0."""
    kept = alpha_bar(schedule, t)
    inverse, ratio = kept.rsqrt(), ((1 - kept) / kept).sqrt()
    return inverse.to(noisy.dtype) * noisy - ratio.to(noisy.dtype) * noise


def posterior(
    schedule: Schedule, noisy: Tensor, images: Tensor, t: Tensor, earlier: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(x_earlier | x_t, x_0) (Eq. 6 and 7), earlier < t.

    The steps between them count as one, of beta = 1 - alpha_bar_t / alpha_bar_earlier. The variance
    is (B, 1, 1, 1).
    """
    kept, before = alpha_bar(schedule, t), alpha_bar(schedule, earlier)
    alpha = kept / before
    of_image = before.sqrt() * (1 - alpha) / (1 - kept)
    of_noisy = alpha.sqrt() * (1 - before) / (1 - kept)
    mean = of_image.to(noisy.dtype) * images + of_noisy.to(noisy.dtype) * noisy
    return mean, ((1 - alpha) * (1 - before) / (1 - kept)).to(noisy.dtype)


def ancestral_step(
    schedule: Schedule,
    noisy: Tensor,
    noise: Tensor,
    t: Tensor,
    earlier: Tensor,
    *,
    variance: str = "fixedlarge",
    clip: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of p(x_earlier | x_t) (Eq. 11) where `noise` is predicted.

    Args:
        variance: fixedsmall is the posterior's, fixedlarge the step's beta (Section 3.2).
        clip: keep the predicted image in [-1, 1], as the source does.
    """
    mean, small = posterior(schedule, noisy, _image(schedule, noisy, noise, t, clip), t, earlier)
    large = 1 - alpha_bar(schedule, t) / alpha_bar(schedule, earlier)
    return mean, small if variance == "fixedsmall" else large.to(noisy.dtype)


def ddim_step(
    schedule: Schedule,
    noisy: Tensor,
    noise: Tensor,
    t: Tensor,
    earlier: Tensor,
    *,
    eta: float = 0.0,
    clip: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of DDIM's x_earlier (Song et al., Eq. 12 and 16).

    Args:
        eta: 0 adds no noise; 1 adds as much as the posterior has.
        clip: keep the predicted image in [-1, 1]; the noise is then what leaves it there.
    """
    kept, before = alpha_bar(schedule, t), alpha_bar(schedule, earlier)
    images = _image(schedule, noisy, noise, t, clip)
    if clip:
        scale, rest = kept.sqrt().to(noisy.dtype), (1 - kept).sqrt().to(noisy.dtype)
        noise = (noisy - scale * images) / rest
    variance = eta**2 * (1 - before) / (1 - kept) * (1 - kept / before)
    direction = (1 - before - variance).clamp(min=0).sqrt()
    mean = before.sqrt().to(noisy.dtype) * images + direction.to(noisy.dtype) * noise
    return mean, variance.to(noisy.dtype)


def _image(schedule: Schedule, noisy: Tensor, noise: Tensor, t: Tensor, clip: bool) -> Tensor:
    images = denoised(schedule, noisy, noise, t)
    return images.clamp(-1, 1) if clip else images


def check_sampling(sampler: str, steps: int, eta: float, variance: str) -> None:
    """Refuse settings that `denoise` has no meaning for.

    Raises:
        ValueError: one of them; the message says which were expected.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}; expected {' or '.join(SAMPLERS)}")
    if variance not in VARIANCES:
        raise ValueError(f"variance is {variance!r}; expected {' or '.join(VARIANCES)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected 1 or more")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; expected 0 to 1")


@dataclass(frozen=True)
class Sampling:
    """How `denoise` samples. DDIM in 50 steps; the paper's is ancestral in 1,000.

    Attributes:
        sampler: ancestral (Algorithm 2 of Ho et al., over the visited steps) or ddim.
        steps: how many of the schedule's steps are visited.
        eta: for ddim, 0 to 1: how much fresh noise.
        variance: for ancestral, fixedlarge or fixedsmall.
    """

    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    variance: str = "fixedlarge"

    def __post_init__(self) -> None:
        check_sampling(self.sampler, self.steps, self.eta, self.variance)


def course(schedule: Schedule, steps: int) -> list[int]:
    """Return the steps that a sampler visits, evenly from the last to 0; all if `steps` is more.

    One step is from the last to the image at once.
    """
    visited = torch.linspace(len(schedule) - 1, 0, min(steps, len(schedule)), dtype=torch.float64)
    return visited.round().long().tolist()


@torch.no_grad()
def denoise(
    predict: Predict,
    schedule: Schedule,
    start: Tensor,
    *conditions: Tensor,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    variance: str = "fixedlarge",
    clip: bool = True,
) -> Iterator[Tensor]:
    """Yield x after each step from pure noise `start` (B, C, H, W); the last is the image.

    Args:
        conditions: tensors of B rows that `predict` gets after the time.
        sampler: ancestral (Algorithm 2 of Ho et al., over the visited steps) or ddim.
        steps: how many of the schedule's steps are visited.
        eta: for ddim. variance: for ancestral.
    """
    check_sampling(sampler, steps, eta, variance)
    x = start
    for now, next_ in pairwise([*course(schedule, steps), -1]):
        t = torch.full((len(x),), now, device=x.device)
        earlier = torch.full_like(t, next_)
        noise = predict(x, t, *conditions)
        if sampler == "ddim":
            mean, spread = ddim_step(schedule, x, noise, t, earlier, eta=eta, clip=clip)
        else:
            mean, spread = ancestral_step(
                schedule, x, noise, t, earlier, variance=variance, clip=clip
            )
        fresh = next_ >= 0 and (sampler == "ancestral" or eta > 0)
        x = mean + spread.sqrt() * torch.randn_like(x) if fresh else mean
        yield x


def pure_noise(network: nn.Module, num_images: int, channels: int, side: int) -> Tensor:
    """Return x_T, (num_images, channels, side, side), of the network's type and on its device."""
    weight = next(network.parameters())
    shape = (num_images, channels, side, side)
    return torch.randn(shape, dtype=weight.dtype, device=weight.device)


def sample(
    predict: Predict,
    schedule: Schedule,
    start: Tensor,
    *conditions: Tensor,
    **settings: float | str | bool,
) -> Tensor:
    """Return what `denoise` ends in, the network shown at most AT_ONCE images together.

    Args:
        start: pure noise (N, C, H, W).
        conditions: tensors of N rows, for `predict`.
        settings: as `denoise` takes them.
    """
    found = []
    for rows in torch.arange(len(start), device=start.device).split(AT_ONCE):
        part = start[rows].contiguous(memory_format=torch.channels_last)
        for x in denoise(predict, schedule, part, *(c[rows] for c in conditions), **settings):
            last = x
        found.append(last.contiguous())
    return torch.cat(found)


def strip(
    predict: Predict,
    schedule: Schedule,
    start: Tensor,
    *conditions: Tensor,
    columns: int = 9,
    clip: bool = True,
    **settings: float | str,
) -> Tensor:
    """Return noise on its way to an image: (B, columns, C, H, W), evenly over the steps.

    Args:
        clip: as for `denoise`, and what is returned is in [-1, 1].
        settings: as `denoise` takes them.
    """
    steps = denoise(predict, schedule, start, *conditions, clip=clip, **settings)
    chain = [start, *steps]
    chosen = torch.linspace(0, len(chain) - 1, min(columns, len(chain))).round().long().tolist()
    found = torch.stack([chain[i] for i in chosen], dim=1)
    return found.clamp(-1, 1) if clip else found


def noise_loss(
    predict: Predict,
    schedule: Schedule,
    images: Tensor,
    *conditions: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of the predicted noise (Algorithm 1, Eq. 14).

    Time and noise are drawn anew for each image. 1 for a network that says zero.

    Args:
        weights: (T,) by which each step's error counts; equally if None.
    """
    t = torch.randint(len(schedule), (len(images),), device=images.device)
    noise = torch.randn_like(images)
    guess = predict(noised(schedule, images, noise, t), t, *conditions)
    error = (guess - noise).square().mean((1, 2, 3))  # (B,)
    return (error if weights is None else weights[t].to(error.dtype) * error).mean()


def bound_weights(schedule: Schedule, variance: str = "fixedlarge") -> Tensor:
    """Return the weights (T,) that the bound gives the noise's squared error (Eq. 12), mean 1.

    beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) over its mean: the loss then has the scale of the
    unweighted one, and clipping gradients means the same.
    """
    sigma2 = _decoder_variance(schedule, variance)
    betas, kept = schedule.betas, schedule.alpha_bars
    weights = betas**2 / (2 * sigma2 * (1 - betas) * (1 - kept))
    return weights / weights.mean()


def _decoder_variance(schedule: Schedule, variance: str) -> Tensor:
    """Return sigma^2 (T,) of p(x_{t-1} | x_t); the posterior has none at 0, and takes that of 1."""
    before = torch.cat([torch.ones_like(schedule.alpha_bars[:1]), schedule.alpha_bars[:-1]])
    small = schedule.betas * (1 - before) / (1 - schedule.alpha_bars)
    rest = small[1:] if variance == "fixedsmall" else schedule.betas[1:]
    return torch.cat([small[1:2], rest])


@torch.no_grad()
def bound_terms(
    predict: Predict,
    schedule: Schedule,
    images: Tensor,
    *conditions: Tensor,
    variance: str = "fixedlarge",
) -> Tensor:
    """Return the terms of -log p's bound (Eq. 5) for 8-bit images, in nats: (B, T + 1).

    Column 0 is -log p(x_0 | x_1), columns 1 to T - 1 the divergences of each step, the last that
    of q(x_T | x_0) from the prior. None is below 0; their sum over C H W log 2 is bits/dim. Noise
    is drawn once per step, so the sum is an unbiased estimate.
    """
    sigma2 = _decoder_variance(schedule, variance)
    terms = []
    for now in range(len(schedule)):
        t = torch.full((len(images),), now, device=images.device)
        noisy = noised(schedule, images, torch.randn_like(images), t)
        guess = predict(noisy, t, *conditions)
        mean, _ = ancestral_step(schedule, noisy, guess, t, t - 1)
        log_var = sigma2[now].log().to(images.dtype)
        if now == 0:
            nats = discretised_normal(images, mean, 0.5 * log_var)
        else:
            true_mean, true_var = posterior(schedule, noisy, images, t, t - 1)
            nats = kl_normal(true_mean, true_var.log(), mean, log_var)
        terms.append(nats.sum((1, 2, 3)))
    kept = float(schedule.alpha_bars[-1])
    nothing = torch.zeros_like(images)
    prior = kl_normal(math.sqrt(kept) * images, nothing + math.log1p(-kept), nothing, nothing)
    return torch.stack([*terms, prior.sum((1, 2, 3))], dim=1)
