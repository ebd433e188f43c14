"""A convolutional decoder: from a small map to an image of any size."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from bench.unet import ResidualBlock, group_norm


class Decoder(nn.Module):
    """(B, channels, s, s) to (B, outputs, H, H): residual blocks, the side doubled between them.

    Each doubling repeats every pixel and convolves. Widths halve on the way, from `width` times a
    power of two to `width` at full size, but never above eight times `width`.

    Args:
        channels: of the map that is decoded.
        sides: as `doublings` gives them, the map's first.
        width: channels at full size.
        outputs: channels of the result, 3 for an image.
        blocks: residual blocks at each side.
    """

    def __init__(
        self, channels: int, sides: list[int], *, width: int, outputs: int = 3, blocks: int = 1
    ) -> None:
        super().__init__()
        self.sides = sides
        widths = [width * min(8, 2**level) for level in reversed(range(len(sides)))]
        self.inlet = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        now = widths[0]
        for features in widths:
            level = [ResidualBlock(now, features)]
            level += [ResidualBlock(features, features) for _ in range(blocks - 1)]
            self.levels.append(nn.Sequential(*level))
            now = features
        self.out = nn.Sequential(group_norm(now), nn.SiLU(), nn.Conv2d(now, outputs, 3, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        x = self.inlet(maps)
        for side, level in zip(self.sides, self.levels, strict=True):
            if x.shape[-1] != side:
                x = F.interpolate(x, size=(side, side), mode="nearest")
            x = level(x)
        return self.out(x)


def doublings(image_size: int, smallest: int = 4) -> list[int]:
    """Return sides from the first at or below `smallest` to `image_size`, each half of the next.

    Odd sides are halved upwards: 28 gives 4, 7, 14, 28.
    """
    sides = [image_size]
    while sides[0] > smallest:
        sides.insert(0, math.ceil(sides[0] / 2))
    return sides
