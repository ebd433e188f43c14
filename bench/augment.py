"""Views of images: made per batch on the images' device, drawn per image.

A view is a function `view(images, draws) -> images` over float32 or float64 (B, 3, H, W) in [0, 1].
Plugins compose theirs:

    view = augment.compose(
        augment.random_resized_crop(scale=(0.08, 1)),
        augment.horizontal_flip(),
        augment.color_jitter(0.8, 0.8, 0.8, 0.2),
        augment.grayscale(),
    )

Each view draws its parameters and hands them to a function that is not random, one parameter per
image, so that it can be compared with torchvision's or PIL's image by image. A view never changes
the tensor it is given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import compiling
from bench.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    invert_above,
    jitter,
    to_grayscale,
)
from bench.draws import Draws
from bench.geometry import blur, crop, crop_resize, rotate, rotate90, to_device

__all__ = [
    "Draws",
    "View",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "blur",
    "color_jitter",
    "compose",
    "crop",
    "crop_resize",
    "gaussian_blur",
    "grayscale",
    "horizontal_flip",
    "identity",
    "invert_above",
    "jitter",
    "pad_and_crop",
    "random_crop",
    "random_resized_crop",
    "rotate",
    "rotate90",
    "rotation",
    "sample_boxes",
    "solarize",
    "to_grayscale",
]


View = Callable[[Tensor, Draws], Tensor]


def identity(images: Tensor, draws: Draws) -> Tensor:
    """Return the images."""
    return images


def compose(*views: View) -> View:
    """Return the view that applies `views` one after another, each drawing after the last."""

    def view(images: Tensor, draws: Draws) -> Tensor:
        for each in views:
            images = each(images, draws)
        return images.contiguous()  # on gray data the channels are one plane until here

    return view


def _planewise(view: View) -> View:
    """Run `view` on one plane of gray data; its three channels then share memory."""

    @functools.wraps(view)
    def planewise(images: Tensor, draws: Draws) -> Tensor:
        if not draws.gray:
            return view(images, draws)
        return view(images[:, :1], draws).expand(-1, images.shape[1], -1, -1)

    return planewise


def _where(chosen: Tensor, images: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Replace the images chosen on the CPU, bool (B,), by `change(those images, their rows)`."""
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    index = to_device(rows, images.device)
    return images.index_copy(0, index, change(images.index_select(0, index), rows))


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"a probability lies in [0, 1], got p={p}")


def _check_range(name: str, values: tuple[float, float], low: float, high: float) -> None:
    if not low <= values[0] <= values[1] <= high:
        raise ValueError(f"{name} is (smallest, largest) within [{low}, {high}], got {values}")


