"""One image file as square pixels, or why it cannot be used.

The shorter side is resized with Pillow's antialiased BILINEAR filter, then the centre is cropped.
Alpha is dropped, orientation tags are not applied.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
AT_A_TIME = 256  # items that threads work on before their results are taken


class BadImage(Exception):
    """A file that cannot be used, and why."""


def is_colour(path: Path) -> bool:
    """Return whether the file is an image in colour; what cannot be opened is none."""
    if path.suffix.lower() not in FORMATS or not path.is_file():
        return False
    try:
        with Image.open(path, formats=READABLE) as image:
            return image.mode in COLOUR_MODES
    except DECODER_ERRORS:
        return False


def pixels(
    content: bytes, suffix: str, size: int, *, gray: bool, strict: bool = True
) -> np.ndarray:
    """Return a file's content as uint8 (1 or 3, size, size).

    Args:
        suffix: of the file's name, which says the format.
        gray: whether one channel is wanted.
        strict: refuse CMYK colours and formats other than the name says. ImageNet has some of
            either, and its users decode them all the same.

    Raises:
        BadImage: it is no image that can be used.
    """
    expected = FORMATS.get(suffix.lower())
    if expected is None:
        raise BadImage(f"no image extension, expected one of {' '.join(FORMATS)}")
    if not content:
        raise BadImage("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=READABLE) as image:
            _refuse(image, content, expected if strict else None)
            image.load()
            return square(image, size, gray=gray)
    except DECODER_ERRORS as error:
        # Pillow names the buffer by its address; cut it off, or the reason would vary.
        reason = " ".join(str(error).split()).partition(" <_io.")[0]
        if not reason or not reason.isprintable():
            reason = type(error).__name__
        raise BadImage(f"broken or truncated ({reason})") from error


def square(image: Image.Image, size: int, *, gray: bool) -> np.ndarray:
    """Return an opened image as uint8 (1 or 3, size, size): the shorter side fits, then the centre.

    Args:
        image: of any mode that converts to gray or RGB.
    """
    image = image.convert("L" if gray else "RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    values = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return values[None] if gray else values.transpose(2, 0, 1)


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yield `function` of each item, in order; Pillow and hashlib run beside each other."""
    workers = len(os.sched_getaffinity(0))
    if workers == 1 or len(items) < 2 * workers:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(items), AT_A_TIME):
            yield from pool.map(function, items[first : first + AT_A_TIME])


def _refuse(image: Image.Image, content: bytes, expected: str | None) -> None:
    """Raise BadImage for a picture that Pillow can read and this data set must not hold."""
    # Phones write MPO, a JPEG with a second picture behind it: the first is the photograph.
    met = "JPEG" if image.format == "MPO" else image.format
    if expected is not None and met != expected:
        raise BadImage(f"wrongly named, its content is {met}")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise BadImage(f"animated, {image.n_frames} frames")
    if image.mode == "CMYK":
        if expected is None:
            return
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
