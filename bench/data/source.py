"""What a source of images is asked for, and what it answers: splits that are read when needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MAX_CLASSES = 65_536  # predictions are stored as uint16


@dataclass(frozen=True)
class Request:
    """One call of `bench.data.load`, as a source sees it.

    Attributes:
        name: the data set's whole name, for messages.
        path: what follows the colon in `kind:PATH`; empty for named data sets.
        image_size: side of the square images in pixels. Only sources that decode files use it;
            the images of all others are resized after reading.
        on_bad_image: "error" or "skip".
        cache_dir: folder for downloads and decoded images.
        say: takes a line on how far a download or decoding is.
    """

    name: str
    path: str
    image_size: int
    on_bad_image: str
    cache_dir: Path
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Part:
    """One split: uint8 images (N, C, H, W), integer labels (N,) or None, what was skipped, extras.

    `extras` is what else is known of each image, arrays of N rows by name. It is for evaluations
    alone: neither pretraining nor the data's sha256 sees it. `sha256` is the split's own hash, as
    `bench.data.hashes.split_sha256` makes it, where the source knows it.
    """

    images: np.ndarray
    labels: np.ndarray | None
    skipped: tuple[str, ...] = ()
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class Source:
    """A data set before its splits are read.

    Attributes:
        splits: readers by split name: train, test, optional val and unlabeled. A reader that is
            not called opens nothing of its split.
        class_names: one per class, in the order of the labels.
        licence: licence of the images.
        source: where the images come from.
        extra_names: what the values of an extra mean, for those that number something: "background"
            numbers photographs.
    """

    splits: Mapping[str, Callable[[], Part]]
    class_names: tuple[str, ...]
    licence: str
    source: str
    places: tuple[Path, ...] = ()
    extra_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
