"""The handwritten digits of scikit-learn: 1,797 real 8x8 images, smoke-test size.

Source:  UCI, Optical Recognition of Handwritten Digits, its test half, as scikit-learn ships it.
Split:   the last 500 rows are the test split; their writers are not among the first 1,297.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.data.source import Part, Request, Source

TEST_ROWS = 500


def read(request: Request) -> Source:
    """Return the digits, one channel of 8x8 pixels; 0..16 of the file becomes 0..255."""
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    images = (digits.images.astype(np.int64) * 255 + 8) // 16  # rounded to the nearest
    images = images.astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    labels = digits.target.astype(np.int64)
    return Source(
        splits={
            "train": lambda: Part(images[:-TEST_ROWS], labels[:-TEST_ROWS]),
            "test": lambda: Part(images[-TEST_ROWS:], labels[-TEST_ROWS:]),
        },
        class_names=tuple(str(digit) for digit in range(10)),
        licence="CC BY 4.0",
        source="https://archive.ics.uci.edu/dataset/80",
        places=(Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz",),
    )
