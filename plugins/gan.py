"""GAN: generative adversarial nets.

Paper:   Goodfellow et al., NeurIPS 2014. https://arxiv.org/abs/1406.2661
Source:  https://github.com/goodfeli/adversarial
Family:  gan
Departs: the discriminator is the track's backbone under one linear layer; the paper's is a maxout
         net with dropout. Momentum and rate stay, which the source moves over its training. The
         recipe "small" trains a DCGAN's generator with Adam, and moves what the discriminator sees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.adversarial import (
    GENERATOR_LOSSES,
    Discriminator,
    Game,
    Turns,
    discriminator_loss,
    shifted,
)
from bench.generators import ConvGenerator, interpolate, latents, sample
from bench.layers import group_batch_norm


@dataclass(frozen=True)
class Config:
    """The source's mnist.yaml."""

    generator_loss: str = "non_saturating"  # or minimax, Section 3
    discriminator_steps: int = 1  # k of Algorithm 1, in each of which a batch is drawn
    generator: str = "mlp"  # mlp or conv
    generator_norm: bool = False  # BatchNorm in the generator
    latent_features: int = 100
    width: int = 1200  # of the mlp's hidden layers; of conv's last map
    optimizer: str = "sgd"
    discriminator_lr: float = 0.1
    generator_lr: float = 0.1
    momentum: float = 0.5  # of sgd; beta1 of adam
    shift: int = 0  # pixels by which what the discriminator sees moves at random

    def __post_init__(self) -> None:
        if self.generator_loss not in GENERATOR_LOSSES:
            known = " or ".join(GENERATOR_LOSSES)
            raise ValueError(f"generator_loss is {self.generator_loss!r}; expected {known}")
        if self.generator not in ("mlp", "conv"):
            raise ValueError(f"generator is {self.generator!r}; expected mlp or conv")
        if self.discriminator_steps < 1:
            raise ValueError(f"discriminator_steps is {self.discriminator_steps}; expected 1 up")


# A few minutes of one core at 32 px. In 100 steps an mlp learned little but where images are
# bright, so the generator convolves, as in the source's cifar10_convolutional.yaml. At a higher
# rate the ResNet tells all samples apart. Shifted: see `bench.adversarial.shifted`.
SMALL = replace(
    Config(),
    generator="conv",
    generator_norm=True,
    width=32,
    optimizer="adam",
    discriminator_lr=1e-4,
    generator_lr=5e-4,
    shift=4,
)


@dataclass(frozen=True)
class Sampling:
    """Nothing is chosen at sampling: latents come as in training."""


class Generator(nn.Module):
    """Latents (B, Z) to images (B, 3, H, H) in [-1, 1]: two hidden layers of ReLUs, a sigmoid."""

    latent_kind = "normal"

    def __init__(self, config: Config, image_size: int, *, gray: bool = False) -> None:
        super().__init__()
        self.latent_features, hidden = config.latent_features, config.width
        channels = 1 if gray else 3  # a plane shown as three: no colour has to be unlearned
        norms = [nn.BatchNorm1d(hidden) if config.generator_norm else nn.Identity() for _ in "01"]
        self.layers = nn.Sequential(
            *(nn.Linear(self.latent_features, hidden), norms[0], nn.ReLU(inplace=True)),
            *(nn.Linear(hidden, hidden), norms[1], nn.ReLU(inplace=True)),
            nn.Linear(hidden, channels * image_size**2),
            nn.Sigmoid(),
            nn.Unflatten(1, (channels, image_size, image_size)),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return (2 * self.layers(latents) - 1).expand(-1, 3, -1, -1)


def build_generator(config: Config, image_size: int, gray: bool) -> nn.Module:
    """Return the generator that the configuration names."""
    if config.generator == "mlp":
        return Generator(config, image_size, gray=gray)
    return ConvGenerator(
        config.latent_features, config.width, image_size, gray=gray, norm=config.generator_norm
    )


def rates(config: Config, lr: float) -> dict[str, Any]:
    """Return what one player's optimizer takes."""
    sgd = config.optimizer == "sgd"
    momentum = {"momentum": config.momentum} if sgd else {"betas": (config.momentum, 0.999)}
    return {"kind": config.optimizer, "lr": lr, "schedule": "constant"} | momentum


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="GAN",
        paper="https://arxiv.org/abs/1406.2661",
        family="gan",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL},
        search={
            "discriminator_lr": ("log_uniform", 2e-5, 1e-3),
            "generator_lr": ("log_uniform", 1e-4, 2e-3),
            "momentum": ("choice", 0.5, 0.0),
        },
        sampling=Sampling(),
        departs="the track's backbone discriminates; the paper's discriminator is a maxout net",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    maker = group_batch_norm(build_generator(config, engine.image_size, engine.gray))
    generator = engine.prepare(maker, "generator")
    discriminator = engine.prepare(Discriminator(group_batch_norm(backbone)), "discriminator")
    turns = engine.prepare(Turns(), "turns")
    descend = engine.optimizer(generator, name="generator", **rates(config, config.generator_lr))
    ascend = engine.optimizer(
        discriminator, name="discriminator", **rates(config, config.discriminator_lr)
    )
    generator_loss = GENERATOR_LOSSES[config.generator_loss]

    for batch in engine.batches():  # Algorithm 1
        images = batch.views[0]
        with engine.autocast():
            with torch.no_grad():
                fakes = generator(latents(generator, len(images)))
            real = discriminator(shifted(images, config.shift))  # (B,)
            fake = discriminator(shifted(fakes, config.shift))  # (B,)
            loss = discriminator_loss(real, fake)
        engine.step(loss, ascend)
        engine.log(discriminator_loss=loss, real_logit=real.mean(), fake_logit=fake.mean())
        if turns.generator_moves(after=config.discriminator_steps):
            with engine.autocast():
                fakes = generator(latents(generator, len(images)))
                loss = generator_loss(discriminator(shifted(fakes, config.shift)))
            engine.step(loss, descend)
            engine.log(generator_loss=loss)
    engine.settle(backbone)  # its BatchNorm saw samples as well
    return Game(generator, discriminator)


@hookimpl
def generate(model: Game, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    return sample(model.generator, latents(model.generator, num_images))


@hookimpl
def picture(model: Game, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    return {"interpolation": interpolate(model.generator)}
