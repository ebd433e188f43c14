"""Which training images are set aside for validation, and which test images were seen in training.

Validation is where everything is chosen; the test split is read once, at the end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import UserError
from bench.identity import LIMIT_RULE, canonical_json

if TYPE_CHECKING:
    from bench.data import Dataset

RULE = "val/1"
DRAWS = 5  # seeds that differ by a multiple of this share a split


@dataclass(frozen=True)
class Split:
    """The index lists of one seed, int64, sorted.

    Attributes:
        train: rows of the training images that pretraining sees.
        val: rows of the validation images: of `train` unless `own`, then of the split `val`; none
            for a parity track.
        own: whether the data set brings its own validation split.
        sha256: over both index lists.
    """

    train: np.ndarray
    val: np.ndarray
    own: bool
    sha256: str


def split(dataset: Dataset, seed: int, *, parity: bool = False) -> Split:
    """Return the validation split of a seed: stratified 10 % of train, or the data set's own.

    With `parity` nothing is set aside: training has every image and validation none.

    Of each class round(count / 10) images, at least one where it has two. The choice depends on
    the data's sha256, the rule's name and seed mod 5 only: it takes the images with the smallest
    raw words of a PCG64 stream, which NumPy promises never to change.

    Raises:
        UserError: no class has two training images; or `parity` of a data set with a validation
            split of its own.
    """
    labels = dataset.labels["train"]
    if parity:
        if "val" in dataset.images:
            raise UserError(
                f"{dataset.name!r} brings its own validation split, and a parity track trains on "
                "all images; put its validation images into the training split"
            )
        return _hashed(np.arange(len(labels)), np.arange(0), False)
    if "val" in dataset.images:
        everything = np.arange(len(labels), dtype=np.int64)
        return _hashed(everything, np.arange(len(dataset.images["val"]), dtype=np.int64), True)
    address = canonical_json([dataset.sha256, RULE, seed % DRAWS])
    stream = np.random.PCG64(int.from_bytes(hashlib.sha256(address.encode()).digest(), "big"))
    words = stream.random_raw(len(labels))  # one 64-bit word per training image
    aside = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = max(round(len(rows) / 10), 1) if len(rows) > 1 else 0
        aside[rows[np.argsort(words[rows], kind="stable")[:count]]] = True
    if not aside.any():
        raise UserError(
            f"{dataset.name!r} has no class with two training images, so none can be set aside "
            "for validation; add images or a validation split"
        )
    return _hashed(np.flatnonzero(~aside), np.flatnonzero(aside), False)


def _hashed(train: np.ndarray, val: np.ndarray, own: bool) -> Split:
    head = canonical_json({"train": len(train), "val": len(val)})
    sha256 = hashlib.sha256(head.encode())
    for rows in (train, val):
        sha256.update(rows.astype("<i8").tobytes())
    return Split(train, val, own, sha256.hexdigest())


def some(num_images: int, count: int | None, sha256: str) -> np.ndarray:
    """Return `count` rows of `num_images`, int64, sorted; all of them if None or too many.

    Drawn without labels by the data's `sha256` alone, so that images stored class by class give
    images of all classes, and a smaller count gives rows among those of a larger one.
    """
    if count is None or count >= num_images:
        return np.arange(num_images)
    address = canonical_json([sha256, LIMIT_RULE])
    stream = np.random.PCG64(int.from_bytes(hashlib.sha256(address.encode()).digest(), "big"))
    return np.sort(np.argsort(stream.random_raw(num_images), kind="stable")[:count])


def duplicates(dataset: Dataset, split: Split) -> int:
    """Return how many test images occur, byte for byte, among the pretraining images.

    Raises:
        ValueError: the data set was loaded without its test split.
    """
    if "test" not in dataset.images:
        raise ValueError(f"{dataset.name!r} was loaded with test=False; load it with test=True")
    unseen = Counter(_fingerprint(image) for image in dataset.images["test"])
    found = 0
    for row in split.train:
        found += unseen.pop(_fingerprint(dataset.images["train"][row]), 0)
    for image in dataset.images.get("unlabeled", ()):
        found += unseen.pop(_fingerprint(image), 0)
    return found


def _fingerprint(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image)).digest()
