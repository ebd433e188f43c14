"""Wasserstein GAN, by clipping or by gradient penalty.

Paper:   Arjovsky et al., ICML 2017. https://arxiv.org/abs/1701.07875
         Gulrajani et al., NeurIPS 2017 (the penalty). https://arxiv.org/abs/1704.00028
Source:  https://github.com/martinarjovsky/WassersteinGAN
         https://github.com/igul222/improved_wgan_training
Family:  gan
Departs: the critic is the track's backbone under one linear layer; the papers' are a DCGAN's and a
         ResNet of their own. With the penalty its BatchNorm layers only scale and shift: the
         penalty is of each image alone (Gulrajani et al., Section 4, "No critic batch
         normalization"), and the backbone keeps its architecture. "small" clips at
         0.1, and not BatchNorm's scales, see there, and moves what the critic sees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.adversarial import Discriminator, Game, Turns, gradient_penalty, normal_init, shifted
from bench.generators import ConvGenerator, interpolate, latents, sample
from bench.layers import fix_batch_norm, group_batch_norm

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Config:
    """Algorithm 1 with the source's main.py; with a penalty, Algorithm 1 of Gulrajani et al."""

    clip: float = 0.01  # bound of every critic weight; unused with a penalty
    clip_norms: bool = True  # the scales and shifts of norms, too, as main.py does
    gradient_penalty: float = 0.0  # 10 makes it WGAN-GP
    critic_steps: int = 5  # of both papers; in each a batch is drawn
    long_critic_steps: int | None = 100  # without a penalty: main.py, for the first 25 steps
    long_first: int = 25  # of the generator,
    long_every: int = 500  # and for each 500th
    latent_features: int = 100  # main.py
    width: int = 64  # of the generator before the image, main.py
    generator_norm: bool = True  # BatchNorm in it; without: Section 4.3
    critic_map: bool = False  # read the last feature map flattened, not pooled
    lr: float | None = None  # both networks'; None: 5e-5 (RMSprop), 1e-4 with a penalty (Adam)
    shift: int = 0  # pixels by which what the critic sees moves at random
    init_std: float | None = 0.02  # of the generator, and the critic without a penalty: main.py

    def __post_init__(self) -> None:
        if self.critic_steps < 1 or self.long_every < 1:
            raise ValueError("critic_steps and long_every are 1 or more")
        if self.clip <= 0 or self.gradient_penalty < 0:
            raise ValueError("clip is above 0, gradient_penalty 0 or more")


# A few minutes of one core at 32 px draw a thousand batches, and with 3 of them for the critic the
# generator moved too seldom to learn shapes; so they move in turn. The map is read flattened, as by
# the source's critic: read pooled, the critic was sure at once and the same for all samples.
# The bound is for a timm ResNet: at 0.01 its maps' variance falls below BatchNorm's epsilon, block
# by block, and nothing of the critic's slope is left (1e-7 per image; 0.1 at a bound of 0.1).
# BatchNorm's scales are free: clipped, they shrink each residual branch to a tenth of what it is
# added to, the critic sees little but its shortcuts, and samples become stripes.
SMALL = replace(
    Config(),
    clip=0.1,
    clip_norms=False,
    width=32,
    critic_map=True,
    critic_steps=1,
    long_critic_steps=None,
    lr=1e-3,
    shift=4,
)
SMALL_GP = replace(SMALL, gradient_penalty=10.0)


@dataclass(frozen=True)
class Sampling:
    """Nothing is chosen at sampling: latents come as in training."""


def critic_steps(config: Config, generator_steps: int) -> int:
    """Return how many steps the critic takes before the generator's next."""
    if config.gradient_penalty or config.long_critic_steps is None:
        return config.critic_steps
    long = generator_steps < config.long_first or generator_steps % config.long_every == 0
    return config.long_critic_steps if long else config.critic_steps


@torch.no_grad()
def clip_weights(critic: nn.Module, bound: float, *, norms: bool = True) -> None:
    """Clamp every parameter, or all but those of norms, to +-bound in place (Algorithm 1)."""
    for module in critic.modules():
        if norms or not isinstance(module, NORMS):
            for parameter in module.parameters(recurse=False):
                parameter.clamp_(-bound, bound)


def rates(config: Config) -> dict[str, Any]:
    """Return what both networks' optimizers take."""
    if config.gradient_penalty:
        kind = {"kind": "adam", "betas": (0.0, 0.9)}
    else:
        kind = {"kind": "rmsprop"}  # with momentum the critic may diverge, Section 4
    usual = 1e-4 if config.gradient_penalty else 5e-5
    return kind | {"lr": usual if config.lr is None else config.lr, "schedule": "constant"}


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="WGAN",
        paper="https://arxiv.org/abs/1701.07875",
        family="gan",
        defaults=Config(),
        recipes={"small": SMALL, "small_color": SMALL, "small_gp": SMALL_GP},
        search={
            "lr": ("log_uniform", 2e-4, 8e-3),
            "clip": ("choice", 0.1, 0.05, 0.2),
            "critic_steps": ("choice", 1, 2, 5),
        },
        sampling=Sampling(),
        departs="the track's backbone is the critic; with a penalty its BatchNorm only scales",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    size = engine.image_size
    latent, norm = config.latent_features, config.generator_norm
    maker = ConvGenerator(latent, config.width, size, gray=engine.gray, norm=norm)
    judge = Discriminator(backbone, size if config.critic_map else None)
    if config.init_std is not None:
        normal_init(maker, config.init_std)
    if config.gradient_penalty:
        fix_batch_norm(backbone)
    else:
        if config.init_std is not None:
            normal_init(judge, config.init_std)
        group_batch_norm(backbone)
    generator = engine.prepare(group_batch_norm(maker), "generator")
    critic = engine.prepare(judge, "critic")
    turns = engine.prepare(Turns(), "turns")
    descend = engine.optimizer(generator, name="generator", **rates(config))
    ascend = engine.optimizer(critic, name="critic", **rates(config))

    for batch in engine.batches():
        images = batch.views[0]
        with engine.autocast():
            with torch.no_grad():
                fakes = generator(latents(generator, len(images)))
            images, fakes = shifted(images, config.shift), shifted(fakes, config.shift)
            distance = critic(images).mean() - critic(fakes).mean()  # of Wasserstein, if Lipschitz
            loss = -distance
            if config.gradient_penalty:
                loss = loss + config.gradient_penalty * gradient_penalty(critic, images, fakes)
        engine.step(loss, ascend)
        engine.log(critic_loss=loss, distance=distance)
        if not config.gradient_penalty:
            clip_weights(critic, config.clip, norms=config.clip_norms)
        if turns.generator_moves(after=critic_steps(config, turns.generator_steps)):
            with engine.autocast():
                fakes = generator(latents(generator, len(images)))
                loss = -critic(shifted(fakes, config.shift)).mean()
            engine.step(loss, descend)
            engine.log(generator_loss=loss, generator_steps=turns.generator_steps)
    if not config.gradient_penalty:
        engine.settle(backbone)  # its BatchNorm saw samples as well
    return Game(generator, critic)


@hookimpl
def generate(model: Game, num_images: int, labels: Tensor | None, sampling: Sampling) -> Tensor:
    return sample(model.generator, latents(model.generator, num_images))


@hookimpl
def picture(model: Game, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    return {"interpolation": interpolate(model.generator)}
