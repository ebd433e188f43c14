"""Fashion-MNIST: 60,000 + 10,000 gray 28x28 images of clothes in ten classes.

Paper:   Xiao et al., 2017. https://arxiv.org/abs/1708.07747
Files:   the usual four IDX files, gzipped or not, from the folder that BENCH_FASHION_MNIST names,
         else from Debian's package dataset-fashion-mnist, else downloaded into the cache.
Reader:  our own, in numpy: torchvision's would run torch operations, and data is also read in
         processes that must fork later. A download uses torchvision's address, checksums and
         `download_url`, which run none.
Parts:   fashion-mnist-20k and fashion-mnist-10k are the first 20,000 and 10,000 training images,
         with the whole test split: for tracks that must be short on two cores.
         fashion-mnist-rest are the 40,000 training images that are in neither: for extractors of
         samples, which must know no reference image. The files' order is a random one, so the
         classes of a part are near their tenths, not at them.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np

from bench.data.source import Part, Request, Source
from bench.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read(request: Request, train_images: int | None = None, skipped: int = 0) -> Source:
    """Return the two splits, one channel of 28x28 pixels.

    Args:
        train_images: only that many training images, the first; all of them by default.
        skipped: leave out that many training images before them.

    Raises:
        UserError: the named folder lacks a file, a file is damaged or has fewer training images
            than were asked for, or the download failed.
    """
    folder = _folder(request.cache_dir)
    source = "https://github.com/zalandoresearch/fashion-mnist"
    if train_images is not None:
        which = f"training images {skipped:,} to {skipped + train_images:,}"
        which = which if skipped else f"its first {train_images:,} training images"
        source += f", {which} and all test images"
    return Source(
        splits={
            "train": lambda: _some(_part(folder, "train"), train_images, skipped, folder),
            "test": lambda: _part(folder, "test"),
        },
        class_names=CLASS_NAMES,
        licence="MIT",
        source=source,
        places=places(),
    )


def places() -> tuple[Path, ...]:
    """Return the folders that may hold the files, beside the cache."""
    named = os.environ.get("BENCH_FASHION_MNIST")
    return (DEBIAN, *([Path(named).expanduser()] if named else []))


def _some(part: Part, count: int | None, skipped: int, folder: Path) -> Part:
    if count is None:
        return part
    end = skipped + count
    if len(part.images) < end:
        raise UserError(
            f"the training files in {str(folder)!r} have {len(part.images)} images; expected at "
            f"least {end}; fetch the whole data set"
        )
    return Part(part.images[skipped:end], part.labels[skipped:end])


def _folder(cache_dir: Path) -> Path:
    named = os.environ.get("BENCH_FASHION_MNIST")
    if named:
        folder = Path(named).expanduser()
        absent = _absent(folder)
        if absent:
            raise UserError(
                f"BENCH_FASHION_MNIST={named!r} lacks {', '.join(absent)} (.gz or not); "
                "name a folder with the four IDX files, or unset it"
            )
        return folder
    if not _absent(DEBIAN):
        return DEBIAN
    folder = cache_dir / "fashion-mnist"
    if _absent(folder):
        _download(folder)
    return folder


def _absent(folder: Path) -> list[str]:
    names = [name for pair in FILES.values() for name in pair]
    return [name for name in names if _find(folder, name) is None]


def _find(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _download(folder: Path) -> None:
    """Fetch the four files beside the folder, then move each in: none is ever seen half-written."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    mirror = FashionMNIST.mirrors[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".fashion-mnist-", dir=folder.parent))
        try:
            for name, md5 in FashionMNIST.resources:
                download_url(f"{mirror}{name}", partial, filename=name, md5=md5)
                (partial / name).replace(folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a bad checksum Runtime
        raise UserError(
            f"cannot download fashion-mnist from {mirror} to {str(folder)!r} "
            f"({' '.join(str(error).split())}); install Debian's dataset-fashion-mnist, or put "
            "the four IDX files into a folder and set BENCH_FASHION_MNIST to it"
        ) from error


def paths(cache_dir: Path, split: str) -> list[Path]:
    """Return the two files of a split, images and labels, without opening them.

    Raises:
        UserError: the named folder lacks a file, or the download failed.
    """
    return _paths(_folder(cache_dir), split)


def read_split(cache_dir: Path, split: str) -> Part:
    """Return one split, for data sets that are made of it.

    Raises:
        UserError: as `paths`, or a file is damaged.
    """
    return _part(_folder(cache_dir), split)


def _paths(folder: Path, split: str) -> list[Path]:
    found = []
    for name in FILES[split]:
        path = _find(folder, name)
        if path is None:
            raise UserError(f"{str(folder / name)!r} (.gz or not) is gone; put it back")
        found.append(path)
    return found


def _part(folder: Path, split: str) -> Part:
    paths = _paths(folder, split)
    images, labels = read_idx(paths[0], axes=3), read_idx(paths[1], axes=1)
    if len(images) != len(labels):
        raise UserError(
            f"{str(paths[0])!r} has {len(images)} images but {paths[1].name!r} has "
            f"{len(labels)} labels; fetch both files again"
        )
    if len(labels) and labels.max() >= len(CLASS_NAMES):
        raise UserError(
            f"{str(paths[1])!r} has the label {labels.max()}; expected 0..{len(CLASS_NAMES) - 1}; "
            "fetch it again"
        )
    return Part(images[:, None], labels.astype(np.int64))


def read_idx(path: Path, *, axes: int) -> np.ndarray:
    """Return the uint8 array of an IDX file, plain or gzipped (by its name).

    The format: bytes 0, 0, 8 (uint8), number of axes; one big-endian uint32 per axis; the values.

    Raises:
        UserError: the file is damaged, or has another type or number of axes.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                content = file.read()
        else:
            content = path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}); fetch it again") from error
    header = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < header:
        raise UserError(
            f"{str(path)!r} starts with {content[:4].hex() or 'nothing'}; expected an IDX file of "
            f"uint8 with {axes} axes, 000008{axes:02x}; fetch it again"
        )
    shape = tuple(int(length) for length in np.frombuffer(content[4:header], dtype=">u4"))
    if len(content) - header != math.prod(shape):
        raise UserError(
            f"{str(path)!r} has {len(content) - header} values, its header says {shape}; "
            "fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
