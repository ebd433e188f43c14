"""Latent diffusion: an autoencoder first, then diffusion among its latents.

Paper:   Rombach et al., CVPR 2022. https://arxiv.org/abs/2112.10752
Source:  https://github.com/CompVis/latent-diffusion
Family:  diffusion
Departs: the encoder is the track's backbone, joined by an expanding path at the latents' side; KL,
         no codebook; no perceptual (it takes a network trained on labels), no adversarial loss.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import Engine, MethodCard, hookimpl
from bench.augment import horizontal_flip, identity
from bench.decoders import ENCODERS, Decoder, MapEncoder, doublings
from bench.diffusion import Sampling, linear_schedule, noise_loss, pure_noise, sample, strip
from bench.distributed import gather
from bench.layers import ema_momentum, ema_update, group_batch_norm
from bench.likelihoods import kl_standard_normal
from bench.unet import Denoiser, paper_unet


@dataclass(frozen=True)
class Config:
    """FFHQ at 256 px with a factor of 4, the source's ffhq-ldm-vq-4.yaml where it applies."""

    encoder: str = "conv"  # or "vit": the kind of backbone that is meant, refused otherwise
    factor: int = 4  # image side over latent side; for a ViT its patches decide
    latent_channels: int = 3
    decoder_width: int = 128  # channels at full size
    blocks: int = 2  # residual blocks at each side, of decoder and U-Net
    kl_weight: float = 1e-6  # Appendix G
    first_stage: float = 0.5  # share of the budget for the autoencoder
    first_base_lr: float = 1.152e-3  # per 256 images: the source's 4.5e-6 per image
    width: int = 224  # of the U-Net's first level
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    attention: int = 16  # side of the maps that attention follows
    dropout: float = 0.0
    steps: int = 1000
    betas: tuple[float, float] = (0.0015, 0.0195)  # of the first and the last step; roots linear
    base_lr: float = 5.12e-4  # per 256 images: the source's 2e-6 per image
    ema: float = 0.9999  # momentum per step of the weights that sample
    ema_half_life_epochs: float | None = None  # instead of ema
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    flip: bool = True

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder is {self.encoder!r}; expected {' or '.join(ENCODERS)}")
        if not 0 < self.first_stage < 1:
            raise ValueError(f"first_stage is {self.first_stage}; expected between 0 and 1")


# 4 epochs of a 0.3M-parameter ResNet at 32 px.
SMALL = replace(
    Config(),
    latent_channels=4,
    decoder_width=16,
    blocks=1,
    first_base_lr=4e-3,
    width=48,
    multipliers=(1, 2),
    attention=4,
    base_lr=4e-3,
    ema_half_life_epochs=0.2,
    schedule="cosine",
    warmup_epochs=0.3,
    flip=False,  # a mirrored digit is another shape
)

# The same on colour images of 64 px, where a mirrored scene is a scene.
SMALL_COLOR = replace(SMALL, flip=True)


