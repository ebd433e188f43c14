"""A folder of image files, `imagefolder:PATH`: one folder per split, in it one per class.

Splits: train/ with test/ or val/. Next to test/, val/ is the data set's own validation split; alone
it is what is reported, as ImageNet's is, and validation is set aside from train/.
Pixels: the shorter side is resized to the image size with Pillow's antialiased BILINEAR filter,
then the centre is cropped. One channel if every training image is gray, else three; the other
splits follow train. Alpha is dropped, orientation tags are not applied.
Cache: `imagefolder/<key>/images.npy`; the key hashes class names, relative paths, file bytes and
the image size of one split. A cached array whose bytes changed is decoded again.
Names that start with a dot are not part of the data set.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench.data.arrays import complete_folder, read_meta, write_meta
from bench.data.source import Part, Request, Source
from bench.errors import UserError

FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
GRAY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa")
READABLE = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no decoder beyond these runs
PNG_END = b"IEND\xaeB`\x82"
BITS_PER_SAMPLE = 258  # TIFF tag
# What Pillow raises on damaged files, over all of its decoders.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(Exception):
    """A file that cannot be used, and why."""


@dataclass(frozen=True)
class Entry:
    """One file: where it lies, its path below the root, its class (None: outside all)."""

    path: Path
    relative: str
    label: int | None

    def __str__(self) -> str:
        return self.relative if self.relative.isprintable() else repr(self.relative)


def read(request: Request) -> Source:
    """Return the folder's splits; train is decoded now, the others when they are read.

    Raises:
        UserError: a split or class is missing, or (with on_bad_image "error") a file is no image
            that can be used; the message names it.
    """
    root = Path(request.path).expanduser()
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is no folder; expected one with train/ and test/ or val/")
    present = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in present or len(present) < 2:
        raise UserError(
            f"{str(root)!r} has {', '.join(f'{name}/' for name in present) or 'no split'}; "
            "expected train/ with test/ or val/, each with one folder per class"
        )
    classes = _class_folders(root / "train")
    entries = _entries(root, "train", classes)
    for label, name in enumerate(classes):
        if not any(entry.label == label for entry in entries):
            raise UserError(f"{str(root / 'train' / name)!r} has no files; add images or remove it")
    gray = not any(_is_colour(entry) for entry in entries)
    train = _decoded(request, classes, entries, gray)

    def reader(folder: str) -> Callable[[], Part]:
        return lambda: _decoded(request, classes, _entries(root, folder, classes), gray)

    splits = {"train": lambda: train, "test": reader("test" if "test" in present else "val")}
    if "val" in present and "test" in present:
        splits["val"] = reader("val")
    return Source(
        splits=splits,
        class_names=tuple(classes),
        licence="unknown",
        source=f"local folder {root.resolve().name!r}",
    )


def _class_folders(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _entries(root: Path, split: str, classes: list[str]) -> list[Entry]:
    """Return all files below a split's folder, sorted by relative path."""
    unseen = sorted(set(_class_folders(root / split)) - set(classes))
    if unseen:
        raise UserError(
            f"{str(root / split / unseen[0])!r} is a class that train/ lacks; "
            "use the same class folders in all splits"
        )
    labels = {name: label for label, name in enumerate(classes)}
    entries = []
    for top in sorted((root / split).iterdir()):
        # A class folder may be a link; links to folders further below are not followed.
        below = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in below:
            parts = path.relative_to(root).parts
            if path.is_dir() or any(part.startswith(".") for part in parts):
                continue
            label = labels[parts[1]] if len(parts) > 2 else None
            entries.append(Entry(path, "/".join(parts), label))
    if not entries:
        raise UserError(f"{str(root / split)!r} has no files; add images in one folder per class")
    return entries


def _is_colour(entry: Entry) -> bool:
    """Return whether the file is an image in colour; what cannot be opened is none."""
    if entry.label is None or entry.path.suffix.lower() not in FORMATS or not entry.path.is_file():
        return False
    try:
        with Image.open(entry.path, formats=READABLE) as image:
            return image.mode in COLOUR_MODES
    except DECODER_ERRORS:
        return False


