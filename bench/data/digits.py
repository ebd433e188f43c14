"""The handwritten digits of scikit-learn: 1,797 real 8x8 images, smoke-test size.

Source:  UCI, Optical Recognition of Handwritten Digits, its test half, as scikit-learn ships it.
Split:   the last 500 rows are the test split; their writers are not among the first 1,297.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench.data.source import Part, Request, Source
from bench.errors import UserError

TEST_ROWS = 500


def read(request: Request) -> Source:
    """Return the digits, one channel of 8x8 pixels; 0..16 of the file becomes 0..255."""
    # The package's file alone: importing scikit-learn takes 1.5 s, and nothing else here needs it.
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise UserError("the data set digits is a file of scikit-learn, which is not installed")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(path, delimiter=",", dtype=np.int64)  # (1797, 64 pixels and the label)
    images = (rows[:, :-1] * 255 + 8) // 16  # rounded to the nearest
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, -1].copy()
    return Source(
        splits={
            "train": lambda: Part(images[:-TEST_ROWS], labels[:-TEST_ROWS]),
            "test": lambda: Part(images[-TEST_ROWS:], labels[-TEST_ROWS:]),
        },
        class_names=tuple(str(digit) for digit in range(10)),
        licence="CC BY 4.0",
        source="https://archive.ics.uci.edu/dataset/80",
        places=(path,),
    )
