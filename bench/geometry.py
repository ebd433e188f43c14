"""Geometry of images without chance: crops, turns and blurs, with one parameter per image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the CPU on the device, on CUDA without waiting: from pinned memory, since a
    copy from any other first waits for what the card has to do."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _resample_rows(images: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return (B, C, h, W), each row a weighted sum of K rows of the same image.

    A resampling matrix per image has K entries a row that are not zero, so it is kept sparse:
    index int64 (B or 1, h, K) names the rows, weights (B, 1 or h, K) weighs them. At 64 px the
    sparse product takes a tenth of the dense one's time.
    """
    batch, channels, height, width = images.shape
    planes = torch.arange(batch * channels, device=images.device).view(batch, channels, 1, 1)
    index = to_device(index, images.device).unsqueeze(1) + planes * height
    weights = to_device(weights.to(images.dtype), images.device)
    weights = weights.unsqueeze(1).expand_as(index)
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
    return _resample(images, _triangle(top, box_height, height), _triangle(left, box_width, width))


def crop(images: Tensor, corners: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Cut out of each image the box of `size` whose top left pixel is its row of corners (B, 2)."""
    height, width = (size, size) if isinstance(size, int) else size
    windows = images.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, rows, columns, h, w)
    top, left = to_device(corners, images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


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
        return index.unsqueeze(0), weights

    height, width = images.shape[2:]
    return _resample(images, axis(height), axis(width))
