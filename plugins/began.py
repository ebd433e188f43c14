"""BEGAN: boundary equilibrium generative adversarial networks.

Paper:   Berthelot et al., 2017. https://arxiv.org/abs/1703.10717
Source:  none published; https://github.com/carpedm20/BEGAN-tensorflow follows the paper
Family:  gan
Departs: the discriminator's encoder is the track's backbone, whose BatchNorm only scales and
         shifts, since the paper's encoder has none; its last feature map is flattened, as there.
         Maps begin at 8 to 14 pixels. No skip connections, and the rate stays; the paper halves it
         when the measure stalls. "small" moves what the autoencoder sees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import Engine, MethodCard, hookimpl
from bench.adversarial import Game, Readout, shifted
from bench.distributed import gather
from bench.generators import first_side, interpolate, latents, sample
from bench.layers import fix_batch_norm, group_batch_norm

SHOWN = 8  # images kept for the picture of reconstructions


@dataclass(frozen=True)
class Config:
    """Sections 3.5 and 4, at 64 px."""

    latent_features: int = 64  # N_z = N_h, Section 4.1
    width: int = 64  # n, filters of every layer, Section 4.1
    generator_norm: bool = False  # BatchNorm in the generator, which the paper's has not
    diversity: float = 0.5  # gamma, Section 3.3; lower: sharper and fewer modes
    gain: float = 1e-3  # lambda_k, Section 3.4
    lr: float = 1e-4  # Section 4.1
    beta1: float = 0.5  # of the implementation; the paper gives none
    shift: int = 0  # pixels by which what the autoencoder sees moves at random

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"diversity is {self.diversity}; expected 0 to 1")


# A few minutes of one core at 32 px: some hundred steps, so larger ones, of k too. Without norms
# the generator began with one image for all vectors, and in that time never left the one it fell
# to, shoes: what the autoencoder makes the least error of.
SMALL = replace(Config(), width=16, generator_norm=True, diversity=0.7, gain=1e-1, lr=1e-3, shift=4)


@dataclass(frozen=True)
class Sampling:
    """Nothing is chosen at sampling: latents come as in training."""


class Decoder(nn.Module):
    """Vectors (B, Z) to images (B, 3, H, H), unbounded: the paper's Figure 1.

    Two 3x3 convolutions with ELU at each side, the map doubled by nearest neighbours in between.
    """

    latent_kind = "uniform"  # Section 3.5

    def __init__(
        self,
        latent_features: int,
        width: int,
        image_size: int,
        *,
        gray: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.latent_features = latent_features
        channels = 1 if gray else 3  # a plane shown as three: no colour has to be unlearned
        side, doublings = first_side(image_size)
        layers = [nn.Linear(latent_features, width * (2 * side) ** 2)]
        layers.append(nn.Unflatten(1, (width, 2 * side, 2 * side)))
        for level in range(doublings):
            layers += [nn.Upsample(scale_factor=2)] if level else []
            for _ in range(2):
                layers += [nn.Conv2d(width, width, 3, padding=1)]
                layers += [nn.BatchNorm2d(width)] * norm + [nn.ELU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, vectors: Tensor) -> Tensor:
        return self.layers(vectors).expand(-1, 3, -1, -1)


class Autoencoder(nn.Module):
    """The discriminator: images (B, 3, H, H) to what it makes of them, through N_h numbers.

    Its buffers: `balance`, k in [0, 1], and `shown`, real images of the last batch.
    """

    def __init__(
        self, backbone: nn.Module, config: Config, image_size: int, *, gray: bool = False
    ) -> None:
        super().__init__()
        self.encoder = Readout(backbone, config.latent_features, image_size)
        self.decoder = Decoder(config.latent_features, config.width, image_size, gray=gray)
        self.register_buffer("balance", torch.zeros(()))
        self.register_buffer("shown", torch.zeros(SHOWN, 3, image_size, image_size))

    @property
    def backbone(self) -> nn.Module:
        return self.encoder.backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))

    def error(self, images: Tensor) -> Tensor:
        """Return L(v) = |v - D(v)|, the mean over pixels (Section 3.1)."""
        return F.l1_loss(self(images), images)

    @torch.no_grad()
    def update_balance(self, real: Tensor, fake: Tensor, config: Config) -> Tensor:
        """Move k by the errors of real images and samples (Section 3.4); return M (Section 3.4.1).

        k <- k + lambda (gamma L(x) - L(G(z))), kept in [0, 1];  M = L(x) + |gamma L(x) - L(G(z))|.
        """
        real, fake = gather(torch.stack([real, fake]).unsqueeze(0)).mean(0)  # over processes
        excess = config.diversity * real - fake
        self.balance.add_(config.gain * excess).clamp_(0, 1)
        return real + excess.abs()


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="BEGAN",
        paper="https://arxiv.org/abs/1703.10717",
        family="gan",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL},
        search={
            "lr": ("log_uniform", 2e-4, 8e-3),
            "diversity": ("choice", 0.7, 1.0, 0.5),
            "gain": ("choice", 1e-1, 1e-2),
        },
        sampling=Sampling(),
        departs="the track's backbone encodes in the discriminator; its BatchNorm only scales",
    )


def rates(config: Config) -> dict[str, Any]:
    """Return what both networks' optimizers take."""
    betas = (config.beta1, 0.999)
    return {"kind": "adam", "lr": config.lr, "betas": betas, "schedule": "constant"}


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    size, gray = engine.image_size, engine.gray
    norm = config.generator_norm  # else generator and decoder have one form, Section 3.5
    maker = Decoder(config.latent_features, config.width, size, gray=gray, norm=norm)
    generator = engine.prepare(group_batch_norm(maker), "generator")
    judge = Autoencoder(fix_batch_norm(backbone), config, size, gray=gray)
    autoencoder = engine.prepare(judge, "autoencoder")
    descend = engine.optimizer(generator, name="generator", **rates(config))
    ascend = engine.optimizer(autoencoder, name="autoencoder", **rates(config))

    for batch in engine.batches():
        images = batch.views[0]
        with engine.autocast():
            with torch.no_grad():
                fakes = generator(latents(generator, len(images)))
            real = autoencoder.error(shifted(images, config.shift))
            fake = autoencoder.error(shifted(fakes, config.shift))
            loss = real - autoencoder.balance * fake  # L_D, Section 3.4
        engine.step(loss, ascend)
        with engine.autocast():
            fakes = generator(latents(generator, len(images)))
            fake = autoencoder.error(shifted(fakes, config.shift))  # L_G
        engine.step(fake, descend)
        measure = autoencoder.update_balance(real.detach(), fake.detach(), config)
        engine.log(convergence=measure, k=autoencoder.balance.clone(), real=real, fake=fake)
        autoencoder.shown[: len(images)].copy_(images[:SHOWN])
    return Game(generator, autoencoder)


@hookimpl
def generate(model: Game, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    return sample(model.generator, latents(model.generator, num_images))


@hookimpl
def picture(model: Game, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    shown = model.discriminator.shown
    rebuilt = torch.stack([shown, sample(model.discriminator, shown)])  # (2, SHOWN, 3, H, H)
    return {"interpolation": interpolate(model.generator), "reconstructions": rebuilt}
