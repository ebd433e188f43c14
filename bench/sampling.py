"""Images of a generator: drawn in chunks under addressed randomness, checked, kept as uint8.

The child draws them, after `pretrain`, for every protocol over samples that the run is judged by;
the worker reads them back. Sampling settings belong to the protocol, not to the run, so that one
training serves any number of them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench import evaluations
from bench.files import write_atomically
from bench.identity import stream
from bench.results import SAMPLES

if TYPE_CHECKING:
    from bench.evaluations import Protocol

CHUNK = 250  # images at a time: a sign of life between two of them
SLACK = 1e-3  # of rounding beyond [-1, 1]


class BadSamples(Exception):
    """What `generate` returned is not what was asked of it: the row is invalid."""


@dataclass(frozen=True)
class Samples:
    """What a generator drew for one protocol.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,) that were asked for, None if the method is not conditional.
        sampling: every sampling setting, as JSON.
    """

    images: np.ndarray
    labels: np.ndarray | None
    sampling: dict[str, Any]


def wanted(entries: Sequence[Mapping[str, Any]]) -> list[Protocol]:
    """Return the protocols over samples among a run's evaluations, {"name", "overrides"} each.

    Names that are no evaluation's are left to the judge, who says so.
    """
    known = [e for e in entries if e["name"] in evaluations.NAMES]
    found = [evaluations.protocol(e["name"], e["overrides"]) for e in known]
    return [protocol for protocol in found if protocol.needs == "samples"]


def file_name(protocol_hash: str) -> str:
    """Return the name of the file of a protocol's samples in a run's folder."""
    return f"{SAMPLES}{protocol_hash[:12]}.npy"


def balanced_labels(num_images: int, num_classes: int) -> Tensor:
    """Return int64 labels (num_images,), each class as often as the others, interleaved."""
    return torch.arange(num_images) % num_classes


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images in [-1, 1] as uint8, rounded."""
    scaled = ((images.float() + 1) * 127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).cpu().numpy()


def draw(
    generate: Callable[..., Any],
    num_images: int,
    image_size: int,
    labels: Tensor | None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return uint8 images (num_images, 3, image_size, image_size).

    Args:
        generate: called with `num_images` and `labels` of each chunk, in [-1, 1].
        labels: int64 (num_images,) for conditional methods, else None.
        seed: of the run; each chunk has a random stream of its own, whatever was drawn before.
        between: called before each chunk.

    Raises:
        BadSamples: a chunk is no tensor, of another shape, not finite, or out of [-1, 1].
    """
    parts = []
    for number, start in enumerate(range(0, num_images, CHUNK)):
        between()
        count = min(CHUNK, num_images - start)
        asked = None if labels is None else labels[start : start + count].to(device)
        torch.manual_seed(stream(seed, "generate", number))
        with torch.no_grad():
            images = generate(num_images=count, labels=asked)
        _refuse(images, (count, 3, image_size, image_size))
        parts.append(to_uint8(images))
    return np.concatenate(parts)


def _refuse(images: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(images, Tensor):
        raise BadSamples(f"generate returned {type(images).__name__}, expected a tensor {shape}")
    if tuple(images.shape) != shape:
        raise BadSamples(f"generate returned images {tuple(images.shape)}, expected {shape}")
    if not images.is_floating_point():
        raise BadSamples(f"generate returned {images.dtype}, expected floats in [-1, 1]")
    bad = int((~images.flatten(1).isfinite()).any(1).sum())
    if bad:
        raise BadSamples(f"generate returned {bad} of {len(images)} images that are not finite")
    low, high = float(images.min()), float(images.max())
    if low < -1 - SLACK or high > 1 + SLACK:
        raise BadSamples(
            f"generate returned values from {low:.3g} to {high:.3g}, expected [-1, 1]; end with "
            "tanh or clamp"
        )


def save(folder: Path, name: str, images: np.ndarray) -> dict[str, Any]:
    """Write an array whole or not at all; return its sha256 and size in bytes."""
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    content = buffer.getvalue()
    write_atomically(folder / name, content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def read(folder: Path, drawn: Mapping[str, Any], num_images: int, image_size: int) -> Samples:
    """Return what the child said it drew, {"file", "sha256", "sampling", "num_classes"}.

    Raises:
        BadSamples: the file is not the one that was announced, or holds something else.
    """
    path = folder / drawn["file"]
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != drawn["sha256"]:
        raise BadSamples(f"{path.name} was changed after the run wrote it")
    images = np.load(io.BytesIO(content), allow_pickle=False)
    expected = (num_images, 3, image_size, image_size)
    if images.dtype != np.uint8 or images.shape != expected:
        raise BadSamples(f"{path.name} holds {images.dtype} {images.shape}, expected {expected}")
    classes = drawn["num_classes"]
    labels = balanced_labels(num_images, classes).numpy() if classes else None
    return Samples(images, labels, dict(drawn["sampling"]))
