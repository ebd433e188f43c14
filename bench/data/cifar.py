"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32x32 pixels.

Paper:   Krizhevsky, 2009. https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
Files:   the archives' binary version, which needs no pickle: records of one label byte (CIFAR-100:
         two, coarse and fine) and 3,072 pixel bytes, planes red, green, blue, row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.data.archives import Archive, place
from bench.data.source import Part, Request, Source
from bench.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
SITE = "https://www.cs.toronto.edu/~kriz/"
BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10 = Archive(
    url=f"{SITE}cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    files=("batches.meta.txt", *BATCHES, "test_batch.bin"),
    variable="BENCH_CIFAR10",
)
CIFAR100 = Archive(
    url=f"{SITE}cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    files=("fine_label_names.txt", "train.bin", "test.bin"),
    variable="BENCH_CIFAR100",
)


def read_cifar10(request: Request) -> Source:
    """Return CIFAR-10's two splits, three channels of 32x32 pixels.

    Raises:
        UserError: a file is missing or damaged, or the download failed.
    """
    return _read(CIFAR10, request, BATCHES, ("test_batch.bin",), "batches.meta.txt", 10)


def read_cifar100(request: Request) -> Source:
    """Return CIFAR-100's two splits with the 100 fine labels.

    Raises:
        UserError: a file is missing or damaged, or the download failed.
    """
    names = "fine_label_names.txt"
    return _read(CIFAR100, request, ("train.bin",), ("test.bin",), names, 100)


def _read(
    archive: Archive,
    request: Request,
    train: tuple[str, ...],
    test: tuple[str, ...],
    names: str,
    classes: int,
) -> Source:
    folder = place(archive, request)

    def part(files: tuple[str, ...]) -> Part:
        parts = [_records(folder / file, classes) for file in files]
        images = np.concatenate([images for images, _ in parts])
        return Part(images, np.concatenate([labels for _, labels in parts]))

    return Source(
        splits={"train": lambda: part(train), "test": lambda: part(test)},
        class_names=_class_names(folder / names, classes),
        licence="none stated",
        source=f"{SITE}cifar.html",
        places=(folder,),
    )


def _records(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (N, 3, 32, 32), and labels, int64 (N,): the last label byte of each."""
    label_bytes = 1 if classes == 10 else 2
    length = label_bytes + PIXELS
    content = np.fromfile(path, dtype=np.uint8)
    if len(content) == 0 or len(content) % length:
        raise UserError(
            f"{str(path)!r} has {len(content)} bytes; expected records of {length}, as in the "
            "archive's binary version; fetch it again"
        )
    records = content.reshape(-1, length)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise UserError(
            f"{str(path)!r} has the label {labels.max()}; expected 0..{classes - 1}; fetch it again"
        )
    return records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE), labels


def _class_names(path: Path, classes: int) -> tuple[str, ...]:
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(names) != classes:
        raise UserError(
            f"{str(path)!r} names {len(names)} classes; expected {classes}; fetch it again"
        )
    return names
