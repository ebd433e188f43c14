"""U-Nets that predict noise: one whose contracting path is a timm backbone, and the paper's own.

Both are called with images (B, C, H, W) and an embedding (B, E) of the time, to which a method may
add what else it knows; both start by predicting zero.

Papers: Ho et al., NeurIPS 2020, Appendix B (https://arxiv.org/abs/2006.11239); the original U-Net:
Ronneberger et al., MICCAI 2015.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.backbones import stage_maps
from bench.errors import Unsupported

NETWORKS = ("backbone", "paper")


def group_norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm in at most 32 groups, of 4 channels or more where they divide."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels)


class TimeEmbedding(nn.Module):
    """Steps (B,) to (B, features): sinusoids of the step, then two layers (Appendix B)."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features)
        )

    def forward(self, t: Tensor) -> Tensor:
        weight = self.layers[0].weight
        return self.layers(sinusoids(t, self.width).to(weight.dtype))


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Return sin and cos of `t` (B,) at wavelengths from 2 pi to 20,000 pi: float32 (B, width).

    Raises:
        ValueError: an odd width, or one below 4.
    """
    if width < 4 or width % 2:
        raise ValueError(f"the time is embedded in an even number of sinusoids, got {width}")
    half = width // 2
    steps = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) / (half - 1) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Denoiser(nn.Module):
    """A U-Net and the time's embedding: predicts the noise in (B, C, H, W) at steps (B,).

    Args:
        unet: takes an embedding of 4 * `width` features.
    """

    def __init__(self, unet: nn.Module, width: int) -> None:
        super().__init__()
        self.time, self.unet = TimeEmbedding(width, 4 * width), unet

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        return self.unet(noisy, self.time(t))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added; the embedding between them.

    Args:
        embedding: features of the embedding, 0 for a block that gets none.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(group_norm(inputs), nn.SiLU(), _conv(inputs, outputs))
        self.shift = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs)) if embedding else None
        self.second = nn.Sequential(
            group_norm(outputs), nn.SiLU(), nn.Dropout(dropout), _zero(_conv(outputs, outputs))
        )
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.first(x)
        if self.shift is not None:
            h = h + self.shift(embedding)[:, :, None, None]
        return self.shortcut(x) + self.second(h)


class SelfAttention(nn.Module):
    """One head of attention over all positions, added to its input (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW, 3C)
        mixed = F.scaled_dot_product_attention(*tokens.chunk(3, dim=2))
        return x + self.out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """A residual block, and attention after it if asked."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, embedding, dropout)
        self.attention = SelfAttention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class BackboneUNet(nn.Module):
    """A U-Net whose contracting path is a timm backbone.

    The backbone has no input for the time: it sees the noisy image alone. Its maps, from
    `forward_intermediates`, meet the embedding in the residual blocks of the expanding path, which
    joins them one by one from the smallest to the largest. A stem has a stride, and noise is told
    apart at full resolution only: one convolution of the image itself is the outermost skip. To
    what comes out a multiple of the image is added that the embedding decides. Late steps are
    nearly all noise, which the paper's network takes long to pass on through its norms.

    Args:
        channels: of the images; a single one is shown to the backbone as three that are equal.
        width: channels at full resolution; twice as many below it.
        embedding: features of the embedding.
        attention: side of the maps that attention follows.

    Raises:
        Unsupported: the backbone gives no maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        *,
        width: int,
        embedding: int,
        channels: int = 3,
        attention: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        shapes = map_shapes(backbone, image_size)
        below = 2 * width
        self.middle = nn.ModuleList(
            [
                Level(shapes[-1][0], below, embedding, dropout, attention=True),
                ResidualBlock(below, below, embedding, dropout),
            ]
        )
        joined = shapes[-2::-1]  # from the smallest but one to the largest
        outputs = [*[below] * (len(joined) - 1), width]  # few channels where they are large
        self.expanding = nn.ModuleList(
            Level(below + maps, after, embedding, dropout, attention=side == attention)
            for (maps, side), after in zip(joined, outputs, strict=False)
        )
        self.inlet = _conv(channels, width)
        self.last = ResidualBlock((width if joined else below) + width, width, embedding, dropout)
        self.out = nn.Sequential(group_norm(width), nn.SiLU(), _zero(_conv(width, channels)))
        self.gain = nn.Sequential(nn.SiLU(), _zero(nn.Linear(embedding, channels)))

    def forward(self, images: Tensor, embedding: Tensor) -> Tensor:
        shown = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        maps = list(stage_maps(self.backbone, shown).values())
        x = maps[-1]
        for block in self.middle:
            x = block(x, embedding)
        for block, skip in zip(self.expanding, reversed(maps[:-1]), strict=True):
            x = block(torch.cat([_as_large(x, skip), skip], dim=1), embedding)
        skip = self.inlet(images)
        x = self.last(torch.cat([_as_large(x, skip), skip], dim=1), embedding)
        return self.out(x) + self.gain(embedding)[:, :, None, None] * images


