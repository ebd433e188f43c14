"""From a backbone's maps to a map of latents, and from a small map to an image of any size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.backbones import stage_maps
from bench.errors import Unsupported
from bench.unet import ResidualBlock, group_norm, map_shapes

ENCODERS = ("conv", "vit")


class MapEncoder(nn.Module):
    """Images to a map (B, outputs, side, side) that is read from all stages of a backbone.

    An expanding path joins the stages' maps from the smallest up to the side that is asked for.
    Larger maps come before these in the backbone, and are left to it.

    Args:
        side: of the map; the maps' own, where they are all of one side as a ViT's are.
        width: channels of the expanding path.
        kind: conv or vit, what the backbone must be.

    Attributes:
        side: of the map that is returned.

    Raises:
        Unsupported: the backbone gives no maps, or is not of this kind.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        *,
        side: int,
        outputs: int,
        width: int,
        kind: str = "conv",
    ) -> None:
        super().__init__()
        shapes = map_shapes(backbone, image_size)
        flat = len({own for _, own in shapes}) == 1
        if flat != (kind == "vit"):
            raise Unsupported(
                f"encoder {kind!r} on {type(backbone).__name__}; expected "
                f"{'vit where' if flat else 'conv where'} maps of {image_size} px images have "
                f"sides {', '.join(str(own) for _, own in shapes)}"
            )
        self.backbone = backbone
        self.side = shapes[0][1] if flat else side
        self.used = [i for i, (_, own) in enumerate(shapes) if own <= self.side][::-1]
        if not self.used:
            self.used = [len(shapes) - 1]
        last, *others = (shapes[i][0] for i in self.used)
        self.inlet = nn.Conv2d(last, width, 1)
        self.joins = nn.ModuleList(ResidualBlock(width + maps, width) for maps in others)
        self.out = nn.Sequential(
            ResidualBlock(width, width),
            group_norm(width),
            nn.SiLU(),
            nn.Conv2d(width, outputs, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = list(stage_maps(self.backbone, images).values())
        last, *others = (maps[i] for i in self.used)
        x = self.inlet(last)
        for join, skip in zip(self.joins, others, strict=True):
            x = join(torch.cat([_resized(x, skip.shape[-1]), skip], dim=1))
        return self.out(_resized(x, self.side))


def _resized(x: Tensor, side: int) -> Tensor:
    """Return maps repeated, or averaged, to another side."""
    if x.shape[-1] > side:
        return F.adaptive_avg_pool2d(x, side)
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="nearest")


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
            x = level(_resized(x, side))
        return self.out(x)


def doublings(image_size: int, smallest: int = 4) -> list[int]:
    """Return sides from the first at or below `smallest` to `image_size`, each half of the next.

    Odd sides are halved upwards: 28 gives 4, 7, 14, 28.
    """
    sides = [image_size]
    while sides[0] > smallest:
        sides.insert(0, math.ceil(sides[0] / 2))
    return sides
