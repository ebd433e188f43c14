"""BigGAN: large scale GAN training for high fidelity natural image synthesis.

Paper:   Brock et al., ICLR 2019. https://arxiv.org/abs/1809.11096
Source:  https://github.com/ajbrock/BigGAN-PyTorch
Family:  gan
Departs: the discriminator is the track's backbone, without attention; its BatchNorm only scales and
         shifts, by at most 1. No orthogonal regularisation; the source's default has none either.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, Unsupported, generators, hookimpl
from bench.adversarial import (
    INITIALISE,
    Game,
    ProjectionDiscriminator,
    Turns,
    hinge_loss,
    keep_spectra,
    normalise_spectra,
    shifted,
)
from bench.layers import ema_update, fix_batch_norm, group_batch_norm


@dataclass(frozen=True)
class Config:
    """The source's recipe on ImageNet at 128 px and batch 2048."""

    latent_chunk: int = 20  # of z, one for the first map and one for each block; Appendix B
    shared_features: int = 128  # of the class embedding, Appendix B
    widths: tuple[int, ...] = (1536, 1536, 768, 384, 192, 96)  # of the maps as the side doubles
    attention_side: int | None = 64  # pixels
    shift: int = 0  # pixels by which what the discriminator sees moves at random
    discriminator_steps: int = 2  # Section 3
    generator_lr: float = 5e-5  # Section 3
    discriminator_lr: float = 2e-4
    beta1: float = 0.0  # Appendix C
    init: str = "orthogonal"  # or normal: N(0, 0.02^2)
    average_decay: float = 0.9999  # of the generator that samples, Section 3
    average_start: int = 20000  # steps of the generator, scripts/launch_BigGAN_bs256x8.sh

    def __post_init__(self) -> None:
        if self.init not in INITIALISE:
            raise ValueError(f"init is {self.init!r}; expected orthogonal or normal")


# The source's scripts/launch_cifar_ema.sh at batch 50.
CIFAR10 = replace(
    Config(),
    widths=(256, 256, 256, 256),
    attention_side=None,
    discriminator_steps=4,
    generator_lr=2e-4,
    init="normal",
    average_start=1000,
)

# A few minutes of one core at 32 px: some hundred steps, so larger ones and a shorter average.
SMALL = replace(
    Config(),
    latent_chunk=16,
    shared_features=32,
    widths=(128, 64, 32, 16),
    attention_side=16,
    discriminator_steps=1,
    generator_lr=5e-4,
    discriminator_lr=5e-4,
    average_decay=0.98,
    average_start=50,
    shift=4,
)


@dataclass(frozen=True)
class Sampling:
    """`truncation` bounds every latent's absolute value (Section 3.1); None: N(0, 1) whole."""

    truncation: float | None = None

    def __post_init__(self) -> None:
        if self.truncation is not None and self.truncation <= 0:
            raise ValueError(f"truncation is {self.truncation}; expected above 0, or none")


