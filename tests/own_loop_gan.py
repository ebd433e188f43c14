"""Own-loop GAN: a generator against a discriminator that is the backbone; two optimizers.

Paper:   Goodfellow et al., NeurIPS 2014. https://arxiv.org/abs/1406.2661
Family:  gan
Departs: a small transposed-convolution generator (Radford et al. 2016) at any image size
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

from bench import Engine, MethodCard, hookimpl


@dataclass(frozen=True)
class Config:
    """Radford et al. 2016, Section 4, but for the widths."""

    latent_dim: int = 16
    width: int = 16
    lr: float = 2e-4
    beta1: float = 0.5


@dataclass(frozen=True)
class Sampling:
    """`scale` multiplies the latent's standard deviation."""

    scale: float = 1.0


class Generator(nn.Module):
    """(B, latent_dim) to images (B, 3, H, H) in [-1, 1]."""

    def __init__(self, latent_dim: int, width: int, image_size: int) -> None:
        super().__init__()
        self.latent_dim, self.image_size = latent_dim, image_size
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent_dim, 2 * width, 4),  # 4 x 4
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),  # 8 x 8
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),  # 16 x 16
        )

    def forward(self, latents: Tensor) -> Tensor:
        images = self.layers(latents[:, :, None, None])
        return interpolate(images, size=self.image_size, mode="bilinear").tanh()


class Discriminator(nn.Module):
    """Images to logits (B,): positive for real ones."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)).squeeze(1)


class Gan(nn.Module):
    """Both networks; the discriminator's backbone is what was trained."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    @property
    def backbone(self) -> nn.Module:
        return self.discriminator.backbone


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="Own-loop GAN",
        paper="https://arxiv.org/abs/1406.2661",
        family="gan",
        defaults=Config(),
        sampling=Sampling(),
        departs="a small generator at any image size",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    maker = Generator(config.latent_dim, config.width, engine.image_size)
    generator = engine.prepare(maker, "generator")
    discriminator = engine.prepare(Discriminator(backbone), "discriminator")
    rates = {"lr": config.lr, "schedule": "constant", "betas": (config.beta1, 0.999)}
    update_generator = engine.optimizer(generator, "adam", name="generator", **rates)
    update_discriminator = engine.optimizer(discriminator, "adam", name="discriminator", **rates)
    for batch in engine.batches():
        images = batch.views[0]
        latents = images.new_empty(len(images), config.latent_dim).normal_()
        with engine.autocast():
            fakes = generator(latents)
            real, fake = discriminator(images), discriminator(fakes.detach())  # (B,) each
            loss = softplus(-real).mean() + softplus(fake).mean()
        engine.step(loss, update_discriminator)
        with engine.autocast():
            fooled = softplus(-discriminator(fakes)).mean()  # the non-saturating loss, Section 3
        engine.step(fooled, update_generator)
        engine.log(discriminator_loss=loss, generator_loss=fooled)
    return Gan(generator, discriminator)


@hookimpl
def generate(model: Gan, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    weight = next(model.generator.parameters())
    latents = torch.randn(num_images, model.generator.latent_dim, device=weight.device)
    model.generator.eval()
    with torch.no_grad():
        return model.generator(sampling.scale * latents.to(weight.dtype))