def _decoded(request: Request, classes: list[str], entries: list[Entry], gray: bool) -> Part:
    """Return one split from the cache, decoding it into the cache first if it is not there."""
    key = hashlib.sha256(repr((request.image_size, gray, classes, len(entries))).encode())
    for entry in entries:
        key.update(entry.relative.encode("utf-8", "surrogateescape") + b"\0")
        try:
            key.update(hashlib.sha256(_content(entry)).digest())
        except BadImage as reason:
            key.update(str(reason).encode() + b"\0")
    shape = (1 if gray else 3, request.image_size, request.image_size)

    def write(folder: Path) -> None:
        rows = np.lib.format.open_memmap(
            folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(entries), *shape)
        )
        labels, skipped = [], []
        for entry in entries:
            try:
                rows[len(labels)] = _pixels(entry, request.image_size, gray)
            except BadImage as reason:
                if request.on_bad_image == "error":
                    raise _refusal(request, f"{entry}: {reason}") from reason
                skipped.append(f"{entry}: {reason}")
            else:
                labels.append(entry.label)
        if not labels:
            raise UserError(f"{request.path!r} has no image that can be used; first {skipped[0]}")
        if skipped:
            np.save(folder / "kept.npy", rows[: len(labels)])
            (folder / "kept.npy").replace(folder / "images.npy")
        else:
            rows.flush()
        np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
        write_meta(folder, {"skipped": skipped, "sha256": _arrays_sha256(folder)})

    folder = request.cache_dir / "imagefolder" / key.hexdigest()
    complete_folder(folder, _is_intact, write)
    skipped = tuple((read_meta(folder) or {})["skipped"])
    if skipped and request.on_bad_image == "error":
        raise _refusal(request, skipped[0])
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    return Part(images, np.load(folder / "labels.npy", allow_pickle=False), skipped)


def _refusal(request: Request, line: str) -> UserError:
    return UserError(
        f"bad image in {request.path!r}, {line}; repair or remove it, or leave such files out with "
        "--on-bad-image skip"
    )


def _is_intact(folder: Path) -> bool:
    """Return whether the cached arrays are those that were written, byte for byte."""
    meta = read_meta(folder)
    try:
        return meta is not None and meta.get("sha256") == _arrays_sha256(folder)
    except OSError:
        return False


def _arrays_sha256(folder: Path) -> str:
    sha256 = hashlib.sha256()
    for name in ("images.npy", "labels.npy"):
        with (folder / name).open("rb") as file:
            sha256.update(hashlib.file_digest(file, "sha256").digest())
    return sha256.hexdigest()


def _content(entry: Entry) -> bytes:
    """Return the file's bytes, or raise BadImage."""
    if not entry.path.is_file():  # opening a pipe would wait for its other end
        raise BadImage("a broken link or no regular file")
    try:
        return entry.path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error


def _pixels(entry: Entry, size: int, gray: bool) -> np.ndarray:
    """Return one file as uint8 (1 or 3, size, size), or raise BadImage."""
    if entry.label is None:
        raise BadImage("not in a class folder")
    expected = FORMATS.get(entry.path.suffix.lower())
    if expected is None:
        raise BadImage(f"no image extension, expected one of {' '.join(FORMATS)}")
    content = _content(entry)
    if not content:
        raise BadImage("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=READABLE) as image:
            _refuse(image, content, expected)
            image.load()
            image = image.convert("L" if gray else "RGB")
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
            pixels = np.asarray(image)
    except DECODER_ERRORS as error:
        # Pillow names the buffer by its address; cut it off, or the reason would vary.
        reason = " ".join(str(error).split()).partition(" <_io.")[0]
        if not reason or not reason.isprintable():
            reason = type(error).__name__
        raise BadImage(f"broken or truncated ({reason})") from error
    return pixels[None] if gray else pixels.transpose(2, 0, 1)


def _refuse(image: Image.Image, content: bytes, expected: str) -> None:
    """Raise BadImage for a picture that Pillow can read and this data set must not hold."""
    # Phones write MPO, a JPEG with a second picture behind it: the first is the photograph.
    met = "JPEG" if image.format == "MPO" else image.format
    if met != expected:
        raise BadImage(f"wrongly named, its content is {met}")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise BadImage(f"animated, {image.n_frames} frames")
    if image.mode == "CMYK":
        raise BadImage("CMYK colours, expected gray or RGB")
    bits = _bits(image, content)
    if bits > 8:
        raise BadImage(f"{bits} bits per channel, expected 8")
    if image.mode not in (*GRAY_MODES, *COLOUR_MODES):
        raise BadImage(f"mode {image.mode}, expected gray or RGB")
    if met == "PNG":
        with Image.open(io.BytesIO(content), formats=("PNG",)) as again:
            again.verify()  # the checksums of all chunks, which decoding does not look at
        if PNG_END not in content:
            raise BadImage("truncated")


def _bits(image: Image.Image, content: bytes) -> int:
    """Return bits per channel as the file stores them: Pillow reduces 16-bit colour silently."""
    if image.format == "PNG":
        return content[24]  # IHDR: length, type, width, height, then the depth
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    if image.format == "PPM" and content[:2] in (b"P2", b"P3", b"P5", b"P6"):
        words = re.sub(rb"#[^\n]*", b"", content[:4096]).split(maxsplit=4)
        return int(words[3]).bit_length()  # the largest value
    return {"I": 32, "F": 32}.get(image.mode, 16 if image.mode.startswith("I;") else 8)
