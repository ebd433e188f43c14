"""Calibration sets: what is in them, and that the measures put them where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.metrics import calibration, frechet


def images(count: int, seed: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth uint8 images (N, C, 16, 16) of three classes, no two alike, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    y, x = np.mgrid[0:16, 0:16] / 16
    phase, slope = generator.random((2, count, channels, 1, 1))
    waves = np.sin(2 * np.pi * (1 + labels[:, None, None, None]) * x + 6 * phase) * (
        0.3 + slope * y
    )
    return (127.5 + 90 * waves).clip(0, 255).astype(np.uint8), labels


TRAIN, LABELS = images(900, 0)
TEST, TEST_LABELS = images(300, 1)


def drawn(**changes: object) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the reference and the sets' images; each image's class is checked to be its own."""
    asked = {"train": TRAIN, "train_labels": LABELS, "test": TEST, "test_labels": TEST_LABELS}
    asked |= {"count": 150, "seed": 0} | changes
    four = [asked.pop(key) for key in ("train", "train_labels", "test", "test_labels")]
    rows, found = calibration.sets(*four, **asked)
    known = {i.tobytes(): c for of in (four[:2], four[2:]) for i, c in zip(*of, strict=True)}
    for name in {"train_half", "test", "copied"} & set(found):
        assert [known[image.tobytes()] for image in found[name].images] == list(found[name].labels)
    for name in ("blur", "noise", "jpeg"):
        assert np.array_equal(found[name].labels, found["train_half"].labels)
    return four[0][rows], {name: of.images for name, of in found.items()}


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_every_set_holds_what_its_name_says() -> None:
    reference, sets = drawn()
    assert list(sets) == ["train_half", "test", "one_class", "copied", "blur", "noise", "jpeg"]
    for found in (reference, *sets.values()):
        assert (found.dtype, found.shape) == (np.uint8, (150, 3, 16, 16))
    assert rows(reference) < rows(TRAIN)
    assert len(rows(reference)) == 150
    assert rows(sets["train_half"]) < rows(TRAIN) - rows(reference)
    assert rows(sets["test"]) < rows(TEST)
    assert rows(sets["one_class"]) < rows(TRAIN[LABELS == 0]) - rows(reference)
    assert np.array_equal(sets["copied"], reference)
    for name in ("blur", "noise", "jpeg"):  # each image is changed, and still the same
        change = sets[name].astype(float) - sets["train_half"]
        assert (np.abs(change).reshape(150, -1).max(1) > 0).all()
        assert np.sqrt((change**2).mean()) < 40


def test_they_depend_on_the_seed_alone() -> None:
    first, again, other = drawn(), drawn(), drawn(seed=1)
    assert np.array_equal(first[0], again[0])
    assert all(np.array_equal(first[1][name], again[1][name]) for name in first[1])
    assert not np.array_equal(first[0], other[0])


def test_one_class_is_the_same_class_for_every_seed() -> None:
    """Not the largest of what the draw leaves, which is another one every time."""
    generator = np.random.Generator(np.random.PCG64(1))
    labels = generator.permutation(np.repeat(np.arange(10), 100))
    train = np.zeros((1000, 1, 4, 4), np.uint8) + labels[:, None, None, None].astype(np.uint8)
    classes = set()
    for seed in range(6):
        _, found = calibration.sets(train, labels, train, labels, count=100, seed=seed)
        (only,) = np.unique(found["one_class"].images)
        assert set(found["one_class"].labels) == {only}
        classes.add(int(only))
    assert classes == {0}


def test_the_distance_puts_them_in_order() -> None:
    reference, sets = drawn()

    def features(images: np.ndarray) -> torch.Tensor:
        """Means of 16 blocks, of gray values and of what is between neighbours, (N, 32)."""
        gray = torch.from_numpy(images).float().mean(1)
        edges = gray.diff(dim=2, append=gray[:, :, -1:]).abs()
        blocks = torch.stack([gray, edges], 1).unflatten(2, (4, 4)).unflatten(4, (4, 4))
        return blocks.mean((3, 5)).flatten(1)

    found = {
        name: frechet.distance(features(images), features(reference))
        for name, images in sets.items()
    }
    assert found["copied"] < 1e-6 * found["test"]
    for near in ("train_half", "test"):
        assert all(found[near] < found[far] for far in ("one_class", "blur", "noise"))


def test_blur_is_the_gaussian_and_keeps_flat_images() -> None:
    image = np.zeros((1, 1, 33, 33), dtype=np.uint8)
    image[0, 0, 16, 16] = 255
    around = calibration.blurred(image, share=2 / 33)[0, 0]
    y, x = np.mgrid[-16:17, -16:17]
    exact = 255 * np.exp(-(x**2 + y**2) / 8) / (8 * np.pi)
    assert np.abs(around - exact).max() <= 0.6  # rounding to whole gray values
    flat = np.full((2, 3, 8, 12), 200, dtype=np.uint8)
    assert np.array_equal(calibration.blurred(flat), flat)


def test_noise_has_its_deviation_and_keeps_gray_gray() -> None:
    """49,152 numbers: 1 % is three standard deviations of their spread; the draw is fixed."""
    gray = np.full((192, 3, 16, 16), 128, dtype=np.uint8)
    found = calibration.noisy(gray, np.random.default_rng(0), 20.0).astype(float)
    assert found.std() == pytest.approx(20, rel=0.02)
    assert (found[:, 0] == found[:, 1]).all()
    assert calibration.noisy(gray, np.random.default_rng(0), 500.0).min() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_loses_more_at_less_quality(channels: int) -> None:
    pixels, _ = images(10, 2, channels)
    loss = [
        np.square(calibration.compressed(pixels, quality).astype(float) - pixels).mean()
        for quality in (95, 50, 5)
    ]
    assert 0 < loss[0] < loss[1] < loss[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": TRAIN.astype(np.float32)}, "for train, got float32"),
        ({"test": TEST[:, :2]}, r"for test, got uint8 \(300, 2, 16, 16\)"),
        ({"test": TEST[:, :, 1:]}, "of one shape"),
        ({"train_labels": LABELS[1:]}, "of one shape"),
        ({"test_labels": LABELS}, "of one shape"),
        ({"count": 301}, "301 images a set: train has 900, test 300"),
    ],
)
def test_what_does_not_suffice_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        drawn(**changes)


def test_without_a_class_of_enough_images_the_other_sets_remain() -> None:
    _, found = drawn(count=300, train_labels=np.arange(900) % 9)
    assert list(found) == ["train_half", "test", "copied", "blur", "noise", "jpeg"]
