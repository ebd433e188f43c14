"""VAE: a bound below the likelihood, and what it leaves to look at."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_plugins import vae
from torch import Tensor, nn

from bench import backbones, rehearsal
from bench.data import load
from bench.engine import Trainer
from bench.likelihoods import discretised_logistic

CONFIG = replace(vae.SMALL, width=4)


class Flat(nn.Module):
    """A backbone that says the mean of each channel."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def model(latent_dim: int = 2, size: int = 8) -> vae.VAE:
    torch.manual_seed(0)
    config = vae.Config(latent_dim=latent_dim, width=4)
    return vae.VAE(Flat(), config, size).double()


def images(count: int = 4, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(256, (count, 3, size, size), generator=generator)
    return values.double() / 127.5 - 1


def test_bound_is_below_the_likelihood_by_the_divergence_from_the_posterior() -> None:
    """log p(x) by a fine grid over one latent dimension; the mean bound must not exceed it."""
    net, x = model(latent_dim=1).eval(), images(2)
    with torch.no_grad():
        grid = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]
        shown = net.decode(grid)[:, None]  # (Z, 1, 3, H, W)
        nats = discretised_logistic(x[None], shown, net.log_scale).sum((2, 3, 4))  # (Z, B)
        prior = -0.5 * grid.square() - 0.5 * math.log(2 * math.pi)
        log_likelihood = torch.logsumexp(prior - nats, 0) + math.log(16 / 2000)
        bounds = torch.stack([-sum(net.bound(x)) for _ in range(300)])
    assert (bounds.mean(0) < log_likelihood + 5 * bounds.std(0) / math.sqrt(300)).all()
    assert (bounds.mean(0) < log_likelihood).all()


def test_loss_is_the_negative_bound_per_value() -> None:
    net, x = model(), images()
    torch.manual_seed(3)
    found = net(x).detach()
    torch.manual_seed(3)
    nats, divergence = (values.detach() for values in net.bound(x))
    expected = float((nats + divergence).mean()) / (3 * 8 * 8)
    assert float(found) == pytest.approx(expected)
    assert float(net.bits) == pytest.approx(expected / math.log(2))
    assert float(net.kl) == pytest.approx(float(divergence.mean()))


def test_gray_images_are_one_plane_to_the_bound() -> None:
    """Three equal channels counted thrice would be a beta-VAE of beta = 1/3."""
    torch.manual_seed(0)
    net = vae.VAE(Flat(), vae.Config(latent_dim=2, width=4), 8, gray=True).double()
    gray = images()[:, :1].expand(-1, 3, -1, -1)
    torch.manual_seed(3)
    nats, divergence = (values.detach() for values in net.bound(gray))
    torch.manual_seed(3)
    mean, log_var = net.encode(gray)
    shown = net.decode(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
    expected = discretised_logistic(gray[:, :1], shown, net.log_scale).sum((1, 2, 3))
    assert torch.allclose(nats, expected)
    torch.manual_seed(3)
    found = float(net(gray).detach())
    assert found == pytest.approx(float((nats + divergence).mean()) / (8 * 8))
    assert float(net.bits) == pytest.approx(found / math.log(2))
    drawn = vae.decoded(net, torch.randn(5, 2, dtype=torch.float64))
    assert drawn.shape == (5, 3, 8, 8)
    assert torch.equal(drawn[:, :1].expand_as(drawn), drawn)


def test_latents_are_reparameterised() -> None:
    """z = mean + std * noise: its moments are the encoder's, and gradients reach both."""
    net, x = model(), images(1)
    drawn: list[Tensor] = []
    net.decode = lambda latents: drawn.append(latents) or torch.zeros_like(x)
    for _ in range(2000):
        net.bound(x)
    mean, log_var = net.encode(x)
    latents = torch.cat(drawn).detach()
    error = (0.5 * log_var).exp() / math.sqrt(2000)
    assert ((latents.mean(0) - mean).abs() < 5 * error).all()
    assert torch.allclose(latents.var(0), log_var.exp()[0], rtol=0.2)
    gradient = torch.autograd.grad(drawn[0].sum(), net.encoder.weight)[0]
    assert (gradient.abs().sum(1) > 0).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[vae.VAE, Trainer, Tensor]:
    folder: Path = tmp_path_factory.mktemp("vae")
    archive = rehearsal.write_images(folder / "images.npz")
    stored = load(f"npz:{archive}", image_size=32, test=False).images["train"]
    engine = Trainer(stored, None, None, steps=30, batch_size=16, seed=0, folder=folder)
    torch.manual_seed(0)
    backbone = engine.place(backbones.build(rehearsal.CONVOLUTIONAL, 32))
    net = vae.pretrain(backbone, CONFIG, engine)
    return net, engine, backbones.to_input(torch.from_numpy(stored))


def test_training_lowers_the_bound_s_bits(trained) -> None:
    net, _, shown = trained
    torch.manual_seed(0)
    fresh = vae.VAE(backbones.build(rehearsal.CONVOLUTIONAL, 32), CONFIG, 32)

    def bits(model: vae.VAE) -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return float(model.eval()(shown)) / math.log(2)

    assert bits(net) < min(8.0, bits(fresh) - 0.5)


def test_samples_follow_the_seed_and_the_temperature(trained) -> None:
    net = trained[0]

    def sample(seed: int, temperature: float = 1.0) -> Tensor:
        torch.manual_seed(seed)
        return vae.generate(net, 6, None, vae.Sampling(temperature))

    assert sample(0).shape == (6, 3, 32, 32)
    assert float(sample(0).abs().max()) <= 1
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    cold = sample(0, 0.0)
    assert torch.allclose(cold, cold[:1].expand_as(cold), atol=1e-5)


def test_pictures_are_training_images_over_their_reconstructions_and_ways(trained) -> None:
    net, engine, shown = trained
    found = vae.picture(net, engine, vae.Sampling())
    assert found["reconstructions"].shape == (2, 8, 3, 32, 32)
    assert found["interpolations"].shape == (4, 8, 3, 32, 32)
    for original in found["reconstructions"][0]:
        assert float((shown - original).abs().amax((1, 2, 3)).min()) < 1e-5
    ends = found["interpolations"][:, [0, -1]]  # (4, 2, 3, H, W)
    assert torch.allclose(ends.flatten(0, 1), found["reconstructions"][1], atol=1e-4)