class Generator(nn.Module):
    """Latents (B, Z) and labels (B,) to images (B, 3, H, H) in [-1, 1]."""

    def __init__(self, config: Config, num_classes: int, image_size: int, gray: bool) -> None:
        super().__init__()
        side, doublings = generators.first_side(image_size)
        if len(config.widths) != doublings + 1:
            given = len(config.widths)
            raise Unsupported(f"{image_size} px take {doublings + 1} widths, got {given}")
        self.num_classes, self.latent_features = num_classes, config.latent_chunk * (doublings + 1)
        self.shared = nn.Embedding(num_classes, config.shared_features)
        self.inlet = nn.Linear(config.latent_chunk, config.widths[0] * side * side)
        condition = config.shared_features + config.latent_chunk
        self.blocks = nn.ModuleList()
        for level in range(doublings):
            before, after = config.widths[level : level + 2]
            attend = side * 2 ** (level + 1) == config.attention_side
            block = generators.ConditionalBlock(before, after, condition, attention=attend)
            self.blocks.append(block)
        norm, conv = nn.BatchNorm2d(after), nn.Conv2d(after, 1 if gray else 3, 3, padding=1)
        self.outlet = nn.Sequential(norm, nn.ReLU(), conv, nn.Tanh())
        self.first_map = (config.widths[0], side, side)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        first, *others = latents.chunk(len(self.blocks) + 1, dim=1)  # (B, chunk) each
        maps = self.inlet(first).unflatten(1, self.first_map)
        shared = self.shared(labels)
        for block, chunk in zip(self.blocks, others, strict=True):
            maps = block(maps, torch.cat([shared, chunk], dim=1))
        return self.outlet(maps).expand(-1, 3, -1, -1)

    def draw(self, count: int, truncation: float | None = None) -> tuple[Tensor, Tensor]:
        """Return latents (count, Z), see `truncated_normal`, and labels, every class as likely."""
        weight = self.shared.weight
        blank = weight.new_empty(count, self.latent_features)
        drawn = generators.truncated_normal(blank, truncation)
        return drawn, torch.randint(self.num_classes, (count,), device=weight.device)


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="BigGAN",
        paper="https://arxiv.org/abs/1809.11096",
        family="gan",
        defaults=Config(),
        recipes={"small": SMALL, "cifar10": CIFAR10},
        search={
            "generator_lr": ("log_uniform", 5e-5, 4e-3),
            "discriminator_lr": ("log_uniform", 1e-4, 4e-3),
            "discriminator_steps": ("choice", 1, 2),
        },
        sampling=Sampling(),
        uses_labels=True,
        conditional=True,
        departs="the track's backbone discriminates, without attention; its BatchNorm only scales",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    shape = engine.num_classes, engine.image_size
    maker = Generator(config, *shape, engine.gray)
    judge = ProjectionDiscriminator(backbone, *shape)
    fix_batch_norm(backbone)
    for player in (maker, judge):
        normalise_spectra(INITIALISE[config.init](player))
    discriminator = engine.prepare(judge, "judge")
    average = engine.prepare(copy.deepcopy(maker).requires_grad_(False), "average")
    generator = engine.prepare(group_batch_norm(maker), "generator")
    turns = engine.prepare(Turns(), "turns")
    rates = {"kind": "adam", "betas": (config.beta1, 0.999), "schedule": "constant"}
    descend = engine.optimizer(generator, name="generator", lr=config.generator_lr, **rates)
    ascend = engine.optimizer(discriminator, name="judge", lr=config.discriminator_lr, **rates)
    for batch in engine.batches():
        images = batch.views[0]
        with engine.autocast():
            drawn, labels = generator.draw(len(images))
            with torch.no_grad():
                fakes = generator(drawn, labels)
            images, fakes = shifted(images, config.shift), shifted(fakes, config.shift)
            loss = hinge_loss(discriminator(images, batch.labels), discriminator(fakes, labels))
        engine.step(loss, ascend)
        engine.log(judge_loss=loss)
        if turns.generator_moves(after=config.discriminator_steps):
            with engine.autocast():
                drawn, labels = generator.draw(len(images))
                fakes = shifted(generator(drawn, labels), config.shift)
                loss = -discriminator(fakes, labels).mean()
            engine.step(loss, descend)
            begun = turns.generator_steps > config.average_start
            ema_update(average, generator, config.average_decay if begun else 0.0)
    generators.standing_statistics(average, average.draw)
    keep_spectra(backbone)
    return Game(average, discriminator)


@hookimpl
def generate(model: Game, num_images: int, labels: Tensor, sampling: Sampling) -> Tensor:
    drawn, _ = model.generator.draw(num_images, sampling.truncation)
    return generators.sample(model.generator, drawn, labels.to(drawn.device))


@hookimpl
def picture(model: Game, engine: Engine, sampling: Sampling) -> dict[str, Tensor]:
    rows = min(10, model.generator.num_classes)
    images = generate(model, 8 * rows, torch.arange(rows).repeat_interleave(8), sampling)
    return {"classes": images.unflatten(0, (rows, 8))}
