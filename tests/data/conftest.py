"""Small real data sets that the tests write: archives, folders of images, IDX files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import Dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("BENCH_CACHE", str(cache))
    return cache


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """A well-formed archive: three classes, 8x8 colour, channels last."""
    draw = np.random.default_rng(0)
    return {
        "x_train": draw.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": draw.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(9) % 3,
    }


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[[dict[str, np.ndarray]], str]:
    """Write an archive and return its data set name."""

    def write(arrays: dict[str, np.ndarray], name: str = "images.npz") -> str:
        np.savez(tmp_path / name, **arrays)
        return f"npz:{tmp_path / name}"

    return write


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """Build a data set in memory: random 4x4 gray images with the labels that are given."""

    def make(
        labels: list[int], test: list[int] = (), val: list[int] | None = None, unlabeled: int = 0
    ) -> Dataset:
        draw = np.random.default_rng(1)

        def images(count: int) -> np.ndarray:
            return draw.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)

        splits = {"train": labels, "test": test} | ({} if val is None else {"val": val})
        drawn = {key: images(len(values)) for key, values in splits.items()}
        if unlabeled:
            drawn["unlabeled"] = images(unlabeled)
        return Dataset(
            name="made",
            images=drawn,
            labels={key: np.array(values, dtype=np.int64) for key, values in splits.items()},
            class_names=tuple(str(label) for label in range(max(labels) + 1)),
            licence="none",
            source="this test",
            sha256="ab" * 32,
        )

    return make


@pytest.fixture
def image_tree(tmp_path: Path) -> Path:
    """Write a folder with train/ and test/, classes cat and dog, colour PNG and JPEG files."""
    draw = np.random.default_rng(2)
    root = tmp_path / "animals"
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (12 + index, 20, 3), dtype=np.uint8)
                suffix = "png" if index % 2 else "jpg"
                Image.fromarray(pixels).save(folder / f"{index}.{suffix}")
    return root


@pytest.fixture
def write_idx() -> Callable[[Path, np.ndarray], None]:
    """Write a uint8 array in IDX format, gzipped if the name ends in .gz."""

    def write(path: Path, values: np.ndarray) -> None:
        head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        content = head + values.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return write


@pytest.fixture
def clothes() -> dict[str, np.ndarray]:
    """The arrays of a Fashion-MNIST of 512 images."""
    draw = np.random.default_rng(3)
    return {
        "train-images-idx3-ubyte": draw.integers(0, 256, (384, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(384) % 10,
        "t10k-images-idx3-ubyte": draw.integers(0, 256, (128, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(128) % 10,
    }


@pytest.fixture
def fashion_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clothes: dict, write_idx: Callable
) -> Path:
    """Write the 512 images as gzipped IDX files and let BENCH_FASHION_MNIST name their folder."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    for name, values in clothes.items():
        write_idx(folder / f"{name}.gz", values)
    monkeypatch.setenv("BENCH_FASHION_MNIST", str(folder))
    return folder