# ---- Crops
def sample_boxes(
    draws: Draws,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw one box per image, int64 (B, 4) on the CPU: top, left, height, width.

    torchvision's rule: at most ten attempts at an area uniform in `scale` times the image's and an
    aspect width / height log-uniform in `ratio`, then the central box nearest to the whole image.
    """
    draws = draws.host
    attempts = draws.uniform(shape=(10, 2)).double()
    places = draws.uniform(shape=(2,)).double()
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    area = height * width * (scale[0] + (scale[1] - scale[0]) * attempts[:, :, 0])
    aspect = (log_low + (log_high - log_low) * attempts[:, :, 1]).exp()
    widths = (area * aspect).sqrt().round().long()  # (B, 10)
    heights = (area / aspect).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    found = fits.any(1)

    # Outside `ratio`, the longer side is cut to it.
    fallback_width = min(width, round(height * ratio[1]))
    fallback_height = min(height, round(width / ratio[0]))
    box_width = torch.where(found, widths.gather(1, first).squeeze(1), fallback_width)
    box_height = torch.where(found, heights.gather(1, first).squeeze(1), fallback_height)
    free = torch.stack([height - box_height, width - box_width], dim=1)  # (B, 2)
    corners = torch.where(found[:, None], (places * (free + 1)).long(), free // 2)
    return torch.stack([corners[:, 0], corners[:, 1], box_height, box_width], dim=1)


def random_resized_crop(
    size: int | None = None,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> View:
    """Return a view: a box of random area and aspect, resized to `size`.

    Args:
        size: side of the square output in pixels; None: the input's, or what the backbone sees
            where images are stored larger.
        scale: range of the box's area as a share of the image's.
        ratio: range of the box's width / height.
    """
    _check_range("scale", scale, 0, 1)
    _check_range("ratio", ratio, 1e-3, 1e3)

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[2:]
        boxes = sample_boxes(draws, height, width, scale=scale, ratio=ratio)
        return crop_resize(images, boxes, draws.seen(images) if size is None else size)

    return view


def random_crop(size: int) -> View:
    """Return a view: a square of `size` pixels at a uniform place, not resized."""

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        free = [side - size for side in images.shape[2:]]
        if min(free) < 0:
            raise ValueError(f"random_crop({size}) got smaller images, {tuple(images.shape[2:])}")
        corners = [draws.integers(0, places + 1) for places in free]
        return crop(images, torch.stack(corners, dim=1), size)

    return view


def pad_and_crop(padding: int = 4) -> View:
    """Return a view: zeros around the image, then a uniform crop of the image's size.

    Where images are stored larger than the backbone sees them, the crop is of that size.
    """

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        height, width = draws.seen(images)
        spare = images.shape[2] - height  # the same in both axes: what is stored larger is square
        corners = draws.integers(0, 2 * padding + spare + 1, (2,))
        return crop(F.pad(images, [padding] * 4), corners, (height, width))

    return view


# ---- Flips and turns
def horizontal_flip(p: float = 0.5) -> View:
    """Return a view: left and right exchanged with probability p."""
    _check_probability(p)

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        return _where(draws.host.bernoulli(p), images, lambda some, _: some.flip(3))

    return view


def rotation(degrees: float, *, interpolation: str = "bilinear") -> View:
    """Return a view: turned by an angle uniform in [-degrees, degrees]; see `rotate`."""

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        return rotate(images, draws.uniform(-degrees, degrees), interpolation=interpolation)

    return view


# ---- Colour and blur
def color_jitter(
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    *,
    p: float = 0.8,
    order: str = "random",
) -> View:
    """Return a view: with probability p, brightness, contrast, saturation and hue of each image.

    Args:
        brightness, contrast, saturation: factors are uniform in [max(0, 1 - x), 1 + x].
        hue: turns are uniform in [-hue, hue], at most 0.5.
        p: probability that an image is changed.
        order: "random" permutes the four per image, as SimCLR's and torchvision's code do;
            "fixed" applies them as listed.
    """
    _check_probability(p)
    _check_range("hue", (0, hue), 0, 0.5)
    if order not in ("random", "fixed"):
        raise ValueError(f"order is random or fixed, got {order!r}")
    strengths = (brightness, contrast, saturation)
    _check_range("strength", (min(strengths), max(strengths)), 0, math.inf)
    low = torch.tensor([*(max(0.0, 1 - strength) for strength in strengths), -hue])
    high = torch.tensor([*(1 + strength for strength in strengths), hue])

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        host = draws.host
        factors = low + (high - low) * host.uniform(shape=(4,))
        if order == "random":
            orders = host.permutations(4)
        else:
            orders = torch.arange(4).expand(len(draws), 4)
        return compiling.jitter(images, factors, orders, applied=host.bernoulli(p))

    return view


def grayscale(p: float = 0.2) -> View:
    """Return a view: colour dropped with probability p."""
    _check_probability(p)

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        chosen = draws.host.bernoulli(p)
        return images if draws.gray else _where(chosen, images, lambda some, _: to_grayscale(some))

    return view


def solarize(p: float = 0.2, *, threshold: float = 0.5) -> View:
    """Return a view: values from the threshold upwards inverted, with probability p."""
    _check_probability(p)

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        chosen = draws.host.bernoulli(p)
        return _where(chosen, images, lambda some, _: invert_above(some, threshold))

    return view


def gaussian_blur(
    sigma: tuple[float, float] = (0.1, 2.0), *, p: float = 0.5, kernel_size: int | None = None
) -> View:
    """Return a view: with probability p, blurred by a Gaussian with sigma uniform in a range.

    Args:
        sigma: range of the standard deviation in pixels.
        p: probability that an image is blurred.
        kernel_size: odd; None: a tenth of the image's side, made odd, at least 3 (SimCLR).
    """
    _check_probability(p)
    _check_range("sigma", sigma, 1e-3, math.inf)
    if kernel_size is not None and kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is odd, got {kernel_size}")

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        size = kernel_size or max(3, min(images.shape[2:]) // 10 // 2 * 2 + 1)
        sigmas = draws.host.uniform(*sigma)
        chosen = draws.host.bernoulli(p)
        return _where(chosen, images, lambda some, rows: blur(some, sigmas[rows], size))

    return view
