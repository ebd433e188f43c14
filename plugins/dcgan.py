"""DCGAN: unsupervised representation learning with deep convolutional adversarial networks.

Paper:   Radford et al., ICLR 2016. https://arxiv.org/abs/1511.06434
Source:  https://github.com/soumith/dcgan.torch
Family:  gan
Departs: the discriminator is the track's backbone. The paper's has four 4x4 convolutions of stride
         2 with LeakyReLU of slope 0.2, and BatchNorm but in the first; timm's ResNets have residual
         blocks of 3x3 convolutions, ReLU, and BatchNorm everywhere. A track comes nearest with
         `stem = { kernel = 3, stride = 2, max_pool = false }` (no pooling) and, in the backbone's
         args, `act_layer = "leaky_relu"` (slope 0.01). `discriminator_map` reads the last feature
         map flattened, as the paper does. BatchNorm's shift is the bias of its convolution. "small"
         moves what the discriminator sees: a ResNet's strides leave a grid in the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.adversarial import (
    Discriminator,
    Game,
    Turns,
    discriminator_loss,
    non_saturating_loss,
    normal_init,
    shifted,
)
from bench.generators import LATENTS, ConvGenerator, interpolate, latents, sample
from bench.layers import group_batch_norm


@dataclass(frozen=True)
class Config:
    """Section 4, on LSUN at 64 px and batch 128."""

    latent_features: int = 100  # Figure 1
    latent_kind: str = "uniform"  # Figure 1; the source draws from N(0, 1)
    width: int = 128  # of the generator before the image, Figure 1
    discriminator_map: bool = True  # flattened into one output, Section 3; else pooled
    discriminator_steps: int = 1
    discriminator_lr: float = 2e-4  # Section 4
    generator_lr: float = 2e-4
    beta1: float = 0.5  # Section 4
    init_std: float = 0.02  # Section 4
    shift: int = 0  # pixels by which what the discriminator sees moves at random

    def __post_init__(self) -> None:
        if self.latent_kind not in LATENTS:
            raise ValueError(
                f"latent_kind is {self.latent_kind!r}; expected {' or '.join(LATENTS)}"
            )
        if self.discriminator_steps < 1:
            raise ValueError(f"discriminator_steps is {self.discriminator_steps}; expected 1 up")


# A few minutes of one core at 32 px: some hundred steps, so larger ones for the generator. At 2e-4
# the ResNet tells all samples apart within 50 steps, and then teaches nothing.
SMALL = replace(Config(), width=32, discriminator_lr=4e-5, generator_lr=5e-4, shift=4)


@dataclass(frozen=True)
class Sampling:
    """Nothing is chosen at sampling: latents come as in training."""


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="DCGAN",
        paper="https://arxiv.org/abs/1511.06434",
        family="gan",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL},
        search={
            "discriminator_lr": ("log_uniform", 1e-5, 5e-4),
            "generator_lr": ("log_uniform", 1e-4, 2e-3),
            "beta1": ("choice", 0.5, 0.0),
        },
        sampling=Sampling(),
        departs="the track's backbone discriminates; the paper's is four strided convolutions",
    )


def rates(config: Config, lr: float) -> dict[str, Any]:
    """Return what one player's optimizer takes."""
    return {"kind": "adam", "lr": lr, "betas": (config.beta1, 0.999), "schedule": "constant"}


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    size, kind = engine.image_size, config.latent_kind
    maker = ConvGenerator(config.latent_features, config.width, size, kind=kind, gray=engine.gray)
    judge = Discriminator(backbone, size if config.discriminator_map else None)
    for player in (maker, judge):
        group_batch_norm(normal_init(player, config.init_std))
    generator, discriminator = engine.prepare(maker, "generator"), engine.prepare(judge, "judge")
    turns = engine.prepare(Turns(), "turns")
    descend = engine.optimizer(generator, name="generator", **rates(config, config.generator_lr))
    ascend = engine.optimizer(discriminator, name="judge", **rates(config, config.discriminator_lr))

    for batch in engine.batches():
        images = batch.views[0]
        with engine.autocast():
            with torch.no_grad():
                fakes = generator(latents(generator, len(images)))
            real = discriminator(shifted(images, config.shift))  # (B,): BatchNorm sees them apart
            fake = discriminator(shifted(fakes, config.shift))  # (B,)
            loss = discriminator_loss(real, fake)
        engine.step(loss, ascend)
        engine.log(discriminator_loss=loss, real_logit=real.mean(), fake_logit=fake.mean())
        if turns.generator_moves(after=config.discriminator_steps):
            with engine.autocast():
                fakes = generator(latents(generator, len(images)))
                loss = non_saturating_loss(discriminator(shifted(fakes, config.shift)))
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
