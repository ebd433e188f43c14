"""Generators of images from latent vectors, for any side that is a small number doubled.

A generator has `latent_features` and `latent_kind`, by which `latents` draws for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import Unsupported

LATENTS = ("normal", "uniform")
LARGEST_START = 15  # pixels; a larger odd map would leave nothing to the doublings


def latents(generator: nn.Module, count: int) -> Tensor:
    """Return latents (count, Z) for `generator` on its device, N(0, 1) or uniform in [-1, 1].

    Raises:
        ValueError: the generator's `latent_kind` is neither normal nor uniform.
    """
    drawn = next(generator.parameters()).new_empty(count, generator.latent_features)
    if generator.latent_kind == "normal":
        return drawn.normal_()
    if generator.latent_kind == "uniform":
        return drawn.uniform_(-1, 1)
    raise ValueError(f"latents are {generator.latent_kind!r}; expected {' or '.join(LATENTS)}")


@torch.no_grad()
def sample(generator: nn.Module, *inputs: Tensor) -> Tensor:
    """Return the generator's images (B, 3, H, W) in evaluation, clamped to [-1, 1]."""
    return generator.eval()(*inputs).clamp(-1, 1)


def interpolate(generator: nn.Module, rows: int = 8, columns: int = 8) -> Tensor:
    """Return images (rows, columns, 3, H, W), each row on the line between two latents."""
    start, end = latents(generator, rows), latents(generator, rows)  # (rows, Z) each
    shares = torch.linspace(0, 1, columns, device=start.device, dtype=start.dtype)
    between = torch.lerp(start[:, None], end[:, None], shares[None, :, None])
    return sample(generator, between.flatten(0, 1)).unflatten(0, (rows, columns))


@torch.no_grad()
def standing_statistics(
    generator: nn.Module, draw: Callable[[int], tuple[Tensor, ...]], batches: int = 16
) -> None:
    """Set BatchNorm's running statistics to their mean over batches of samples (Brock et al. 2019).

    Args:
        draw: the number of samples, 64 a batch, to the generator's inputs.
    """
    generator.train()
    for norm in (m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    for _ in range(batches):
        generator(*draw(64))


def truncated_normal(out: Tensor, bound: float | None = None) -> Tensor:
    """Fill `out` from N(0, 1), given that no value is beyond `bound` in size, if there is one.

    By the inverse of the distribution function: as many random numbers whatever the bound.
    """
    if bound is None:
        return out.normal_()
    most = math.erf(bound / 2**0.5)
    return out.uniform_(-most, most).erfinv_().mul_(2**0.5).clamp_(-bound, bound)


def first_side(image_size: int) -> tuple[int, int]:
    """Return (side, doublings) of a generator's first map: image_size = side * 2^doublings.

    The side is 4 to 7 where the image's allows it: 4 for 32 and 64 pixels, 7 for 28, 6 for 48.

    Raises:
        Unsupported: the image's side is odd, or has an odd factor above 15.
    """
    side, doublings = image_size, 0
    while side % 2 == 0 and side > 7:
        side, doublings = side // 2, doublings + 1
    if doublings == 0 or side > LARGEST_START:
        raise Unsupported(
            f"a generator doubles a map of at most {LARGEST_START} pixels until it is the image; "
            f"{image_size} pixels are none of its sides (28, 32, 48, 64, 96, 128 and 224 are)"
        )
    return side, doublings


class ConvGenerator(nn.Module):
    """Latents (B, Z) to images (B, 3, H, H) in [-1, 1] by fractionally strided convolutions.

    The generator of Radford et al. 2016, Figure 1: a projection to the first map, then 4x4
    convolutions of stride 1/2, with BatchNorm and ReLU but for the last, which ends in tanh.
    Channels halve as the side doubles.

    Args:
        width: channels before the image; 128 in the paper, at 64 pixels.
        kind: of latents, normal or uniform.
        gray: make one plane and show it as three, so that no colour has to be unlearned.
        norm: without, biases instead of BatchNorm (Arjovsky et al. 2017, Figure 6).

    Raises:
        Unsupported: see `first_side`.
    """

    def __init__(
        self,
        latent_features: int,
        width: int,
        image_size: int,
        *,
        kind: str = "normal",
        gray: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.latent_features, self.latent_kind = latent_features, kind
        side, doublings = first_side(image_size)
        widths = [width * 2**i for i in reversed(range(doublings))]
        bias = not norm  # BatchNorm shifts

        def activated(channels: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(channels)] * norm + [nn.ReLU(inplace=True)]

        layers: list[nn.Module] = [
            nn.Linear(latent_features, widths[0] * side * side, bias=bias),
            nn.Unflatten(1, (widths[0], side, side)),
            *activated(widths[0]),
        ]
        for before, after in pairwise(widths):
            layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=bias))
            layers += activated(after)
        layers += [
            nn.ConvTranspose2d(widths[-1], 1 if gray else 3, 4, stride=2, padding=1),
            nn.Tanh(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents).expand(-1, 3, -1, -1)


class SelfAttention(nn.Module):
    """Maps (B, C, h, w) to maps plus what each place attends to (Zhang et al. 2019, Section 3).

    Keys and values are pooled 2x2, as in the source of BigGAN; the gain begins at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.query = nn.Conv2d(channels, narrow, 1, bias=False)
        self.key = nn.Conv2d(channels, narrow, 1, bias=False)
        self.value = nn.Conv2d(channels, half, 1, bias=False)
        self.out = nn.Conv2d(half, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        queries = self.query(maps).flatten(2)  # (B, C / 8, N)
        keys = F.max_pool2d(self.key(maps), 2).flatten(2)  # (B, C / 8, N / 4)
        values = F.max_pool2d(self.value(maps), 2).flatten(2)  # (B, C / 2, N / 4)
        shares = torch.einsum("bcn,bcm->bnm", queries, keys).softmax(dim=2)
        attended = torch.einsum("bcm,bnm->bcn", values, shares).unflatten(2, maps.shape[2:])
        return maps + self.gain * self.out(attended)


class ConditionalNorm(nn.Module):
    """BatchNorm whose scale and shift are linear in the condition, (B, D)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Linear(condition, channels, bias=False)
        self.shift = nn.Linear(condition, channels, bias=False)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        scale = 1 + self.scale(condition)[:, :, None, None]
        return self.norm(maps) * scale + self.shift(condition)[:, :, None, None]


class ConditionalBlock(nn.Module):
    """A residual block that doubles the side, then attention if asked (Brock et al., Figure 15 b).

    Maps (B, before, h, w) and conditions (B, condition) to (B, after, 2h, 2w).
    """

    def __init__(self, before: int, after: int, condition: int, *, attention: bool = False) -> None:
        super().__init__()
        self.norm0, self.norm1 = (ConditionalNorm(c, condition) for c in (before, after))
        self.conv0 = nn.Conv2d(before, after, 3, padding=1)
        self.conv1 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)
        self.attention = SelfAttention(after) if attention else nn.Identity()

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        hidden = F.interpolate(self.norm0(maps, condition).relu(), scale_factor=2.0)
        hidden = self.conv1(self.norm1(self.conv0(hidden), condition).relu())
        return self.attention(hidden + F.interpolate(self.shortcut(maps), scale_factor=2.0))
