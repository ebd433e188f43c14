"""Near duplicates by difference hash: planted ones are found, and the count is exact."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bench import data
from bench.data import neighbours

NOISE = np.random.default_rng(7)


def waves(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Draw smooth random colour images, uint8 (N, 3, size, size)."""
    draw = np.random.default_rng(seed)
    rough = ndimage.gaussian_filter(draw.normal(size=(count, 3, size, size)), (0, 1, 2, 2))
    return np.clip(128 + 60 * rough / rough.std(), 0, 255).astype(np.uint8)


def made(train: np.ndarray, test: np.ndarray) -> data.Dataset:
    labels = {"train": np.arange(len(train)) % 2, "test": np.arange(len(test)) % 2}
    return data.Dataset(
        "made", {"train": train, "test": test}, labels, ("a", "b"), "", "", "ab" * 32
    )


def brighter(image: np.ndarray) -> np.ndarray:
    return np.minimum(image.astype(int) + 2, 255).astype(np.uint8)


def noisy(image: np.ndarray) -> np.ndarray:
    """Add what JPEG at a good quality does: errors of a few levels in each pixel."""
    return np.clip(image + NOISE.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)


def blurred(image: np.ndarray) -> np.ndarray:
    """Blur by one pixel: each becomes the mean of itself and its neighbours, weights 1, 2, 1."""
    for axis in (1, 2):
        image = ndimage.convolve1d(image.astype(float), [0.25, 0.5, 0.25], axis)
    return image.round().astype(np.uint8)


@pytest.mark.parametrize("change", [None, brighter, noisy, blurred])
def test_planted_duplicates_are_found(change) -> None:
    train, test = waves(2000, 0), waves(1000, 1)
    dataset = made(train, test.copy())
    split = data.split(dataset, 0)
    exact, near = data.duplicates(dataset, split), data.near_duplicates(dataset, split)

    # One per cent of the test images become pictures that pretraining sees.
    rows = np.arange(7, 1000, 100)
    for row in rows:
        image = train[split.train[row]]
        dataset.images["test"][row] = image if change is None else change(image)

    assert near == 0  # unrelated images: none of two million pairs is close
    assert data.duplicates(dataset, split) - exact == (len(rows) if change is None else 0)
    assert data.near_duplicates(dataset, split) == len(rows)


def test_what_is_set_aside_for_validation_does_not_count() -> None:
    train, test = waves(100, 0), waves(20, 1)
    dataset = made(train, test)
    split = data.split(dataset, 0)
    dataset.images["test"][0] = train[split.val[0]]
    dataset.images["test"][1] = train[split.train[0]]

    assert data.near_duplicates(dataset, split) == 1


def test_unlabeled_images_count() -> None:
    dataset = made(waves(100, 0), waves(20, 1))
    unlabeled = waves(10, 2)
    unlabeled[3] = noisy(dataset.images["test"][5])
    dataset = replace(dataset, images=dataset.images | {"unlabeled": unlabeled})

    assert data.near_duplicates(dataset, data.split(dataset, 0)) == 1


def whole(hashes: np.ndarray) -> list[int]:
    return [int.from_bytes(row.tobytes(), "big") for row in hashes]


def test_the_count_is_that_of_all_pairs() -> None:
    draw = np.random.default_rng(3)
    others = draw.integers(0, 256, (300, 8), dtype=np.uint8)
    hashes = others[draw.integers(0, 300, 400)]
    for row, flips in enumerate(draw.integers(0, 9, 400)):  # 0 to 8 of 64 bits
        bits = np.unpackbits(hashes[row])
        bits[draw.permutation(64)[:flips]] ^= 1
        hashes[row] = np.packbits(bits)

    for distance in (0, 4, 7):
        slow = [min((a ^ b).bit_count() for b in whole(others)) <= distance for a in whole(hashes)]
        assert neighbours.near(hashes, others, distance).tolist() == slow


def test_hashes_compare_averages_as_pillow_makes_them() -> None:
    images = waves(200, 4, size=48)

    hashes = neighbours.difference_hashes(images)

    differing = []
    for image, hashed in zip(images, hashes, strict=True):
        gray = Image.fromarray(image.transpose(1, 2, 0)).convert("L")
        small = np.asarray(gray.resize((9, 8), Image.Resampling.BILINEAR)).astype(int)
        bits = np.packbits(small[:, :-1] > small[:, 1:])
        differing.append(int(np.unpackbits(bits ^ hashed).sum()))
    assert np.mean(differing) < 1  # Pillow rounds its averages, so that neighbours tie


def test_gray_images_hash_as_their_colour_copies() -> None:
    gray = waves(20, 5)[:, :1]

    colour = neighbours.difference_hashes(np.repeat(gray, 3, axis=1))

    assert np.array_equal(neighbours.difference_hashes(gray), colour)


def test_a_whole_data_set_takes_seconds() -> None:
    draw = np.random.default_rng(6)
    others = draw.integers(0, 256, (54_000, 8), dtype=np.uint8)
    hashes = draw.integers(0, 256, (10_000, 8), dtype=np.uint8)
    begun = time.process_time()

    neighbours.near(hashes, others)

    assert time.process_time() - begun < 20  # 2.5 s of one quiet core; this is for a slow loop


def test_near_duplicates_need_the_test_split() -> None:
    dataset = made(waves(20, 0), waves(4, 1))
    closed = replace(dataset, images={"train": dataset.images["train"]})

    with pytest.raises(ValueError, match="test=True"):
        data.near_duplicates(closed, data.split(closed, 0))
