"""Colour changes compiled into one region, where the machine has a compiler for its device.

On a card each operation of `bench.colour` reads and writes all images; one region reads and writes
them once a pass. Values differ from the others by rounding, far below 1/255. Without a compiler, or
where it fails, views are what they are without this module.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from bench import colour
from bench.colour import CONTRAST, HUE, SATURATION
from bench.geometry import to_device

SWITCH = "BENCH_COMPILE"  # set to 0, nothing is compiled
DEVICES = ("cuda",)  # on a processor the compiler takes longer than a small track gains
Jitter = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def jitter_whole(images: Tensor, factors: Tensor, orders: Tensor, applied: Tensor) -> Tensor:
    """As `colour.jitter`, by the same operations on all images: shapes do not depend on the draws.

    Args:
        images: (B, C, H, W) in [0, 1]. With one channel, saturation and hue do nothing.
        factors: (B, 4); the columns are brightness, contrast, saturation, hue.
        orders: int64 (B, 4), each row a permutation of the columns.
        applied: bool (B,); images outside are returned as they are.
    """
    coloured = images.shape[1] == 3
    colourless = colour.is_gray(images).flatten(1)  # (B, 1), before anything is changed
    for slot in range(4):
        change = orders[:, slot : slot + 1]  # (B, 1)
        factor = factors.gather(1, change)
        none = ~applied[:, None] | (change == HUE) | ((change == SATURATION) & colourless)
        factor = torch.where(none, 1.0, factor).to(images.dtype)
        to_mean = _per_image(torch.where(change == CONTRAST, 1 - factor, 0.0))
        to_luma = _per_image(torch.where(change == SATURATION, 1 - factor, 0.0))
        gray = colour.luma(images)
        base = gray.mean((1, 2, 3), keepdim=True) * to_mean
        blended = (images * _per_image(factor) + base + gray * to_luma).clamp(0, 1)
        if coloured:
            turns = factors[:, HUE].to(images.dtype)
            turned = _turned(images, turns)
            blended = torch.where(_per_image((change == HUE) & applied[:, None]), turned, blended)
        images = blended
    return images


def jitter(images: Tensor, factors: Tensor, orders: Tensor, *, applied: Tensor) -> Tensor:
    """Return `colour.jitter` of the images, compiled on a card that has a compiler."""
    if images.device.type in DEVICES and (compiled := _compiled()) is not None:
        given = (to_device(part, images.device) for part in (factors, orders, applied))
        try:
            return compiled(images, *given)
        except Exception as error:  # of the compiler: torch has no one class for what it raises
            _broken.append(_line(error))
            _compiled.cache_clear()
            warnings.warn(f"colour is not compiled: {_broken[-1]}", stacklevel=2)
    return colour.jitter(images, factors, orders, applied=applied)


_broken: list[str] = []  # why this process compiles no more


@functools.cache
def _compiled() -> Jitter | None:
    """Return the region; None without Triton, where it failed before or BENCH_COMPILE is 0."""
    off = os.environ.get(SWITCH) == "0" or importlib.util.find_spec("triton") is None
    if off or _broken:
        return None
    return torch.compile(jitter_whole, fullgraph=True, dynamic=False)


def _turned(images: Tensor, turns: Tensor) -> Tensor:
    """As `colour.adjust_hue`, whose formulas these are, without writing in place."""
    red, green, blue = images.unbind(1)  # (B, H, W) each
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = highest - lowest
    per_chroma = 1 / chroma.clamp_min(torch.finfo(images.dtype).tiny)
    signed = green - blue
    a, u = signed.abs() * per_chroma, (highest - red) * per_chroma
    sextants = torch.copysign(a + u * (3 - 2 * a), signed)
    hue = 6 * (turns.view(-1, 1, 1) + 1 + sextants / 6).frac()  # [0, 6)
    shares = ((hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs())
    return torch.stack([lowest + chroma * share.clamp(0, 1) for share in shares], dim=1)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
