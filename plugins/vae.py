"""VAE: auto-encoding variational Bayes.

Paper:   Kingma & Welling, ICLR 2014. https://arxiv.org/abs/1312.6114
Family:  vae
Departs: the encoder is the track's backbone and the decoder convolves, where the paper has one
         hidden layer in each; Adam for Adagrad; a logistic distribution over the 256 values of a
         pixel with one learned scale per channel, where the paper has binary or real-valued
         pixels, so that the bound is one of 8-bit data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.augment import horizontal_flip, identity
from bench.decoders import Decoder, doublings
from bench.layers import group_batch_norm
from bench.likelihoods import bits_per_dim, discretised_logistic, kl_standard_normal

SHOWN = 8  # training images that are kept for the picture


@dataclass(frozen=True)
class Config:
    """Section 5, as far as it goes for a convolutional decoder of colour images."""

    latent_dim: int = 20  # Figure 2, MNIST
    width: int = 64  # the decoder's channels at full size; the paper has 500 hidden units
    flip: bool = True
    optimizer: str = "adam"  # Section 5 has Adagrad
    lr: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0


# 3 epochs of a 0.3M-parameter ResNet at 32 px.
SMALL = replace(
    Config(),
    width=16,
    flip=False,  # a mirrored digit is another shape
    lr=2e-3,
    schedule="cosine",
    warmup_epochs=0.3,
)

# The same on colour images of 64 px, where a mirrored scene is a scene.
SMALL_COLOR = replace(SMALL, latent_dim=64, flip=True)


@dataclass(frozen=True)
class Sampling:
    """`temperature` multiplies the prior's standard deviation."""

    temperature: float = 1.0


class VAE(nn.Module):
    """An encoder q(z|x), a decoder p(x|z), and the bound that they share."""

    def __init__(
        self, backbone: nn.Module, config: Config, image_size: int, *, gray: bool = False
    ) -> None:
        super().__init__()
        sides = doublings(image_size)
        self.backbone, self.latent_dim, self.image_size = backbone, config.latent_dim, image_size
        self.encoder = nn.Linear(backbone.num_features, 2 * config.latent_dim)
        self.shape = (4 * config.width, sides[0], sides[0])
        self.unfold = nn.Linear(config.latent_dim, self.shape[0] * sides[0] ** 2)
        self.planes = 1 if gray else 3  # three of one gray would count p(x|z) thrice, and tint
        self.decoder = Decoder(self.shape[0], sides, width=config.width, outputs=self.planes)
        self.log_scale = nn.Parameter(torch.full((self.planes, 1, 1), -2.0))
        self.register_buffer("shown", torch.zeros(SHOWN, 3, image_size, image_size))
        self.register_buffer("kl", torch.zeros(()))
        self.register_buffer("bits", torch.zeros(()))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z|x), (B, latent_dim) each."""
        return self.encoder(self.backbone(images)).to(self.log_scale.dtype).chunk(2, dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the mean of p(x|z), (B, planes, H, W)."""
        return self.decoder(self.unfold(latents).unflatten(1, self.shape))

    def bound(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p(x|z) at one z per image, and the divergence: (B,) nats each (Eq. 10)."""
        mean, log_var = self.encode(images)
        latents = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)  # Section 2.4
        shown = self.decode(latents).to(mean.dtype)  # half precision is too coarse for a bin
        nats = discretised_logistic(images[:, : self.planes], shown, self.log_scale)
        return nats.sum((1, 2, 3)), kl_standard_normal(mean, log_var)

    def forward(self, images: Tensor) -> Tensor:
        """Return the negative bound in nats per value: an image has thousands of values."""
        nats, divergence = self.bound(images)
        negative = nats + divergence  # (B,)
        dimensions = images[0, : self.planes].numel()
        with torch.no_grad():
            self.shown[: len(images)] = images[:SHOWN]
            self.kl.copy_(divergence.mean())
            self.bits.copy_(bits_per_dim(negative, dimensions).mean())
        return negative.mean() / dimensions


def recipe(config: Config) -> dict[str, Any]:
    """Return what `fit` takes."""
    names = ("optimizer", "lr", "schedule", "weight_decay", "warmup_epochs")
    return {name: getattr(config, name) for name in names}


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="VAE",
        paper="https://arxiv.org/abs/1312.6114",
        family="vae",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR},
        search={
            "lr": ("log_uniform", 5e-4, 8e-3),
            "latent_dim": ("choice", 10, 20, 64, 200),
            "weight_decay": ("log_uniform", 1e-6, 1e-2),
        },
        sampling=Sampling(),
        departs="backbone as encoder, convolutional decoder, Adam; logistic over 8-bit values",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = VAE(backbone, config, engine.image_size, gray=engine.gray)

    def report() -> None:
        engine.log(kl_nats=model.kl, bits_per_dim=model.bits)

    views = (horizontal_flip() if config.flip else identity,)
    return engine.fit(group_batch_norm(model), views=views, after_step=report, **recipe(config))


@torch.no_grad()
def decoded(model: VAE, latents: Tensor) -> Tensor:
    """Return the means of p(x|z) in [-1, 1], (B, 3, H, W)."""
    return model.eval().decode(latents).clamp(-1, 1).expand(-1, 3, -1, -1).contiguous()


@hookimpl
def generate(model: VAE, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    latents = torch.randn(num_images, model.latent_dim, device=model.log_scale.device)
    return decoded(model, sampling.temperature * latents)


@hookimpl
def picture(model: VAE, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    """Return training images above their reconstructions, and ways between pairs of them."""
    with torch.no_grad():
        means, _ = model.eval().encode(model.shown)
    shares = torch.linspace(0, 1, SHOWN, device=means.device)[:, None]
    ways = [torch.lerp(a, b, shares) for a, b in zip(means[::2], means[1::2], strict=True)]
    return {
        "reconstructions": torch.stack([model.shown, decoded(model, means)]),
        "interpolations": decoded(model, torch.cat(ways)).unflatten(0, (len(ways), SHOWN)),
    }
