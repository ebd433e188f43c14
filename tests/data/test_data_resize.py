"""Resizing: Pillow's picture within one level, and the same bytes whatever the chunk."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from bench.data.resize import FRACTION_BITS, square, weights


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pillow_square(image: np.ndarray, size: int) -> np.ndarray:
    """The centre square of (C, H, W), channel by channel through Pillow."""
    height, width = image.shape[1:]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.stack(
        [
            np.asarray(
                Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR, box=box)
            )
            for channel in image
        ]
    )


SHAPES = [
    ((28, 28), 32),
    ((8, 8), 32),
    ((32, 32), 8),
    ((96, 96), 31),
    ((20, 33), 16),
    ((47, 12), 24),
    ((1, 5), 4),
    ((64, 64), 1),
]


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_square_is_within_one_level_of_pillow(shape: tuple[int, int], size: int) -> None:
    images = noise(5, 3, *shape)

    resized = square(images, size)

    expected = np.stack([pillow_square(image, size) for image in images])
    assert resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(("shape", "size"), [((6, 6), 4), ((5, 9), 7), ((3, 3), 5)])
def test_square_is_the_exact_double_sum(shape: tuple[int, int], size: int) -> None:
    image = noise(1, 1, *shape)
    height, width = shape
    side = min(shape)
    rows = weights(height, size, start=(height - side) / 2, length=side).astype(int).tolist()
    columns = weights(width, size, start=(width - side) / 2, length=side).astype(int).tolist()

    resized = square(image, size)[0, 0]

    pixels = image[0, 0].tolist()
    for y in range(size):
        for x in range(size):
            total = sum(
                rows[y][j] * columns[x][i] * pixels[j][i]
                for j in range(height)
                for i in range(width)
            )
            assert resized[y, x] == (total + 2 ** (2 * FRACTION_BITS - 1)) >> (2 * FRACTION_BITS)


@pytest.mark.parametrize(("source", "target"), [(28, 32), (32, 28), (7, 3), (3, 50), (61, 24)])
def test_weights_are_the_triangle_filter(source: int, target: int) -> None:
    matrix = weights(source, target)

    assert (matrix.sum(axis=1) == 2**FRACTION_BITS).all()
    scale = Fraction(source, target)
    width = max(scale, Fraction(1))
    for i in range(target):
        centre = (i + Fraction(1, 2)) * scale
        row = [max(0, 1 - abs(j + Fraction(1, 2) - centre) / width) for j in range(source)]
        total = sum(row)
        exact = np.array([float(value / total) for value in row])
        # Each weight is rounded by half a unit at most; the largest takes up what is left over.
        assert np.abs(matrix[i] / 2**FRACTION_BITS - exact).max() <= source * 2.0**-FRACTION_BITS


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_chunk_does_not_change_a_byte(chunk: int) -> None:
    images = noise(10, 3, 28, 20)

    assert np.array_equal(square(images, 32, chunk=chunk), square(images, 32))


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_constant_images_stay_constant(level: int) -> None:
    images = np.full((2, 1, 13, 9), level, dtype=np.uint8)

    assert (square(images, 32) == level).all()


def test_images_of_the_right_size_are_untouched() -> None:
    images = noise(4, 1, 16, 16)

    assert np.array_equal(square(images, 16), images)


def test_the_centre_of_a_wide_image_is_kept() -> None:
    images = np.zeros((1, 1, 4, 12), dtype=np.uint8)
    images[..., 4:8] = 200

    assert (square(images, 4) == 200).all()
