"""STL-10: 5,000 + 8,000 colour images of 96x96 pixels in ten classes, and 100,000 without labels.

Paper:   Coates, Ng, Lee, AISTATS 2011. https://cs.stanford.edu/~acoates/stl10/
Files:   of stl10_binary.tar.gz: uint8, planes red, green, blue, each column by column; labels from
         1. The unlabeled images are mapped from disk.
Folds:   the paper trains classifiers on ten folds of 1,000 of the training images. They are left
         aside: validation is set aside from the 5,000 as everywhere here, and probes see the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.data.archives import Archive, place
from bench.data.source import Part, Request, Source
from bench.errors import UserError

SIDE = 96
CLASSES = 10
PIXELS = 3 * SIDE * SIDE
STL10 = Archive(
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    folder="stl10_binary",
    files=(
        "class_names.txt",
        "train_X.bin",
        "train_y.bin",
        "test_X.bin",
        "test_y.bin",
        "unlabeled_X.bin",
    ),
    variable="BENCH_STL10",
)


def read(request: Request) -> Source:
    """Return train, test and unlabeled, three channels of 96x96 pixels.

    Raises:
        UserError: a file is missing or damaged, or the download failed.
    """
    folder = place(STL10, request)
    return Source(
        splits={
            "train": lambda: _labelled(folder, "train"),
            "test": lambda: _labelled(folder, "test"),
            "unlabeled": lambda: Part(_images(folder / "unlabeled_X.bin"), None),
        },
        class_names=_class_names(folder / "class_names.txt"),
        licence="none stated; images from ImageNet",
        source="https://cs.stanford.edu/~acoates/stl10/",
        places=(folder,),
    )


def _images(path: Path) -> np.ndarray:
    """Return uint8 (N, 3, 96, 96), mapped from the file."""
    size = path.stat().st_size
    if size == 0 or size % PIXELS:
        raise UserError(
            f"{str(path)!r} has {size} bytes; expected images of {PIXELS}; fetch it again"
        )
    columns = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE)
    return columns.transpose(0, 1, 3, 2)


def _labelled(folder: Path, split: str) -> Part:
    images = _images(folder / f"{split}_X.bin")
    path = folder / f"{split}_y.bin"
    labels = np.fromfile(path, dtype=np.uint8).astype(np.int64) - 1
    if len(labels) != len(images):
        raise UserError(
            f"{str(path)!r} has {len(labels)} labels for {len(images)} images of {split}_X.bin; "
            "fetch both files again"
        )
    if labels.min() < 0 or labels.max() >= CLASSES:
        wrong = labels[(labels < 0) | (labels >= CLASSES)][0] + 1
        raise UserError(
            f"{str(path)!r} has the label {wrong}; expected 1..{CLASSES}; fetch it again"
        )
    return Part(images, labels)


def _class_names(path: Path) -> tuple[str, ...]:
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(names) != CLASSES:
        raise UserError(
            f"{str(path)!r} names {len(names)} classes; expected {CLASSES}; fetch it again"
        )
    return names
