"""Conditional DDPM with classifier-free guidance.

Papers:  Ho & Salimans, 2022. https://arxiv.org/abs/2207.12598
         Ho et al., NeurIPS 2020. https://arxiv.org/abs/2006.11239
Source:  none by the authors
Family:  diffusion
Departs: DDPM's 1,000 steps and linear schedule, where the guidance paper has continuous time; the
         U-Net's contracting path is the track's backbone, which sees the noisy image alone: time
         and label enter the expanding path, and decide what multiple of the noisy image is added at
         the end. With network="paper" it is DDPM's own U-Net, and the backbone learns nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.augment import horizontal_flip, identity
from bench.diffusion import check_sampling, linear_schedule, noise_loss, pure_noise, sample, strip
from bench.layers import ema_momentum, ema_update, group_batch_norm
from bench.unet import TimeEmbedding, check_network, noise_network


@dataclass(frozen=True)
class Config:
    """DDPM on CIFAR-10 (Ho et al. 2020, Appendix B), and the share of labels that are dropped."""

    label_drop: float = 0.1  # Section 4.2: 0.1 and 0.2 do equally well, 0.5 worse
    network: str = "backbone"  # or "paper"
    width: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # of width, by level; for network="paper"
    blocks: int = 2  # residual blocks of a level; for network="paper"
    attention: int = 16  # side of the maps that attention follows
    dropout: float = 0.1
    steps: int = 1000
    betas: tuple[float, float] = (1e-4, 0.02)  # of the first and the last step
    ema: float = 0.9999  # momentum per step of the weights that sample
    ema_half_life_epochs: float | None = None  # instead of ema
    flip: bool = True
    optimizer: str = "adam"
    lr: float = 2e-4
    schedule: str = "constant"
    weight_decay: float = 0.0
    warmup_epochs: float = 12.8  # DDPM's 5,000 steps of 128 of 50,000 images
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        check_network(self.network)
        if not 0 <= self.label_drop < 1:
            raise ValueError(f"label_drop is {self.label_drop}; expected 0 or more, below 1")


PAPER = replace(Config(), network="paper")

# A few minutes of one core: some thousand steps of a 0.3M-parameter ResNet at 32 px.
SMALL = replace(
    Config(),
    width=24,
    attention=8,
    dropout=0.0,
    ema_half_life_epochs=0.2,
    flip=False,  # a mirrored digit is another shape
    lr=2e-3,
    schedule="cosine",
    warmup_epochs=0.3,
)

# The same on colour images of 64 px, where a mirrored scene is a scene.
SMALL_COLOR = replace(SMALL, flip=True)


@dataclass(frozen=True)
class Sampling:
    """DDIM in 50 steps; `guidance` is the paper's w, 0 for none.

    `eta` is for ddim, `variance` for ancestral.
    """

    guidance: float = 0.3  # where the paper finds its best FID at 128 px
    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    variance: str = "fixedlarge"

    def __post_init__(self) -> None:
        check_sampling(self.sampler, self.steps, self.eta, self.variance)


class Denoiser(nn.Module):
    """The network that predicts the noise in (B, 3, H, W) at steps (B,) given labels (B,).

    The label after the last class is the null token: no label is given.
    """

    def __init__(self, backbone: nn.Module, config: Config, engine: Engine) -> None:
        super().__init__()
        features = 4 * config.width
        self.num_classes = engine.num_classes
        self.time = TimeEmbedding(config.width, features)
        self.label = nn.Embedding(engine.num_classes + 1, features)
        self.unet = noise_network(config, backbone, engine.image_size, gray=engine.gray)

    def forward(self, noisy: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.unet(noisy, self.time(t) + self.label(labels))


class ConditionalDDPM(nn.Module):
    """The network that is trained, and the moving average of it that samples."""

    def __init__(self, backbone: nn.Module, config: Config, engine: Engine) -> None:
        super().__init__()
        epoch = engine.num_images // engine.batch_size  # steps
        self.momentum = ema_momentum(config.ema, config.ema_half_life_epochs, epoch)
        self.backbone, self.image_size = backbone, engine.image_size
        self.label_drop = config.label_drop
        self.channels = 1 if engine.gray else 3
        self.network = Denoiser(backbone, config, engine)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.schedule = linear_schedule(config.steps, *config.betas, device=engine.device)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of Algorithm 1, some labels dropped."""
        dropped = torch.rand(len(labels), device=labels.device) < self.label_drop
        given = torch.where(dropped, self.network.num_classes, labels)
        return noise_loss(self.network, self.schedule, images[:, : self.channels], given)

    def after_step(self) -> None:
        ema_update(self.average, self.network, self.momentum)


def guided(network: Denoiser, guidance: float, noisy: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return (w + 1) e(x, y) - w e(x) (Eq. 6), of two passes; at w = 0 of one, e(x, y) itself."""
    conditional = network(noisy, t, labels)
    if guidance == 0:
        return conditional
    unconditional = network(noisy, t, torch.full_like(labels, network.num_classes))
    return (guidance + 1) * conditional - guidance * unconditional


def prepared(model: ConditionalDDPM, sampling: Sampling) -> tuple[Any, dict[str, Any]]:
    """Return the guided network and what samplers take."""
    settings = dict(vars(sampling))
    return partial(guided, model.average.eval(), settings.pop("guidance")), settings


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="DDPM, classifier-free guidance",
        paper="https://arxiv.org/abs/2207.12598",
        family="diffusion",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR, "paper": PAPER},
        search={
            "lr": ("log_uniform", 2e-4, 4e-3),
            "label_drop": ("choice", 0.1, 0.2, 0.5),
            "dropout": ("choice", 0.0, 0.1),
            "ema_half_life_epochs": ("log_uniform", 0.05, 0.8),
        },
        sampling=Sampling(),
        uses_labels=True,
        conditional=True,
        input="noisy",
        departs="1,000 steps; backbone contracts, sees no time; network=paper trains no backbone",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = ConditionalDDPM(group_batch_norm(backbone), config, engine)
    views = (horizontal_flip() if config.flip else identity,)
    names = ("optimizer", "lr", "schedule", "weight_decay", "warmup_epochs", "max_grad_norm")
    recipe = {name: getattr(config, name) for name in names}
    return engine.fit(model, views=views, after_step=model.after_step, **recipe)


@hookimpl
def generate(model: ConditionalDDPM, num_images: int, labels: Tensor, sampling: Sampling) -> Tensor:
    predict, settings = prepared(model, sampling)
    start = pure_noise(model.average, num_images, model.channels, model.image_size)
    return sample(predict, model.schedule, start, labels, **settings).expand(-1, 3, -1, -1)


@hookimpl
def picture(model: ConditionalDDPM, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    """Return noise on its way to images, a row for each of the first classes."""
    predict, settings = prepared(model, sampling)
    rows = min(8, model.network.num_classes)
    start = pure_noise(model.average, rows, model.channels, model.image_size)
    labels = torch.arange(rows, device=start.device)
    chain = strip(predict, model.schedule, start, labels, **settings)
    return {"denoising": chain.expand(-1, -1, 3, -1, -1)}
