"""Sets of images of which everybody knows how good they are, to be measured beside generators.

Another half of the training images and the test images say what is the best a generator can reach
at this N; one class only, blur, noise and JPEG say what a number is worth; the reference itself
says what copying looks like.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np

BLUR = 1 / 32  # standard deviation, as a share of the side: 1 pixel at 32
NOISE = 32.0  # standard deviation, of 255 gray values
JPEG_QUALITY = 25  # of 100, chroma halved as Pillow does by default


class Known(NamedTuple):
    """Images uint8 (count, C, H, W) and the class of each, int (count,)."""

    images: np.ndarray
    labels: np.ndarray


def sets(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    count: int,
    seed: int,
) -> tuple[np.ndarray, dict[str, Known]]:
    """Return which rows of train are the reference, and the sets to measure against them.

    Reference and `train_half` share no image; blur, noise and JPEG are done to `train_half`. The
    sets, `count` images each: train_half, test, one_class (the first class of which half as many
    images are not in the reference, their mirror images after themselves; left out where there is
    none), copied (the reference itself), blur, noise, jpeg.

    Args:
        train: uint8 (N, C, H, W), C 1 or 3.
        train_labels: int (N,).
        test: uint8 (M, C, H, W), C, H and W as in train.
        test_labels: int (M,).
        count: images per set; at most N / 2 and M.
        seed: of what is drawn.

    Raises:
        ValueError: not uint8 images of one shape, or too few of them.
    """
    for name, images in (("train", train), ("test", test)):
        _refuse_other_than_images(name, images)
    lengths = (len(train), len(test)) == (len(train_labels), len(test_labels))
    if train.shape[1:] != test.shape[1:] or not lengths:
        shapes = f"{train.shape}, {train_labels.shape}, {test.shape}, {test_labels.shape}"
        raise ValueError(f"expected train and test of one shape with their labels, got {shapes}")
    if not 1 <= count <= min(len(train) // 2, len(test)):
        raise ValueError(f"{count} images a set: train has {len(train)}, test {len(test)}")
    generator = np.random.Generator(np.random.PCG64(seed))
    order = generator.permutation(len(train))
    rows, others = order[:count], order[count:]
    labels, sizes = np.unique(train_labels[others], return_counts=True)
    enough = 2 * sizes >= count  # the same class for every seed, unless its number is at the edge
    half, named = train[others[:count]], train_labels[others[:count]]
    tested = generator.permutation(len(test))[:count]
    found = {
        "train_half": Known(half, named),
        "test": Known(test[tested], test_labels[tested]),
    }
    if enough.any():
        only = others[train_labels[others] == labels[enough][0]]
        both = np.concatenate([train[only], train[only][:, :, :, ::-1]])[:count]
        found["one_class"] = Known(both, np.full(count, labels[enough][0]))
    return rows, found | {
        "copied": Known(train[rows], train_labels[rows]),
        "blur": Known(blurred(half), named),
        "noise": Known(noisy(half, generator), named),
        "jpeg": Known(compressed(half), named),
    }


def blurred(images: np.ndarray, share: float = BLUR) -> np.ndarray:
    """Return uint8 images (N, C, H, W) under a Gaussian of `share` of the shorter side.

    Its kernel reaches to three standard deviations; the edge's pixels repeat beyond the edge.
    """
    deviation = share * min(images.shape[2:])
    reach = max(1, math.ceil(3 * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    values = images.astype(np.float64)
    for axis in (2, 3):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = np.pad(values, padding, mode="edge")
        length = images.shape[axis]
        parts = (padded.take(range(i, i + length), axis=axis) for i in range(2 * reach + 1))
        values = sum(weight * part for weight, part in zip(kernel, parts, strict=True))
    return np.rint(values).astype(np.uint8)


def noisy(
    images: np.ndarray, generator: np.random.Generator, deviation: float = NOISE
) -> np.ndarray:
    """Return uint8 images (N, C, H, W) with Gaussian noise, one number for all channels of a pixel,
    cut to [0, 255]: gray images that are shown as three equal channels stay gray."""
    count, _, height, width = images.shape
    noise = deviation * generator.standard_normal((count, 1, height, width), dtype=np.float32)
    return np.rint(images + noise).clip(0, 255).astype(np.uint8)


def compressed(images: np.ndarray, quality: int = JPEG_QUALITY) -> np.ndarray:
    """Return uint8 images (N, C, H, W) after JPEG, written and read in memory by Pillow."""
    from PIL import Image

    result = np.empty_like(images)
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
        read = np.asarray(Image.open(file))
        result[index] = read if len(image) == 1 else read.transpose(2, 0, 1)
    return result


def _refuse_other_than_images(name: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        met = f"{images.dtype} {images.shape}"
        raise ValueError(f"expected uint8 images (N, 1 or 3, H, W) for {name}, got {met}")
