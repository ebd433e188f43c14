"""BiGAN: adversarial feature learning.

Paper:   Donahue et al., ICLR 2017. https://arxiv.org/abs/1605.09782
Source:  https://github.com/jeffdonahue/bigan
Family:  gan
Departs: the encoder is the track's backbone under one linear layer on its last feature map; the
         paper's are an MLP (MNIST) and AlexNet. Generator and the discriminator's convolutions are
         a DCGAN's at any image size. The rate stays for the whole budget; the source lets it fall
         in the second half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.adversarial import Readout, discriminator_loss, normal_init
from bench.generators import ConvGenerator, first_side, interpolate, latents, sample
from bench.layers import group_batch_norm

SHOWN = 8  # images kept for the picture of reconstructions


@dataclass(frozen=True)
class Config:
    """The source's train_imagenet.sh: 64 px, batch 128."""

    latent_features: int = 200  # uniform in [-1, 1]; 50 on MNIST
    width: int = 64  # of the generator before the image
    discriminator_width: int = 64  # of its first map
    joint_features: int = 1024  # of the layer that joins image and latent
    encoder_map: bool = True  # read the last feature map flattened, not pooled
    lr: float = 2e-4  # of all three networks
    beta1: float = 0.5
    weight_decay: float = 2.5e-5
    init_std: float = 0.02  # of generator and discriminator


# A few minutes of one core at 32 px: some hundred steps, so larger ones.
SMALL = replace(
    Config(), latent_features=50, width=32, discriminator_width=32, joint_features=256, lr=3e-4
)


@dataclass(frozen=True)
class Sampling:
    """Nothing is chosen at sampling: latents come as in training."""


class Players(nn.Module):
    """Generator and encoder, who play together; the encoder's backbone is what is trained.

    The buffer `shown` has real images of the last batch.
    """

    def __init__(
        self, backbone: nn.Module, config: Config, image_size: int, *, gray: bool = False
    ) -> None:
        super().__init__()
        features, width = config.latent_features, config.width
        self.encoder = Readout(backbone, features, image_size if config.encoder_map else None)
        self.generator = ConvGenerator(features, width, image_size, kind="uniform", gray=gray)
        self.register_buffer("shown", torch.zeros(SHOWN, 3, image_size, image_size))

    @property
    def backbone(self) -> nn.Module:
        return self.encoder.backbone

    def encode(self, images: Tensor) -> Tensor:
        """Return E(x), (B, Z) in [-1, 1] as the latents are."""
        return 2 * self.encoder(images).sigmoid() - 1

    def forward(self, images: Tensor) -> Tensor:
        """Return G(E(x)), (B, 3, H, H)."""
        return self.generator(self.encode(images))


class JointDiscriminator(nn.Module):
    """Pairs of images (B, 3, H, H) and latents (B, Z) to logits (B,), above 0 for (x, E(x))."""

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__()
        side, doublings = first_side(image_size)
        layers: list[nn.Module] = []
        before = 3
        for level in range(doublings):  # LeakyReLU, BatchNorm but in the first, as in a DCGAN
            after = config.discriminator_width * 2**level
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=level == 0))
            layers += [nn.BatchNorm2d(after)] if level else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            before = after
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.joint = nn.Sequential(
            nn.Linear(before * side * side + config.latent_features, config.joint_features),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(config.joint_features, 1),
        )

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        return self.joint(torch.cat([self.trunk(images), latents], dim=1)).squeeze(1)


def rates(config: Config) -> dict[str, Any]:
    """Return what both optimizers take."""
    betas, decay = (config.beta1, 0.999), config.weight_decay
    return {"kind": "adam", "lr": config.lr, "betas": betas, "weight_decay": decay} | {
        "schedule": "constant"
    }


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="BiGAN",
        paper="https://arxiv.org/abs/1605.09782",
        family="gan",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL},
        search={
            "lr": ("log_uniform", 1e-4, 4e-3),
            "beta1": ("choice", 0.5, 0.0),
            "latent_features": ("choice", 50, 200),
        },
        sampling=Sampling(),
        departs="the track's backbone encodes; the paper's encoders are an MLP and AlexNet",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    size = engine.image_size
    together = Players(backbone, config, size, gray=engine.gray)
    judge = JointDiscriminator(config, size)
    for module in (together.generator, judge):
        normal_init(module, config.init_std)
    players = engine.prepare(group_batch_norm(together), "players")
    discriminator = engine.prepare(group_batch_norm(judge), "discriminator")
    descend = engine.optimizer(players, name="players", **rates(config))
    ascend = engine.optimizer(discriminator, name="discriminator", **rates(config))

    for batch in engine.batches():
        images = batch.views[0]
        drawn = latents(players.generator, len(images))
        with engine.autocast():
            encoded, fakes = players.encode(images), players.generator(drawn)
            real = discriminator(images, encoded.detach())  # (B,), of (x, E(x))
            fake = discriminator(fakes.detach(), drawn)  # (B,), of (G(z), z)
            loss = discriminator_loss(real, fake)  # Eq. 3
        engine.step(loss, ascend)
        with engine.autocast():  # inverted labels, the stronger gradient: Section 3.4
            inverse = discriminator_loss(
                discriminator(fakes, drawn), discriminator(images, encoded)
            )
        engine.step(inverse, descend)
        engine.log(discriminator_loss=loss, players_loss=inverse)
        players.shown[: len(images)].copy_(images[:SHOWN])
    return players


@hookimpl
def generate(model: Players, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    return sample(model.generator, latents(model.generator, num_images))


@hookimpl
def picture(model: Players, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    rebuilt = torch.stack([model.shown, sample(model, model.shown)])  # (2, SHOWN, 3, H, H)
    return {"interpolation": interpolate(model.generator), "reconstructions": rebuilt}
