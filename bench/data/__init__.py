"""Data sets as uint8 images and integer labels in named splits. Nothing here imports torch.

A data set is named, `digits`, or a kind and a path, `npz:faces.npz`. `bench.data.load` returns it
with square images; the functions beside it make the validation split, count duplicates, and write
the arrays that pretraining reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import (
    archives,
    cifar,
    digits,
    fashion_mnist,
    imagefolder,
    imagenet,
    npz,
    resize,
    scenes,
    stl10,
    timm_sets,
)
from bench.data.arrays import load_array, materialise, pretraining
from bench.data.hashes import split_sha256
from bench.data.neighbours import near_duplicates
from bench.data.source import MAX_CLASSES, Part, Request, Source
from bench.data.splits import Split, duplicates, some, split
from bench.errors import UnknownName, UserError
from bench.files import cache_folder
from bench.identity import canonical_json, digest

__all__ = [
    "KINDS",
    "NAMED",
    "STATES",
    "Dataset",
    "Split",
    "duplicates",
    "facts",
    "load",
    "load_array",
    "materialise",
    "near_duplicates",
    "of_spec",
    "pretraining",
    "some",
    "split",
]

NAMED: dict[str, Callable[[Request], Source]] = {
    "cifar10": cifar.read_cifar10,
    "cifar100": cifar.read_cifar100,
    "digits": digits.read,
    "fashion-mnist": fashion_mnist.read,
    "fashion-mnist-20k": partial(fashion_mnist.read, train_images=20_000),
    "fashion-mnist-10k": partial(fashion_mnist.read, train_images=10_000),
    "fashion-mnist-rest": partial(fashion_mnist.read, train_images=40_000, skipped=20_000),
    "imagenet": imagenet.read_imagenet,
    "imagenette": imagenet.read_imagenette,
    "scenes": partial(scenes.read, recipe=scenes.SCENES),
    "scenes-128": partial(scenes.read, recipe=scenes.SCENES_128),
    "stl10": stl10.read,
}
KINDS: dict[str, Callable[[Request], Source]] = {
    "imagefolder": imagefolder.read,
    "npz": npz.read,
    "timm": timm_sets.read,
}
STATES: dict[str, Callable[[], str]] = {  # how a data set can be had, in a few words
    "cifar10": partial(archives.state, cifar.CIFAR10),
    "cifar100": partial(archives.state, cifar.CIFAR100),
    "imagenet": imagenet.imagenet_state,
    "imagenette": partial(archives.state, imagenet.imagenette(160)),
    "stl10": partial(archives.state, stl10.STL10),
}
MAX_IMAGE_SIZE = 4096  # pixels a side; more is a slip, and would fill the memory


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, or on disk where its source decoded files.

    Attributes:
        name: as `load` was given it.
        images: uint8 (N, C, H, W) by split, H = W, C 1 or 3 and the same in all splits; splits are
            train, test, optional val and unlabeled. As a backbone sees them that is evaluated.
        labels: int64 (N,) in 0..C-1 by split; unlabeled has none.
        class_names: one per class.
        licence, source: of the images, for boards.
        sha256: over class names and the images and labels of every split but test: what pretraining
            and all choices depend on. It is the same whether or not the test split was read.
        skipped: "split/class/file: reason" for each image that was left out.
        test_sha256: over images and labels of test; empty when the test split was not read.
        places: files and folders that hold its images or labels.
        extras: what else is known of the images, by name and split, arrays of N rows; for
            evaluations alone, and in no hash. Only composed data sets have any.
        extra_names: what an extra's numbers mean, for those that number something.
        larger: the same images as they are stored, by split, where that is larger; `images` are
            their centres.
    """

    name: str
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    class_names: tuple[str, ...]
    licence: str
    source: str
    sha256: str
    skipped: tuple[str, ...] = ()
    test_sha256: str = ""
    places: tuple[Path, ...] = ()
    extras: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    extra_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    larger: dict[str, np.ndarray] = field(default_factory=dict)

    def only(self, key: str, rows: np.ndarray) -> Dataset:
        """Return the data set with only these rows of an unlabeled split."""
        images = self.images | {key: self.images[key][rows]}
        larger = self.larger | ({key: self.larger[key][rows]} if self.larger else {})
        return replace(self, images=images, larger=larger)

    def stored(self, key: str) -> np.ndarray:
        """Return a split's images as they are stored: what views crop from."""
        return self.larger.get(key, self.images[key])


