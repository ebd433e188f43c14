"""Sheets of images as PNG files: sample grids, nearest training images, a method's own pictures.

Nothing on them is chosen: a grid shows the first samples of the run's first seed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.files import write_atomically

if TYPE_CHECKING:
    from bench.results import Result

FOLDER = "sheets"  # of a run's folder, and of the published boards
ROWS = COLUMNS = 8
NEIGHBOURS = 12  # samples on the sheet of nearest training images
GAP = 2  # white pixels between tiles
MOST_PIXELS = 4096  # a side of a sheet
OWN = ("samples", "neighbours", "reconstructed")  # sheets of the harness, which no plugin makes


class BadSheet(ValueError):
    """What should be a sheet has another shape, or too many pixels."""


def sheet(images: np.ndarray) -> bytes:
    """Return a PNG of uint8 images (rows, columns, C, H, W), C of 1 or 3, on white.

    Raises:
        BadSheet: another shape or type, or a side of more than 4,096 pixels.
    """
    from PIL import Image

    if images.ndim != 5 or images.shape[2] not in (1, 3) or images.dtype != np.uint8:
        raise BadSheet(
            f"expected uint8 (rows, columns, 3, H, W), got {images.dtype} {images.shape}"
        )
    rows, columns, _, height, width = images.shape
    size = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    if 0 in images.shape or max(size) > MOST_PIXELS:
        raise BadSheet(f"a sheet of {size[1]} x {size[0]} pixels; expected at most {MOST_PIXELS}")
    page = np.full((*size, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            page[top : top + height, left : left + width] = images[row, column].transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def grid(images: np.ndarray) -> bytes:
    """Return the first 64 of uint8 images (N, C, H, W) as a sheet; whole rows of fewer."""
    count = min(len(images), ROWS * COLUMNS)
    columns = min(count, COLUMNS)
    rows = count // columns if columns else 0
    return sheet(images[: rows * columns].reshape(rows, columns, *images.shape[1:]))


def neighbours(samples: np.ndarray, nearest: np.ndarray) -> bytes:
    """Return samples (N, C, H, W) above their nearest training images, or images above their
    reconstructions: the first twelve."""
    return sheet(np.stack([samples[:NEIGHBOURS], nearest[:NEIGHBOURS]]))


def write_pictures(folder: Path, pictures: Any) -> list[str]:
    """Write what `picture` returned, {name: (rows, columns, 3, H, W) in [-1, 1]}; return a line for
    each that is no picture."""
    from bench.sampling import to_uint8

    if not isinstance(pictures, Mapping):
        return [f"picture returned {type(pictures).__name__}, expected a dict of tensors"]
    refused = []
    for name, images in pictures.items():
        try:
            if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
                raise BadSheet("its name is no identifier")
            if name in OWN:
                raise BadSheet("the harness makes the sheet of that name")
            if not bool(images.isfinite().all()):
                raise BadSheet("it is not finite")
            write(folder, name, sheet(to_uint8(images)))
        except (BadSheet, AttributeError, RuntimeError) as error:
            refused.append(f"picture {str(name)[:40]!r} is left out: {error}")
    return refused


def write(folder: Path, name: str, png: bytes) -> None:
    """Write a sheet into the `sheets/` of a run's folder."""
    (folder / FOLDER).mkdir(exist_ok=True)
    write_atomically(folder / FOLDER / f"{name}.png", png)


def planned(runs_dir: Path, results: Iterable[Result]) -> dict[str, dict[str, Path]]:
    """Return the sheets of each method's first seed: track -> published file name -> its source.

    Of samples, those of the protocols in the result: a claim may have drawn others from the same
    run. A run whose folder is gone has none, and leaves what was published before.
    """
    first: dict[tuple[str, str], Result] = {}
    for result in results:
        if result.status == "done" and not result.row.variant:
            key = (result.track, result.method)
            if key not in first or result.seed < first[key].seed:
                first[key] = result
    found: dict[str, dict[str, Path]] = {}
    for (track, method), result in sorted(first.items()):
        for file in sorted((runs_dir / result.run_id / FOLDER).glob("*.png")):
            name, _, protocol = file.stem.partition(".")
            if not protocol or protocol in result.evaluations:
                found.setdefault(track, {})[f"{method}-{name}.png"] = file
    return found


def copy(boards: Path, planned: Mapping[str, Mapping[str, Path]]) -> list[Path]:
    """Copy planned sheets beside the boards; return the files written."""
    written = []
    for track, files in planned.items():
        (boards / FOLDER / track).mkdir(parents=True, exist_ok=True)
        for name, source in files.items():
            write_atomically(boards / FOLDER / track / name, source.read_bytes())
            written.append(boards / FOLDER / track / name)
    return written


def published(boards: Path) -> dict[str, tuple[str, ...]]:
    """Return the published sheets' file names by track, sorted."""
    found: dict[str, list[str]] = {}
    for file in sorted((boards / FOLDER).glob("*/*.png")):
        found.setdefault(file.parent.name, []).append(file.name)
    return {track: tuple(names) for track, names in found.items()}
