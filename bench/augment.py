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
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    invert_above,
    jitter,
    to_grayscale,
)

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


@dataclass(frozen=True)
class Draws:
    """Random numbers per image: drawn for the global batch, of which this process keeps its rows.

    Processes that hold generators in the same state so draw what a single process would.

    Attributes:
        generator: a CPU generator; every draw advances it by the global batch.
        total: images in the global batch.
        rows: this process's images in it; `len(draws)` counts them.
        device: where the draws are returned.
        gray: every image's channels are equal. Views then work on one plane, skip what only
            changes colour, and draw the same numbers nevertheless.
    """

    generator: torch.Generator
    total: int
    rows: slice
    device: torch.device | str = field(default="cpu")
    gray: bool = False

    @classmethod
    def of(cls, images: Tensor, seed: int | torch.Generator, *, gray: bool = False) -> Draws:
        """Return draws for all of `images` in one process."""
        if isinstance(seed, int):
            seed = torch.Generator().manual_seed(seed)
        return cls(seed, len(images), slice(0, len(images)), images.device, gray)

    def __len__(self) -> int:
        return len(range(*self.rows.indices(self.total)))

    @property
    def host(self) -> Draws:
        """The same draws, returned on the CPU: for what decides sizes, without synchronising."""
        return replace(self, device="cpu")

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (B, *shape) in [low, high)."""
        values = torch.rand(self.total, *shape, generator=self.generator)
        return self._local(values.mul_(high - low).add_(low))

    def normal(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (B, *shape) of mean 0 and standard deviation 1."""
        return self._local(torch.randn(self.total, *shape, generator=self.generator))

    def integers(self, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Return int64 (B, *shape) in low, ..., high - 1."""
        return self._local(torch.randint(low, high, (self.total, *shape), generator=self.generator))

    def bernoulli(self, p: float) -> Tensor:
        """Return bool (B,), true with probability p."""
        return self._local(torch.rand(self.total, generator=self.generator) < p)

    def permutations(self, n: int) -> Tensor:
        """Return int64 (B, n), each row a permutation of 0, ..., n - 1."""
        keys = torch.rand(self.total, n, generator=self.generator)
        return self._local(keys.argsort(dim=1, stable=True))

    def _local(self, values: Tensor) -> Tensor:
        return values[self.rows].to(self.device, non_blocking=True)


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
    index = rows.to(images.device, non_blocking=True)
    return images.index_copy(0, index, change(images.index_select(0, index), rows))


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"a probability lies in [0, 1], got p={p}")


def _check_range(name: str, values: tuple[float, float], low: float, high: float) -> None:
    if not low <= values[0] <= values[1] <= high:
        raise ValueError(f"{name} is (smallest, largest) within [{low}, {high}], got {values}")


# ---- Crops
def _resample_rows(images: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return (B, C, h, W), each row a weighted sum of K rows of the same image.

    A resampling matrix per image has K entries a row that are not zero, so it is kept sparse:
    index int64 (B, h, K) names the rows, weights (B, h, K) weighs them. At 64 px the sparse
    product takes a tenth of the dense one's time.
    """
    batch, channels, height, width = images.shape
    planes = torch.arange(batch * channels, device=images.device).view(batch, channels, 1, 1)
    index = index.to(images.device, non_blocking=True).unsqueeze(1) + planes * height
    weights = weights.to(images).unsqueeze(1).expand_as(index)
    resampled = F.embedding_bag(
        index.flatten(0, 2),
        images.reshape(-1, width),
        per_sample_weights=weights.flatten(0, 2),
        mode="sum",
    )
    return resampled.view(batch, channels, -1, width)


def _resample(
    images: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> Tensor:
    """Resample both axes by (index, weights) each, columns first as PIL does."""
    images = _resample_rows(images.transpose(2, 3), *columns).transpose(2, 3)
    # Weights sum to 1 within rounding, which must not lift a white pixel above 1.
    return _resample_rows(images, *rows).clamp_(0, 1)


def _triangle(starts: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return index and weights (B, size, K) that resize [start, start + length) to `size` pixels.

    The filter is PIL's BILINEAR: a triangle over the output's grid, widened where that is coarser
    than the input's (antialiasing), cut at the box and normalised.
    """
    starts, lengths = starts.view(-1, 1, 1), lengths.view(-1, 1, 1)
    scale = lengths.double() / size
    support = scale.clamp_min(1)
    centers = starts + (torch.arange(size).view(1, -1, 1) + 0.5) * scale  # (B, size, 1)
    taps = math.ceil(2 * float(support.max()))
    index = (centers - support + 0.5).floor().long() + torch.arange(taps)  # (B, size, K)
    weights = (1 - (index + 0.5 - centers).abs() / support).clamp_min(0)
    nearest = index.clamp(starts, starts + lengths - 1)
    weights = weights * (nearest == index)
    return nearest, weights / weights.sum(2, keepdim=True)


def crop_resize(images: Tensor, boxes: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Cut a box out of each image and resize it, antialiased bilinear as PIL's `crop` and `resize`.

    Args:
        images: (B, C, H, W).
        boxes: int64 (B, 4): top, left, height, width in pixels, inside the image. On CUDA, best
            left on the CPU.
        size: side of the square output, or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    top, left, box_height, box_width = boxes.cpu().unbind(1)
    return _resample(
        images, _triangle(top, box_height, height), _triangle(left, box_width, width)
    )


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
    """Return a view: a box of random area and aspect, resized to `size` (None: to the input's).

    Args:
        size: side of the square output in pixels.
        scale: range of the box's area as a share of the image's.
        ratio: range of the box's width / height.
    """
    _check_range("scale", scale, 0, 1)
    _check_range("ratio", ratio, 1e-3, 1e3)

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[2:]
        boxes = sample_boxes(draws, height, width, scale=scale, ratio=ratio)
        return crop_resize(images, boxes, (height, width) if size is None else size)

    return view


def crop(images: Tensor, corners: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Cut out of each image the box of `size` whose top left pixel is its row of corners (B, 2)."""
    height, width = (size, size) if isinstance(size, int) else size
    windows = images.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, places, places, h, w): a view
    top, left = corners.to(images.device, non_blocking=True).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


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
    """Return a view: zeros around the image, then a uniform crop of the image's size."""

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        corners = draws.integers(0, 2 * padding + 1, (2,))
        return crop(F.pad(images, [padding] * 4), corners, tuple(images.shape[2:]))

    return view


# ---- Flips and turns
def horizontal_flip(p: float = 0.5) -> View:
    """Return a view: left and right exchanged with probability p."""
    _check_probability(p)

    @_planewise
    def view(images: Tensor, draws: Draws) -> Tensor:
        return _where(draws.host.bernoulli(p), images, lambda some, _: some.flip(3))

    return view


def rotate90(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each square image counter-clockwise by its number of quarter turns, int (B,)."""
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"rotate90 turns square images, got {tuple(images.shape[2:])}")
    turns = turns.to(images.device).view(-1, 1, 1, 1)
    half = torch.where(turns & 2 != 0, images.flip((2, 3)), images)
    return torch.where(turns & 1 != 0, half.rot90(1, (2, 3)), half)


def rotate(images: Tensor, degrees: Tensor, *, interpolation: str = "bilinear") -> Tensor:
    """Turn each image counter-clockwise about its centre by its angle, (B,), in degrees.

    The size stays; what comes from outside is 0. `interpolation` is bilinear or nearest. Equal to
    torchvision's `rotate` with its default `fill`.
    """
    height, width = images.shape[2:]
    angles = degrees.to(images).deg2rad()
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # Output to input, in affine_grid's coordinates, where both sides run from -1 to 1.
    x = torch.stack([cos, -sin * (height / width), zero], dim=1)
    y = torch.stack([sin * (width / height), cos, zero], dim=1)
    grid = F.affine_grid(torch.stack([x, y], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=interpolation, align_corners=False).clamp_(0, 1)


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
        return jitter(images, factors, orders, applied=host.bernoulli(p))

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


def blur(images: Tensor, sigmas: Tensor, kernel_size: int) -> Tensor:
    """Blur each image by a Gaussian of its own sigma, (B,), in pixels; borders are reflected.

    `kernel_size` is odd, and smaller than twice the image's sides.
    """
    radius = kernel_size // 2
    offsets = torch.arange(-radius, radius + 1)
    exponents = -0.5 * (offsets / sigmas.cpu().double().view(-1, 1)).square()
    weights = exponents.softmax(1).unsqueeze(1)  # (B, 1, K)

    def axis(side: int) -> tuple[Tensor, Tensor]:
        index = (torch.arange(side).view(-1, 1) + offsets).abs()  # reflected at the first pixel
        index = side - 1 - (side - 1 - index).abs()  # and at the last
        return index.expand(len(images), -1, -1), weights.expand(-1, side, -1)

    height, width = images.shape[2:]
    return _resample(images, axis(height), axis(width))


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
