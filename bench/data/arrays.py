"""Folders of arrays that are complete or absent: the pretraining images, and decoded image files.

A folder is written beside its place and renamed into it, under a lock that the system releases when
its holder dies. Whoever comes second finds it complete and reuses it; a damaged one is replaced.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import UserError
from bench.identity import canonical_json

if TYPE_CHECKING:
    from bench.data import Dataset
    from bench.data.splits import Split

FIRST = 1000  # images that may stand for all
COPIED_BYTES = 64 * 2**20  # gathered in memory at a time


def materialise(dataset: Dataset, split: Split, folder: str | Path) -> Path:
    """Write what pretraining sees to `folder` and return it: no validation or test image.

    `images.npy` is uint8 (N, C, H, W), as stored: the training images without validation, then the
    unlabeled ones. `labels.npy` is int64 (N,), -1 where unlabeled. `meta.json` says num_images,
    num_labeled, num_classes, class_names, channels, image_size (stored), data_sha256, split_sha256,
    and mixed: whether the first labelled images are of all classes. Of unlabeled ones nobody knows.
    A complete folder of the same data and split is left as it is; anything else at this place is
    replaced. Where the images are all of one array on disk, `images.npy` is a link to it, no copy.

    Raises:
        UserError: the folder cannot be written.
    """
    train = dataset.stored("train")
    unlabeled = dataset.stored("unlabeled") if "unlabeled" in dataset.images else train[:0]
    count = len(split.train) + len(unlabeled)
    shape = (count, *train.shape[1:])
    meta = {
        "num_images": count,
        "num_labeled": len(split.train),
        "num_classes": len(dataset.class_names),
        "class_names": list(dataset.class_names),
        "channels": train.shape[1],
        "image_size": train.shape[-1],
        "data_sha256": dataset.sha256,
        "split_sha256": split.sha256,
        "mixed": _is_mixed(dataset.labels["train"][split.train]),
    }

    def is_complete(folder: Path) -> bool:
        return (
            read_meta(folder) == meta
            and _has_array(folder / "images.npy", shape, np.dtype(np.uint8))
            and _has_array(folder / "labels.npy", (count,), np.dtype(np.int64))
        )

    def write(folder: Path) -> None:
        labels = np.full(count, -1, dtype=np.int64)
        labels[: len(split.train)] = dataset.labels["train"][split.train]
        np.save(folder / "labels.npy", labels)
        write_meta(folder, meta)
        file = _file_of(train)
        if file is not None and count == len(split.train) == len(train):
            (folder / "images.npy").symlink_to(file)  # all of it, in its order
            return
        images = np.lib.format.open_memmap(
            folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape
        )
        rows = max(1, COPIED_BYTES // train[0].size)
        for first in range(0, len(split.train), rows):
            chosen = split.train[first : first + rows]
            images[first : first + len(chosen)] = train[chosen]
        for first in range(0, len(unlabeled), rows):
            part = unlabeled[first : first + rows]
            start = len(split.train) + first
            images[start : start + len(part)] = part
        images.flush()

    return complete_folder(Path(folder), is_complete, write)


def _is_mixed(labels: np.ndarray) -> bool:
    """Return whether the first thousand images are of all classes, as they are not in a folder
    sorted by class; or of as many as a thousand can be."""
    known = min(len(np.unique(labels)), FIRST // 2)
    return len(np.unique(labels[:FIRST])) >= known


def pretraining(
    folder: str | Path, uses_labels: bool
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Return what a method pretrains on: images, their labels if it `uses_labels`, and the meta.

    With labels these are the labelled images; without, the unlabeled ones where there are any, else
    the labelled ones without their labels. Nothing of the rest is opened.

    Raises:
        UserError: a file of the folder is missing or damaged.
    """
    meta = read_meta(Path(folder))
    if meta is None:
        raise UserError(f"{str(folder)!r} has no meta.json; remove the folder, it is written anew")
    images, labelled = load_array(folder), meta["num_labeled"]
    if uses_labels:
        return images[:labelled], load_array(folder, labels=True)[:labelled], meta
    return images[labelled if labelled < meta["num_images"] else 0 :], None, meta


def load_array(folder: str | Path, labels: bool = False) -> np.ndarray:
    """Return the images that `materialise` wrote, or their labels, mapped from disk and read-only.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(folder) / ("labels.npy" if labels else "images.npy")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{str(path)!r} cannot be opened ({error}); remove the folder, it is written anew"
        ) from error


def complete_folder(
    folder: Path, is_complete: Callable[[Path], bool], write: Callable[[Path], None]
) -> Path:
    """Return `folder` after `write` has filled it, unless `is_complete(folder)` held already.

    `write` gets an empty folder, which is synced to disk and renamed when it returns. Two callers
    of one folder, threads or processes, never write at once.

    Raises:
        UserError: the place cannot be written. What `write` raises passes, and leaves nothing.
    """
    if is_complete(folder):
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    damaged = folder.with_name(f".{folder.name}.damaged")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_complete(folder):  # by whoever held the lock before
                return folder
            for left in (partial, damaged):  # by a writer that was killed
                _remove(left)
            partial.mkdir()
            try:
                write(partial)
                for path in (*partial.iterdir(), partial):
                    _sync(path)
                if os.path.lexists(folder):
                    folder.rename(damaged)
                partial.rename(folder)
                _sync(folder.parent)
            finally:
                for left in (partial, damaged):
                    _remove(left)
    except OSError as error:
        raise UserError(
            f"cannot write {str(folder)!r} ({error.strerror or error}); "
            "free some space or choose another folder"
        ) from error
    return folder


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return the folder's `meta.json`, or None where there is none that can be read."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write the folder's `meta.json`."""
    (folder / "meta.json").write_text(canonical_json(meta) + "\n", encoding="utf-8")


def _has_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Return whether the file is an array of this shape and type with all of its bytes."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == shape and array.dtype == dtype


def _file_of(array: np.ndarray) -> Path | None:
    """Return the .npy file that holds the array's bytes in their order and no others, if any."""
    if not isinstance(array, np.memmap) or not array.flags.c_contiguous:
        return None
    path = Path(array.filename).absolute()
    return path if _has_array(path, array.shape, array.dtype) else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
