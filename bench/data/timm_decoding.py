"""The process that reads one split through timm and writes it as arrays.

`python -m bench.data.timm_decoding JSON`, started by `bench.data.timm_sets`: into the folder it
writes images.npy, labels.npy and found.json, and to standard output a JSON object per line, what is
said or why it was refused. Standard output is for nothing else: what libraries print goes to
standard error.
"""

from __future__ import annotations

import json
import operator
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.confine import die_with_parent
from bench.data.decode import DECODER_ERRORS, square
from bench.data.progress import Progress

CHUNK = 1024  # images held in memory


def main(text: str) -> int:
    """Decode what the JSON asks for; return 0, or 1 when it was refused."""
    asked = json.loads(text)
    die_with_parent(signal.SIGTERM, os.getppid())
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**line: str) -> None:
        told.write(json.dumps(line) + "\n")
        told.flush()

    reason = attempt(asked, lambda line: tell(said=line))
    if reason:
        tell(refused=reason)
    return 1 if reason else 0


def attempt(asked: dict[str, Any], say: Callable[[str], None]) -> str:
    """Decode, and return why it could not be done, or ""."""
    try:
        decode(asked, say)
    except Exception as error:  # timm's readers raise whatever their libraries do
        return f"{type(error).__name__}: {error}"
    return ""


def decode(asked: dict[str, Any], say: Callable[[str], None]) -> None:
    """Write the split's arrays into `asked["folder"]`.

    Raises:
        ValueError: an image cannot be decoded, a label is no class, or there is no image.
    """
    dataset = _open(asked)
    folder, size, gray = Path(asked["folder"]), asked["image_size"], asked["gray"]
    channels = 1 if gray else 3
    labels: list[int] = []
    skipped: list[str] = []
    alike = gray is None
    total = 0 if _is_stream(dataset) else len(dataset)
    progress = Progress(say, f"decoding {asked['name']}, {asked['split']}", total, "images")
    with (folder / "images.raw").open("wb") as raw:
        for number, image, label in _samples(dataset):
            progress.advance()
            try:
                if isinstance(image, Exception):
                    raise image
                pixels = square(image, size, gray=bool(gray))
            except DECODER_ERRORS as error:
                reason = f"image {number}: {' '.join(str(error).split()) or type(error).__name__}"
                if not asked["skip"]:
                    raise ValueError(reason) from error
                skipped.append(reason)
                continue
            labels.append(_class_number(label, number))
            alike = alike and bool((pixels[0] == pixels[1:]).all())
            raw.write(np.ascontiguousarray(pixels).tobytes())
    if not labels:
        raise ValueError("there is no image that can be used")
    shape = (len(labels), channels, size, size)
    stored = np.memmap(folder / "images.raw", np.uint8, "r", shape=shape)
    shape = (len(labels), 1 if alike else channels, size, size)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", dtype=np.uint8, shape=shape)
    for first in range(0, len(labels), CHUNK):
        images[first : first + CHUNK] = stored[first : first + CHUNK, : shape[1]]
    images.flush()
    (folder / "images.raw").unlink()
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    found = {"count": len(labels), "classes": _classes(dataset), "skipped": skipped}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def _open(asked: dict[str, Any]) -> Any:
    from timm.data import create_dataset

    Path(asked["root"]).mkdir(parents=True, exist_ok=True)
    prefix = asked["name"].partition("/")[0]
    options = {key: asked[key] for key in ("input_key", "target_key") if asked[key]}
    if prefix in ("torch", "tfds"):
        options["download"] = True
    return create_dataset(asked["name"], root=asked["root"], split=asked["split"], **options)


def _samples(dataset: Any) -> Iterator[tuple[int, Any, Any]]:
    """Yield number, image and label; for an image that cannot be had, what was raised."""
    if _is_stream(dataset):
        for number, (image, label) in enumerate(dataset):
            yield number, image, label
        return
    # timm's own data set shows the next image in place of one that is broken; its reader does not.
    reader = getattr(dataset, "reader", None)
    for number in range(len(dataset)):
        try:
            image, label = (dataset if reader is None else reader)[number]
            if reader is not None:
                image = Image.open(image)
        except DECODER_ERRORS as error:
            yield number, error, 0
        else:
            yield number, image, label


def _class_number(label: Any, number: int) -> int:
    """Return an image's label, or raise ValueError if it numbers no class."""
    try:
        found = -1 if isinstance(label, bool) else operator.index(label)
    except TypeError:
        found = -1
    if found < 0:
        raise ValueError(f"image {number} has the label {label!r}; expected the number of a class")
    return found


def _is_stream(dataset: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(dataset, IterableDataset)


def _classes(dataset: Any) -> list[str]:
    """Return the classes' names in the order of the labels, or nothing where none are known."""
    names = getattr(dataset, "classes", None)
    if names:
        return [name if isinstance(name, str) else name[0] for name in names]
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return [str(name) for name in sorted(numbers, key=numbers.get)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
