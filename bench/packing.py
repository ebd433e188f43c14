"""Values per test image as text: class indices, truths, counts of draws."""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np

from bench.errors import UserError


def pack_predictions(classes: np.ndarray) -> str:
    """Return class indices (N,) in [0, 65535] as base64 of zlib of uint16 little-endian.

    Raises:
        ValueError: an index does not fit, or is not whole.
    """
    values = np.asarray(classes)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"predictions are whole numbers (N,), got {values.dtype} {values.shape}")
    if len(values) and not (values.min() >= 0 and values.max() <= 0xFFFF):
        raise ValueError(f"class indices lie in 0..65535, got {values.min()}..{values.max()}")
    return _pack(values.astype("<u2").tobytes())


def unpack_predictions(text: str, count: int) -> np.ndarray:
    """Return the class indices of `count` images, uint16 (N,).

    Raises:
        UserError: the text is damaged or of another length.
    """
    return np.frombuffer(_unpack(text, 2 * count), dtype="<u2").astype(np.uint16)


def pack_bits(correct: np.ndarray) -> str:
    """Return truths (N,) as base64 of zlib of numpy's packed bits."""
    values = np.asarray(correct)
    if values.ndim != 1 or values.dtype != bool:
        raise ValueError(f"expected bool (N,), got {values.dtype} {values.shape}")
    return _pack(np.packbits(values).tobytes())


def unpack_bits(text: str, count: int) -> np.ndarray:
    """Return the truths of `count` images, bool (N,).

    Raises:
        UserError: the text is damaged or of another length.
    """
    packed = np.frombuffer(_unpack(text, (count + 7) // 8), dtype=np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def pack_counts(counts: np.ndarray) -> str:
    """Return whole numbers (N,) in [0, 255] as base64 of zlib of bytes.

    Raises:
        ValueError: a number does not fit, or is not whole.
    """
    values = np.asarray(counts)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"counts are whole numbers (N,), got {values.dtype} {values.shape}")
    if len(values) and not (values.min() >= 0 and values.max() <= 0xFF):
        raise ValueError(f"counts lie in 0..255, got {values.min()}..{values.max()}")
    return _pack(values.astype(np.uint8).tobytes())


def unpack_counts(text: str, count: int) -> np.ndarray:
    """Return the counts of `count` images, uint8 (N,).

    Raises:
        UserError: the text is damaged or of another length.
    """
    return np.frombuffer(_unpack(text, count), dtype=np.uint8)


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def _unpack(text: str, size: int) -> bytes:
    """Return exactly `size` bytes, inflating no more than that."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise UserError(f"packed values are damaged: {error}") from error
    if len(data) != size or not (inflate.eof or size == 0):
        raise UserError(f"packed values hold {len(data)} bytes or more, expected {size}")
    return data
