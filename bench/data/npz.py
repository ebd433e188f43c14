"""Images and labels of one NumPy archive, `npz:PATH`.

Arrays: x_train, y_train, x_test, y_test; optional x_val, y_val, x_unlabeled, class_names.
Images: uint8 (N, H, W), (N, H, W, 1 | 3) or (N, 1 | 3, H, W). Labels: integers from 0, (N,).
Nothing is unpickled. The members of a split are decompressed when that split is read.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from bench.data.source import MAX_CLASSES, Part, Request, Source
from bench.errors import UserError

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("x_val", "y_val", "x_unlabeled", "class_names")
# What numpy and zipfile raise on a member that is damaged, pickled, encrypted or absurdly large.
MEMBER_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    RuntimeError,
    OverflowError,
    SyntaxError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)


def read(request: Request) -> Source:
    """Return the archive's splits.

    Raises:
        UserError: the file is missing or no archive, a key is missing or half of a pair, or the
            training labels or class names are malformed; the other splits raise when read.
    """
    path = Path(request.path).expanduser()
    keys = _keys(path)
    missing = [key for key in REQUIRED if key not in keys]
    if missing:
        known = [key for key in (*REQUIRED, *OPTIONAL) if key in keys]
        raise UserError(
            f"{str(path)!r} has no {', '.join(missing)}; it needs {', '.join(REQUIRED)} "
            f"and has {', '.join(known) if known else 'none of them'}"
        )
    if ("x_val" in keys) != ("y_val" in keys):
        raise UserError(f"{str(path)!r} has only one of x_val and y_val; store both or neither")

    splits = {
        "train": lambda: _labelled(path, "train"),
        "test": lambda: _labelled(path, "test"),
    }
    if "x_val" in keys:
        splits["val"] = lambda: _labelled(path, "val")
    if "x_unlabeled" in keys:
        splits["unlabeled"] = lambda: Part(_images(path, "x_unlabeled"), None)
    return Source(
        splits=splits,
        class_names=_class_names(path, "class_names" in keys),
        licence="unknown",
        source=f"local file {path.name!r}",
        places=(path,),
    )


def _keys(path: Path) -> set[str]:
    if not path.is_file():
        met = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{str(path)!r}: {met}; expected an .npz archive, as np.savez writes it")
    try:
        with path.open("rb", buffering=0) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except MEMBER_ERRORS as error:
        raise UserError(
            f"{str(path)!r} is no .npz archive ({_line(error)}); write it with np.savez"
        ) from error
    return {name.removesuffix(".npy") for name in names if name.endswith(".npy")}


def _array(path: Path, key: str) -> np.ndarray:
    try:
        # Unbuffered: a block read ahead would leave parts of other splits in freed memory.
        with path.open("rb", buffering=0) as file, np.load(file, allow_pickle=False) as archive:
            array = archive[key]
    except MEMBER_ERRORS as error:
        raise UserError(
            f"{key} of {str(path)!r} cannot be read ({_line(error)}); "
            "store a plain array: uint8 images, integer labels, text class names"
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{key} of {str(path)!r} is not a NumPy array; write it with np.savez")
    return array


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _images(path: Path, key: str) -> np.ndarray:
    """Return uint8 (N, C, H, W) from any of the accepted shapes."""
    images = _array(path, key)
    where = f"{key} of {str(path)!r}"
    if images.dtype != np.uint8:
        raise UserError(f"{where} is {images.dtype}; store pixels 0..255 as uint8")
    expected = "(N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
    if 0 in images.shape:
        raise UserError(f"{where} is empty, shape {images.shape}; expected {expected}")
    if images.ndim == 3:
        return images[:, None]
    first = images.ndim == 4 and images.shape[1] in (1, 3)
    last = images.ndim == 4 and images.shape[3] in (1, 3)
    if first and last:
        raise UserError(
            f"{where} has the ambiguous shape {images.shape}: channels may come second or last; "
            "store images larger than 3 pixels a side"
        )
    if first:
        return images
    if last:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise UserError(f"{where} has shape {images.shape}; expected {expected}")


def _labels(path: Path, key: str) -> np.ndarray:
    """Return int64 (N,), each label in 0..65535."""
    labels = _array(path, key)
    where = f"{key} of {str(path)!r}"
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{where} is {labels.dtype} of shape {labels.shape}; expected integers of shape (N,)"
        )
    if len(labels) == 0:
        raise UserError(f"{where} is empty; expected one label per image")
    if labels.min() < 0:
        raise UserError(f"{where} has the negative label {labels.min()}; number classes from 0")
    if labels.max() >= MAX_CLASSES:
        raise UserError(
            f"{where} has the label {labels.max()}; number classes 0..C-1, C <= {MAX_CLASSES}"
        )
    return labels.astype(np.int64)


def _labelled(path: Path, split: str) -> Part:
    images, labels = _images(path, f"x_{split}"), _labels(path, f"y_{split}")
    if len(images) != len(labels):
        raise UserError(
            f"x_{split} of {str(path)!r} has {len(images)} images but y_{split} has "
            f"{len(labels)} labels; store one label per image"
        )
    return Part(images, labels)


def _class_names(path: Path, stored: bool) -> tuple[str, ...]:
    """Return the archive's class names, or the numbers up to the largest training label."""
    largest = int(_labels(path, "y_train").max())
    if not stored:
        return tuple(str(label) for label in range(largest + 1))
    names = _array(path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UserError(
            f"class_names of {str(path)!r} is {names.dtype} of shape {names.shape}; "
            "expected one text per class, np.array(['cat', 'dog'])"
        )
    if len(names) <= largest:
        raise UserError(
            f"class_names of {str(path)!r} has {len(names)} names but y_train has the label "
            f"{largest}; store one name per class"
        )
    return tuple(str(name) for name in names)