class UNet(nn.Module):
    """The U-Net of Ho et al., Appendix B, with the settings for CIFAR-10.

    Args:
        channels: of the images, or latents, (B, channels, size, size).
        width: of the first level; `multipliers` of it at each, the size halved between them.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: side of the maps that attention follows.
        embedding: features of the embedding; four times `width` in the paper.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: int = 16,
        dropout: float = 0.1,
        embedding: int = 512,
    ) -> None:
        super().__init__()
        self.inlet = _conv(channels, width)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, now = [width], width
        sides = [math.ceil(size / 2**level) for level in range(len(multipliers))]
        for level, (times, side) in enumerate(zip(multipliers, sides, strict=True)):
            for _ in range(blocks):
                self.down.append(Level(now, times * width, embedding, dropout, side == attention))
                now = times * width
                skips.append(now)
            if level + 1 < len(multipliers):
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)
        self.middle = nn.ModuleList(
            [
                Level(now, now, embedding, dropout, attention=True),
                ResidualBlock(now, now, embedding, dropout),
            ]
        )
        for level, (times, side) in reversed(list(enumerate(zip(multipliers, sides, strict=True)))):
            for _ in range(blocks + 1):
                inputs = now + skips.pop()
                self.up.append(Level(inputs, times * width, embedding, dropout, side == attention))
                now = times * width
            if level:
                self.up.append(_conv(now, now))
        self.out = nn.Sequential(group_norm(now), nn.SiLU(), _zero(_conv(now, channels)))

    def forward(self, images: Tensor, embedding: Tensor) -> Tensor:
        x = self.inlet(images)
        skips = [x]
        for block in self.down:
            x = block(x, embedding) if isinstance(block, Level) else block(x)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.up:
            if isinstance(block, Level):
                x = block(torch.cat([x, skips.pop()], dim=1), embedding)
            else:
                x = block(_as_large(x, skips[-1]))
        return self.out(x)


def check_network(kind: str) -> None:
    """Refuse a kind of network that `noise_network` does not know.

    Raises:
        ValueError: the message says which were expected.
    """
    if kind not in NETWORKS:
        raise ValueError(f"network is {kind!r}; expected {' or '.join(NETWORKS)}")


class NetworkConfig(Protocol):
    """What a method's configuration says of its network; see `UNet`.

    Attributes:
        network: "backbone" for `BackboneUNet`, which has no use for multipliers and blocks; "paper"
            for `UNet`, which has none for the backbone. Read by `noise_network` alone.
    """

    network: str
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: int
    dropout: float


def noise_network(
    config: NetworkConfig, backbone: nn.Module, image_size: int, *, gray: bool = False
) -> nn.Module:
    """Return the U-Net of images that a method's configuration names.

    Args:
        gray: images have one channel and not three.

    Raises:
        ValueError: config.network is of no known kind.
        Unsupported: the backbone gives no maps.
    """
    check_network(config.network)
    channels = 1 if gray else 3
    if config.network == "paper":
        return paper_unet(config, channels, image_size)
    return BackboneUNet(
        backbone,
        image_size,
        width=config.width,
        embedding=4 * config.width,
        channels=channels,
        attention=config.attention,
        dropout=config.dropout,
    )


def paper_unet(config: NetworkConfig, channels: int, size: int) -> UNet:
    """Return the U-Net of a method's configuration, for (B, channels, size, size)."""
    return UNet(
        channels,
        size,
        width=config.width,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention=config.attention,
        dropout=config.dropout,
        embedding=4 * config.width,
    )


def map_shapes(backbone: nn.Module, image_size: int) -> list[tuple[int, int]]:
    """Return channels and side of the maps (B, C, h, h) that a backbone gives, in order.

    The backbone is left in the mode that it was in, its buffers as they were.

    Raises:
        Unsupported: it gives no maps.
    """
    name, mode = type(backbone).__name__, backbone.training
    first = next(backbone.parameters())
    images = first.new_zeros(1, 3, image_size, image_size)
    with torch.no_grad():
        maps = list(stage_maps(backbone.eval(), images).values())
    backbone.train(mode)
    if not hasattr(backbone, "forward_intermediates") or any(m.ndim != 4 for m in maps):
        raise Unsupported(f"{name} gives no maps (B, C, H, W) of its stages for a U-Net to join")
    return [(m.shape[1], m.shape[2]) for m in maps]


def _as_large(x: Tensor, skip: Tensor) -> Tensor:
    """Return `x` repeated to the height and width of `skip`."""
    if x.shape[2:] == skip.shape[2:]:
        return x
    return F.interpolate(x, size=skip.shape[2:], mode="nearest")


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _zero(layer: nn.Module) -> nn.Module:
    """Let a layer start at zero, as the last of every block and of the network (the source)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