def load(
    name: str,
    *,
    image_size: int,
    store_size: int | None = None,
    test: bool = True,
    on_bad_image: str = "error",
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Return a data set with square images, resized with antialiasing.

    Args:
        name: a key of `NAMED`, or `kind:PATH` with a key of `KINDS`.
        image_size: side in pixels of the images that a backbone sees.
        store_size: side at which they are stored, for views to crop from; by default the same.
            Hashes are over the stored images.
        test: whether to read the test split. If not, nothing of it is opened.
        on_bad_image: "error", or "skip" to leave out images that cannot be used and list them in
            `Dataset.skipped`.
        cache_dir: for downloads and decoded images; by default the environment's BENCH_CACHE, else
            ~/.cache/pretrain-bench.
        say: takes a line every ten seconds while images are downloaded or decoded.

    Raises:
        UnknownName: no data set or kind has this name.
        UserError: an argument or anything in the data is not as it must be; one line says what.
    """
    if type(image_size) is not int or not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"image size {image_size!r}; expected a whole number of pixels, 1 to {MAX_IMAGE_SIZE}"
        )
    side = image_size if store_size is None else store_size
    if type(side) is not int or not image_size <= side <= MAX_IMAGE_SIZE:
        raise UserError(
            f"store size {store_size!r}; expected a whole number of pixels, {image_size} to "
            f"{MAX_IMAGE_SIZE}: no smaller than the image size"
        )
    if on_bad_image not in ("error", "skip"):
        raise UserError(f"on_bad_image {on_bad_image!r}; expected 'error' or 'skip'")
    cache = cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
    parts: dict[str, Part] = {}
    try:
        source = _source(name, side, on_bad_image, cache, say)
        for key, read in source.splits.items():
            if key != "test" or test:
                parts[key] = read()
    except OSError as error:
        raise UserError(f"data set {name!r} cannot be read ({error}); mend its files") from error
    _check(name, parts, source.class_names)
    stored = {key: resize.square(part.images, side) for key, part in parts.items()}
    labels = {key: part.labels for key, part in parts.items() if part.labels is not None}
    hashes = {
        key: part.sha256
        if part.sha256 and stored[key] is part.images
        else split_sha256(stored[key], labels.get(key), say)
        for key, part in parts.items()
    }
    test_sha256 = hashes.pop("test", "")
    return Dataset(
        name=name,
        images={key: resize.centre(images, image_size) for key, images in stored.items()},
        labels=labels,
        class_names=source.class_names,
        licence=source.licence,
        source=source.source,
        sha256=digest({"class_names": source.class_names, "splits": hashes}),
        skipped=tuple(line for part in parts.values() for line in part.skipped),
        test_sha256=test_sha256,
        places=(cache, *source.places),
        extras=_extras(parts),
        extra_names=dict(source.extra_names),
        larger=stored if side > image_size else {},
    )


def of_spec(
    name: str, spec: Mapping[str, Any], *, test: bool, on_bad_image: str = "error"
) -> tuple[Dataset, Split]:
    """Return the data set and the split that a run's spec names.

    Args:
        name: as `load` takes it; the spec has it without folders.

    Raises:
        UserError: see `load` and `split`; or they are not as they were when the run was planned.
    """
    dataset = load(
        name,
        image_size=spec["image_size"],
        store_size=spec["data"].get("store_size"),
        test=test,
        on_bad_image=on_bad_image,
    )
    found = split(dataset, spec["seed"], parity=spec["data"].get("parity", False))
    for what, then, now in (
        ("images or labels", spec["data"]["sha256"], dataset.sha256),
        ("validation split", spec["data"]["split"], found.sha256),
    ):
        if then != now:
            raise UserError(
                f"{name}: its {what} hash to {now[:12]}, and to {then[:12]} when the run was "
                "planned; put them back as they were, or start anew with `bench run`"
            )
    return dataset, found


def _extras(parts: dict[str, Part]) -> dict[str, dict[str, np.ndarray]]:
    """Return the splits' extras by name, then by split."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, part in parts.items():
        for name, values in part.extras.items():
            found.setdefault(name, {})[key] = values
    return found


def facts(dataset: Dataset) -> dict[str, Any]:
    """Return what plans, results and boards say of a data set, as JSON.

    Keys: name, sha256, test_sha256, sizes (images by split), image_size, channels, classes (their
    number), class_names, licence, source, skipped.
    """
    return {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "test_sha256": dataset.test_sha256,
        "sizes": {key: len(images) for key, images in dataset.images.items()},
        "image_size": dataset.images["train"].shape[-1],
        "channels": dataset.images["train"].shape[1],
        "classes": len(dataset.class_names),
        "class_names": list(dataset.class_names),
        "licence": dataset.licence,
        "source": dataset.source,
        "skipped": list(dataset.skipped),
    }


def _source(
    name: str, image_size: int, on_bad_image: str, cache_dir: Path, say: Callable[[str], None]
) -> Source:
    kind, colon, path = name.partition(":")
    request = Request(name, path, image_size, on_bad_image, cache_dir, say)
    if not colon:
        if kind in KINDS:
            raise UserError(f"data set {name!r} lacks its path; write {kind}:PATH")
        if kind not in NAMED:
            raise UnknownName("data set", name, [*NAMED, *(f"{kind}:PATH" for kind in KINDS)])
        return NAMED[kind](request)
    if kind not in KINDS:
        raise UnknownName("kind of data set", kind, list(KINDS))
    if not path:
        raise UserError(f"data set {name!r} lacks its path; write {kind}:PATH")
    return KINDS[kind](request)


def _check(name: str, parts: dict[str, Part], class_names: tuple[str, ...]) -> None:
    """Raise UserError unless the splits that were read fit each other and the class names."""
    if not 2 <= len(class_names) <= MAX_CLASSES:
        raise UserError(f"{name!r} has {len(class_names)} class; expected 2 to {MAX_CLASSES}")
    if len(set(class_names)) < len(class_names):
        twice = next(text for text in class_names if class_names.count(text) > 1)
        raise UserError(f"{name!r} has two classes named {twice!r}; give each its own name")
    try:
        canonical_json(class_names).encode()
    except UnicodeEncodeError:
        raise UserError(f"{name!r} has class names that are not UTF-8; rename them") from None
    channels = parts["train"].images.shape[1]
    seen = np.unique(parts["train"].labels)
    for key, part in parts.items():
        if len(part.images) == 0:
            raise UserError(f"split {key} of {name!r} has no images; expected at least one")
        if part.images.shape[1] != channels:
            raise UserError(
                f"split {key} of {name!r} has {part.images.shape[1]} channels but train has "
                f"{channels}; store all splits in gray or all in colour"
            )
        unseen = [] if part.labels is None else np.setdiff1d(part.labels, seen)[:5].tolist()
        if unseen:
            raise UserError(
                f"split {key} of {name!r} has images of classes {unseen} that train has none of; "
                "number the classes alike in all splits, or leave those images out"
            )
