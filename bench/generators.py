"""Generators of images from latent vectors, for any side that is a small number doubled.

A generator has `latent_features` and `latent_kind`, by which `latents` draws for it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

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

    Raises:
        Unsupported: see `first_side`.
    """

    def __init__(
        self, latent_features: int, width: int, image_size: int, *, kind: str = "normal"
    ) -> None:
        super().__init__()
        self.latent_features, self.latent_kind = latent_features, kind
        side, doublings = first_side(image_size)
        widths = [width * 2**i for i in reversed(range(doublings))]
        layers: list[nn.Module] = [
            nn.Linear(latent_features, widths[0] * side * side, bias=False),  # BatchNorm shifts
            nn.Unflatten(1, (widths[0], side, side)),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        for before, after in pairwise(widths):
            layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(widths[-1], 3, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)
