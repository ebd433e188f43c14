"""Near duplicates: test images whose difference hash is close to that of a pretraining image.

Hash:    dHash (N. Krawetz, "Kind of Like That", 2013): the gray image is averaged to 8 rows of 9
         pixels; each of the 64 bits says whether a pixel is brighter than its right neighbour.
         Brightness, contrast, slight noise and blur move few bits.
Count:   exact, over all pairs: the Hamming distance of two hashes of +-1 is (64 - inner product)/2,
         so a matrix product in float32, which holds these whole numbers, gives every distance.

The hash sees 72 gray values only. Images that are small, plain or of one layout (digits, clothes on
black) come close by chance: the count is for the reader to judge, not a verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.data import resize

if TYPE_CHECKING:
    from bench.data import Dataset
    from bench.data.splits import Split

ROWS, COLUMNS = 8, 9
BITS = ROWS * (COLUMNS - 1)
DISTANCE = 4  # bits, at most, between near duplicates
LUMA = (299, 587, 114)  # thousandths of red, green and blue; ITU-R BT.601
READ_BYTES = 8 * 2**20  # of images turned into float64 at a time
PAIRS = 2**22  # inner products held at a time: 16 MiB


def near_duplicates(dataset: Dataset, split: Split) -> int:
    """Return how many test images are within `DISTANCE` bits of a pretraining image, copies too.

    The time grows with the number of pairs of different hashes: 54,000 x 10,000 take about two
    seconds of one core.

    Raises:
        ValueError: the data set was loaded without its test split.
    """
    if "test" not in dataset.images:
        raise ValueError(f"{dataset.name!r} was loaded with test=False; load it with test=True")
    parts = [difference_hashes(dataset.images["train"], split.train)]
    if "unlabeled" in dataset.images:
        parts.append(difference_hashes(dataset.images["unlabeled"]))
    return int(near(difference_hashes(dataset.images["test"]), np.concatenate(parts)).sum())


def difference_hashes(images: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Return the hashes, uint8 (N, 8), one byte per row of the small image.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3.
        rows: which of them; all by default.
    """
    rows = np.arange(len(images)) if rows is None else rows
    _, channels, height, width = images.shape
    shrink_rows = resize.weights(height, ROWS)  # (8, H)
    shrink_columns = np.ascontiguousarray(resize.weights(width, COLUMNS).T)  # (W, 9)
    chunk = max(1, READ_BYTES // (8 * height * width))
    hashes = np.empty((len(rows), ROWS), dtype=np.uint8)
    for first in range(0, len(rows), chunk):
        part = images[rows[first : first + chunk]]
        gray = (_luma(part) if channels == 3 else part[:, 0]).astype(np.float64)  # (n, H, W)
        small = shrink_rows @ (gray @ shrink_columns)  # (n, 8, 9) whole numbers below 2^53: exact
        brighter = small[:, :, :-1] > small[:, :, 1:]
        hashes[first : first + chunk] = np.packbits(brighter, axis=2)[:, :, 0]
    return hashes


def _luma(images: np.ndarray) -> np.ndarray:
    """Return the luma of uint8 (n, 3, H, W) as whole numbers, int32 (n, H, W)."""
    red, green, blue = (
        images[:, channel] * np.int32(weight) for channel, weight in enumerate(LUMA)
    )
    return (red + green + blue + 500) // 1000


def near(hashes: np.ndarray, others: np.ndarray, distance: int = DISTANCE) -> np.ndarray:
    """Return whether each hash is within `distance` bits of one of the others, bool (N,).

    Args:
        hashes, others: uint8 (N, 8) and (M, 8).
    """
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    left, right = _signs(unique), _signs(np.unique(others, axis=0))
    found = np.zeros(len(left), dtype=bool)
    chunk = max(1, PAIRS // max(len(right), 1))
    for first in range(0, len(left), chunk):
        product = left[first : first + chunk] @ right.T
        found[first : first + chunk] = (product >= BITS - 2 * distance).any(1)
    return found[inverse.reshape(-1)]  # numpy 2.0 alone gives it two axes


def _signs(hashes: np.ndarray) -> np.ndarray:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
