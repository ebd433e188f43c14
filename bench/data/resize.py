"""Antialiased resizing of many images as two matrix products, the same bytes on every machine.

A resized image is R X S^T: R mixes rows, S columns. Their entries are Pillow's triangle filter
(BILINEAR; the filter widens by the scale when it shrinks), rounded to multiples of 2^-20. All
products and sums are then integers below 2^53, which float64 holds exactly: neither the order of
the additions, nor the BLAS, nor the chunk can change a bit.
"""

from __future__ import annotations

import numpy as np

FRACTION_BITS = 20  # of a weight; 8 bits of a pixel + 2 * 20 stay below float64's 53
CHUNK_BYTES = 8 * 2**20  # float64 intermediates held at a time


def weights(source: int, target: int, *, start: float = 0.0, length: float = 0.0) -> np.ndarray:
    """Return the resampling matrix, float64 (target, source), integers whose rows sum to 2^20.

    Args:
        source: pixels before.
        target: pixels after.
        start, length: the interval that is resampled, in source pixels; all of it by default.
            The filter may reach beyond the interval, not beyond the source, as in Pillow.
    """
    scale = (length or source) / target
    width = max(scale, 1.0)
    centres = start + (np.arange(target) + 0.5) * scale  # (target,)
    distances = np.abs(np.arange(source) + 0.5 - centres[:, None]) / width  # (target, source)
    triangle = np.maximum(0.0, 1.0 - distances)
    # A running sum has one order of additions on every machine; np.sum does not promise one.
    rounded = np.rint(triangle / triangle.cumsum(axis=1)[:, -1:] * 2**FRACTION_BITS)
    largest = rounded.argmax(axis=1)
    rounded[np.arange(target), largest] += 2**FRACTION_BITS - rounded.sum(axis=1)
    return rounded


def centre(images: np.ndarray, size: int) -> np.ndarray:
    """Return the central (N, C, size, size) of images at least as large: a view of their memory."""
    if images.shape[2:] == (size, size):
        return images
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]


def square(images: np.ndarray, size: int, *, chunk: int | None = None) -> np.ndarray:
    """Return uint8 (N, C, size, size): the shorter side resized to `size`, then the centre crop.

    Args:
        images: uint8 (N, C, H, W).
        size: side of the result in pixels.
        chunk: images at a time; by default what fits 8 MiB. It does not change the result.
    """
    count, channels, height, width = images.shape
    if (height, width) == (size, size):
        return images
    side = min(height, width)
    rows = weights(height, size, start=(height - side) / 2, length=side)  # (size, H)
    columns = weights(width, size, start=(width - side) / 2, length=side)  # (size, W)
    # Transposed copies make both products plain matrix times matrix: one large BLAS call each.
    columns_t = np.ascontiguousarray(columns.T)  # (W, size)
    rows_t = np.ascontiguousarray(rows.T)  # (H, size)
    if chunk is None:
        chunk = max(1, CHUNK_BYTES // (8 * channels * height * max(width, size)))
    resized = np.empty((count, channels, size, size), dtype=np.uint8)
    for first in range(0, count, chunk):
        part = images[first : first + chunk].astype(np.float64)  # (n, C, H, W)
        narrow = part.reshape(-1, width) @ columns_t  # (n C H, size)
        narrow = narrow.reshape(len(part), channels, height, size).swapaxes(2, 3)
        summed = narrow.reshape(-1, height) @ rows_t  # (n C size, size), columns first
        pixels = np.floor(summed * 2.0 ** (-2 * FRACTION_BITS) + 0.5)
        resized[first : first + chunk] = pixels.reshape(len(part), channels, size, size).swapaxes(
            2, 3
        )
    return resized