class Autoencoder(nn.Module):
    """The first stage: images (B, 3, H, H) to latents (B, C, h, h) and back."""

    def __init__(self, backbone: nn.Module, config: Config, engine: Engine) -> None:
        super().__init__()
        self.backbone, self.kl_weight = backbone, config.kl_weight
        size, channels, width = engine.image_size, config.latent_channels, config.decoder_width
        self.planes = planes = 1 if engine.gray else 3  # three would tint what is drawn
        side = max(1, size // config.factor)
        self.encoder = MapEncoder(
            backbone, size, kind=config.encoder, side=side, outputs=2 * channels, width=4 * width
        )
        self.side = self.encoder.side
        sides = doublings(size, self.side)
        self.decoder = Decoder(channels, sides, width=width, outputs=planes, blocks=config.blocks)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents drawn from q(z|x), and its mean and log variance, (B, C, h, h) each."""
        mean, log_var = self.encoder(images).to(images.dtype).chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)  # as in the source
        return mean + (0.5 * log_var).exp() * torch.randn_like(mean), mean, log_var

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss per value, and of it the mean absolute error of the reconstruction."""
        latents, mean, log_var = self.encode(images)
        images = images[:, : self.planes]
        error = F.l1_loss(self.decoder(latents).to(images.dtype), images)
        divergence = kl_standard_normal(mean.flatten(1), log_var.flatten(1)).mean()
        return error + self.kl_weight * divergence / images[0].numel(), error.detach()


class LDM(nn.Module):
    """Both stages, the moving average that samples, and the scale between them."""

    def __init__(self, autoencoder: Autoencoder, config: Config, engine: Engine) -> None:
        super().__init__()
        self.autoencoder, self.backbone = autoencoder, autoencoder.backbone
        epoch = engine.num_images // engine.batch_size  # steps
        self.momentum = ema_momentum(config.ema, config.ema_half_life_epochs, epoch)
        self.channels = channels = config.latent_channels
        self.network = Denoiser(paper_unet(config, channels, autoencoder.side), config.width)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.schedule = linear_schedule(config.steps, *config.betas, power=2, device=engine.device)
        self.register_buffer("scale", torch.zeros(()))  # 0: not measured yet

    @torch.no_grad()
    def decode(self, scaled: Tensor) -> Tensor:
        """Return images in [-1, 1] of scaled latents, 250 at a time."""
        parts = [self.autoencoder.decoder(part / self.scale) for part in scaled.split(250)]
        return torch.cat(parts).clamp(-1, 1).expand(-1, 3, -1, -1).contiguous()


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="Latent diffusion",
        paper="https://arxiv.org/abs/2112.10752",
        family="diffusion",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR},
        search={
            "first_base_lr": ("log_uniform", 1e-3, 1e-2),
            "base_lr": ("log_uniform", 5e-4, 8e-3),
            "first_stage": ("choice", 0.25, 0.5, 0.75),
        },
        sampling=Sampling(),
        departs="backbone as encoder; first stage by L1 and KL, no perceptual, adversarial loss",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    autoencoder = Autoencoder(group_batch_norm(backbone), config, engine)
    model = engine.prepare(LDM(autoencoder, config, engine))
    shared: dict[str, Any] = {"schedule": config.schedule, "warmup_epochs": config.warmup_epochs}
    first_lr, lr = config.first_base_lr, config.base_lr
    first = engine.optimizer(autoencoder, "adam", name="first", base_lr=first_lr, **shared)
    second = engine.optimizer(model.network, "adamw", name="second", base_lr=lr, **shared)
    views = (horizontal_flip() if config.flip else identity,)
    autoencoder.train()
    for batch in engine.batches(views, until=config.first_stage):
        with engine.autocast():
            loss, error = autoencoder(batch.views[0])
        engine.step(loss, first)
        engine.log(reconstruction_l1=error)
    autoencoder.eval()
    for batch in engine.batches(views):
        with torch.no_grad(), engine.autocast():  # the first stage stays as it is
            latents, _, _ = autoencoder.encode(batch.views[0])
        first_scale = 1 / gather(latents).std()  # Appendix G: of the first batch
        model.scale.copy_(torch.where(model.scale > 0, model.scale, first_scale))
        with engine.autocast():
            loss = noise_loss(model.network, model.schedule, latents * model.scale)
        engine.step(loss, second)
        ema_update(model.average, model.network, model.momentum)
    return model


@hookimpl
def generate(model: LDM, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    network = model.eval().average
    start = pure_noise(network, num_images, model.channels, model.autoencoder.side)
    return model.decode(sample(network, model.schedule, start, clip=False, **vars(sampling)))


@hookimpl
def reconstruct(model: LDM, images: Tensor) -> Tensor:
    _, mean, _ = model.eval().autoencoder.encode(images)
    return model.decode(mean * model.scale)


@hookimpl
def picture(model: LDM, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    """Return noise on its way to images."""
    network = model.eval().average
    start = pure_noise(network, 8, model.channels, model.autoencoder.side)
    chain = strip(network, model.schedule, start, clip=False, **vars(sampling))
    return {"denoising": model.decode(chain.flatten(0, 1)).unflatten(0, chain.shape[:2])}
