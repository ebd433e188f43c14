"""Colour changes with one parameter per image: exact, batched, torchvision's image by image.

Every function takes images (B, C, H, W), float32 or float64 in [0, 1], and returns new ones. C is
3, or 1 for the single plane of gray data. Nothing here is random: `bench.augment` draws the
parameters.

Formulas: torchvision.transforms.v2.functional, `adjust_brightness` to `adjust_hue`. One departure:
its luma weights sum to 0.9999, so that it darkens gray images a little where it changes saturation
or drops colour; here an image whose channels are equal passes both unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.geometry import to_device

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale


def luma(images: Tensor) -> Tensor:
    """Return the weighted sum of the channels, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images * sum(LUMA)
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def is_gray(images: Tensor) -> Tensor:
    """Return which images have equal channels, bool (B, 1, 1, 1)."""
    if images.shape[1] == 1:
        return torch.ones(len(images), 1, 1, 1, dtype=torch.bool, device=images.device)
    # A maximum, since comparing elementwise costs six times as much on a CPU.
    return (images[:, 1:] - images[:, :-1]).abs_().amax((1, 2, 3), keepdim=True) == 0


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each image by its factor, (B,), and clip to [0, 1]."""
    return (images * _per_image(factors, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move each image away from its mean luma by its factor, (B,), and clip to [0, 1]."""
    factors = _per_image(factors, images)
    mean = luma(images).mean((1, 2, 3), keepdim=True)
    return (images * factors).add_((1 - factors) * mean).clamp_(0, 1)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move each pixel away from its luma by its image's factor, (B,), and clip to [0, 1]."""
    factors = _per_image(factors, images).masked_fill(is_gray(images), 1)
    return (images * factors).add_((1 - factors) * luma(images)).clamp_(0, 1)


def adjust_hue(images: Tensor, factors: Tensor) -> Tensor:
    """Turn each image's hue in HSV space by its factor, (B,), in turns within [-0.5, 0.5]."""
    return _turn_hue_(images.clone(), factors)


def to_grayscale(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) whose channels all hold the luma."""
    # Undo the weights' sum where there is no colour to drop.
    scale = is_gray(images).to(images.dtype).mul_(1 / sum(LUMA) - 1).add_(1)
    return luma(images).mul_(scale).expand_as(images)


def invert_above(images: Tensor, threshold: float) -> Tensor:
    """Replace values x >= threshold by 1 - x."""
    if threshold == 0.5:  # the papers' threshold: the same values, without a slow comparison
        return torch.minimum(images, 1 - images)
    return torch.where(images >= threshold, 1 - images, images)


def jitter(
    images: Tensor, factors: Tensor, orders: Tensor, *, applied: Tensor | None = None
) -> Tensor:
    """Apply brightness, contrast, saturation and hue to each image in that image's own order.

    Args:
        images: (B, C, H, W) in [0, 1]. With one channel, saturation and hue do nothing.
        factors: (B, 4); the columns are brightness, contrast, saturation, hue.
        orders: int64 (B, 4), each row a permutation of the columns: what is applied first to last.
        applied: bool (B,); images outside are returned as they are. All are changed if None.

    On CUDA, `factors`, `orders` and `applied` are best left on the CPU: the work is arranged there.
    """
    factors, orders = factors.cpu(), orders.cpu()
    coloured = images.shape[1] == 3
    # Hue stands before, between or after the three others. Sorted by its place, each group that
    # turns its hue at the same time is a slice, and images that are left alone come last.
    place = (orders == HUE).to(torch.int8).argmax(1)  # (B,) in 0..3
    if applied is not None:
        place = torch.where(applied.cpu(), place, 4)
    arrangement = place.argsort(stable=True)
    ends = place.bincount(minlength=5).cumsum(0).tolist()
    changed = ends[HUE]

    # The others are one formula, f * image + (1 - f) * base, with base 0, mean luma or luma.
    last_blend = SATURATION if coloured else CONTRAST
    blends = orders[orders <= last_blend].view(len(orders), last_blend + 1)  # (B, 2 or 3)
    blends = blends.index_select(0, arrangement)[:changed]
    factors = factors.index_select(0, arrangement)[:changed]
    blend_factors, to_mean, to_luma, hues = (
        to_device(each.to(images.dtype), images.device)
        for each in (
            factors.gather(1, blends),
            blends == CONTRAST,
            blends == SATURATION,
            factors[:, HUE],
        )
    )
    arrangement = to_device(arrangement, images.device)
    arranged = images.index_select(0, arrangement)
    active = arranged[:changed]
    if coloured:
        colourless = is_gray(active).flatten(1)
        blend_factors = blend_factors.masked_fill(colourless & to_luma.bool(), 1)
    to_mean *= 1 - blend_factors
    to_luma *= 1 - blend_factors
    start = 0
    for slot in range(4):
        if coloured and start < ends[slot]:
            _turn_hue_(active[start : ends[slot]], hues[start : ends[slot]])
            start = ends[slot]
        if slot <= last_blend and changed:
            gray = luma(active)
            base = gray.mean((1, 2, 3), keepdim=True) * _per_image(to_mean[:, slot], images)
            if coloured:
                base = torch.addcmul(base, gray, _per_image(to_luma[:, slot], images))
            active.mul_(_per_image(blend_factors[:, slot], images)).add_(base).clamp_(0, 1)
    return arranged.index_select(0, arrangement.argsort())


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images).view(-1, 1, 1, 1)


def _turn_hue_(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in place, without a branch: comparing and selecting cost ten times a sum.

    On the colour hexagon, in sextants h in (-3, 3] from red, with every channel scaled from lowest
    0 to highest 1: a = |green - blue| and u = 1 - red give |h| = a + u (3 - 2a), and h has the sign
    of green - blue. (red 1: |h| = a. red 0: |h| = 3 - a. Between them a = 1: |h| = 1 + u.)
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)  # (B, H, W) each
    highest = torch.maximum(red, green)
    torch.maximum(highest, blue, out=highest)
    lowest = torch.minimum(red, green)
    torch.minimum(lowest, blue, out=lowest)
    chroma = highest.sub(lowest)
    per_chroma = chroma.clamp_min(torch.finfo(images.dtype).tiny).reciprocal_()

    signed = green - blue
    a = signed.abs().mul_(per_chroma)
    u = highest.sub_(red).mul_(per_chroma)
    hue = a.addcmul_(u, torch.rsub(a, 3, alpha=2)).copysign_(signed)
    # From sextants in [-3, 3] to turns, shifted by 1 so that the fraction wraps below zero too.
    shift = turns.to(images).view(-1, 1, 1) + 1
    hue = torch.add(shift, hue, alpha=1 / 6).frac_().mul_(6)  # [0, 6)

    # Each channel is lowest + chroma * trapezoid(hue).
    torch.addcmul(lowest, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=red)
    torch.addcmul(lowest, chroma, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), out=green)
    torch.addcmul(lowest, chroma, hue.sub_(4).abs_().neg_().add_(2).clamp_(0, 1), out=blue)
    return images
