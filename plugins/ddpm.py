"""DDPM: denoising diffusion probabilistic models.

Paper:   Ho et al., NeurIPS 2020. https://arxiv.org/abs/2006.11239
Source:  https://github.com/hojonathanho/diffusion
Family:  diffusion
Departs: the U-Net's contracting path is the track's backbone, which has no input for the time and
         sees the noisy image alone; the time enters the expanding path, and decides what multiple
         of the noisy image is added at the end. With network="paper" it is the paper's own U-Net,
         and the backbone stays as it was drawn, with nothing learnt.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.augment import horizontal_flip, identity
from bench.diffusion import (
    Sampling,
    bound_weights,
    check_sampling,
    linear_schedule,
    noise_loss,
    pure_noise,
    sample,
    strip,
)
from bench.layers import ema_momentum, ema_update, group_batch_norm
from bench.unet import Denoiser, check_network, noise_network


@dataclass(frozen=True)
class Config:
    """CIFAR-10, Section 4 and Appendix B: 800,000 steps of 128 images."""

    network: str = "backbone"  # or "paper"
    width: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # of width, by level; for network="paper"
    blocks: int = 2  # residual blocks of a level; for network="paper"
    attention: int = 16  # side of the maps that attention follows
    dropout: float = 0.1
    steps: int = 1000  # T
    betas: tuple[float, float] = (1e-4, 0.02)  # of the first and the last step
    weighting: str = "simple"  # Eq. 14; "bound" is Eq. 12
    variance: str = "fixedlarge"  # of the bound that is weighted; the source's choice
    ema: float = 0.9999  # momentum per step of the weights that sample
    ema_half_life_epochs: float | None = None  # instead of ema
    flip: bool = True
    optimizer: str = "adam"
    lr: float = 2e-4
    schedule: str = "constant"
    weight_decay: float = 0.0
    warmup_epochs: float = 12.8  # the source's 5,000 steps of 128 of 50,000 images
    max_grad_norm: float = 1.0  # the source's run_cifar.py

    def __post_init__(self) -> None:
        check_sampling("ancestral", 1, 0.0, self.variance)
        check_network(self.network)
        if self.weighting not in ("simple", "bound"):
            raise ValueError(f"weighting is {self.weighting!r}; expected simple or bound")


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


class DDPM(nn.Module):
    """The network that is trained, and the moving average of it that samples."""

    def __init__(self, backbone: nn.Module, config: Config, engine: Engine) -> None:
        super().__init__()
        epoch = engine.num_images // engine.batch_size  # steps
        self.momentum = ema_momentum(config.ema, config.ema_half_life_epochs, epoch)
        self.backbone, self.image_size = backbone, engine.image_size
        self.channels = 1 if engine.gray else 3
        unet = noise_network(config, backbone, engine.image_size, gray=engine.gray)
        self.network = Denoiser(unet, config.width)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.schedule = linear_schedule(config.steps, *config.betas, device=engine.device)
        weighted = config.weighting == "bound"
        self.weights = bound_weights(self.schedule, config.variance) if weighted else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the loss of Algorithm 1, one time and one noise for each image."""
        planes = images[:, : self.channels]
        return noise_loss(self.network, self.schedule, planes, weights=self.weights)

    def after_step(self) -> None:
        ema_update(self.average, self.network, self.momentum)


def recipe(config: Config) -> dict[str, Any]:
    """Return what `fit` takes."""
    names = ("optimizer", "lr", "schedule", "weight_decay", "warmup_epochs", "max_grad_norm")
    return {name: getattr(config, name) for name in names}


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="DDPM",
        paper="https://arxiv.org/abs/2006.11239",
        family="diffusion",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL_COLOR, "paper": PAPER},
        search={
            "lr": ("log_uniform", 2e-4, 4e-3),
            "dropout": ("choice", 0.0, 0.1),
            "ema_half_life_epochs": ("log_uniform", 0.05, 0.8),
        },
        sampling=Sampling(),
        input="noisy",
        departs="the backbone contracts and sees no time; network=paper trains no backbone",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = DDPM(group_batch_norm(backbone), config, engine)
    views = (horizontal_flip() if config.flip else identity,)
    return engine.fit(model, views=views, after_step=model.after_step, **recipe(config))


@hookimpl
def generate(model: DDPM, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    network = model.average.eval()
    start = pure_noise(network, num_images, model.channels, model.image_size)
    return sample(network, model.schedule, start, **vars(sampling)).expand(-1, 3, -1, -1)


@hookimpl
def picture(model: DDPM, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    """Return noise on its way to images, a row each."""
    network = model.average.eval()
    start = pure_noise(network, 8, model.channels, model.image_size)
    chain = strip(network, model.schedule, start, **vars(sampling))
    return {"denoising": chain.expand(-1, -1, 3, -1, -1)}
