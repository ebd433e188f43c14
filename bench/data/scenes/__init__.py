"""Scenes: tinted clothes on photographs, composed by code; nothing is downloaded but Fashion-MNIST.

`scenes` has one item on 64x64 pixels, ten classes; `scenes-128` two to five on 128x128, with boxes
and masks. An item's hue tells its class a little, its shape tells it well, and the background tells
nothing of it. Items and background photographs are disjoint between training, validation and test,
and test items come from Fashion-MNIST's test files alone.

Paper:   Xiao et al., 2017, for the items. https://arxiv.org/abs/1708.07747
Files:   Fashion-MNIST as `bench.data.fashion_mnist` finds it; the photographs in the wheels of
         scikit-image and scikit-learn, pip install 'pretrain-bench[scenes]'.
Cache:   each split is composed once per recipe and files, and mapped from the disk from then on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from bench.data import fashion_mnist
from bench.data.arrays import complete_folder, read_meta, write_meta
from bench.data.scenes import photographs
from bench.data.scenes.painting import compose
from bench.data.scenes.recipe import SCENES, SCENES_128, Recipe
from bench.data.source import Part, Request, Source
from bench.errors import UserError
from bench.identity import digest, file_sha256

__all__ = ["SCENES", "SCENES_128", "Recipe", "read"]


def read(request: Request, recipe: Recipe) -> Source:
    """Return the three splits of a composed data set, composed when first read.

    Raises:
        UserError: images of several items were asked for in another size than they are composed
            in, and their boxes and masks are in pixels. Reading a split raises it when
            Fashion-MNIST or a photograph is missing or another than expected.
    """
    if recipe.most > 1 and request.image_size != recipe.image_size:
        raise UserError(
            f"{request.name!r} in {request.image_size} pixels, but its boxes and masks are in "
            f"those of {recipe.image_size}; ask for image_size {recipe.image_size}"
        )
    return Source(
        splits={
            split: partial(_cached, request.cache_dir, recipe, split)
            for split in ("train", "val", "test")
        },
        class_names=fashion_mnist.CLASS_NAMES,
        licence="items MIT; photographs CC0, public domain, no known copyright restrictions, "
        "CC BY 2.0 (by danielbuechele and vultilion)",
        source="https://github.com/zalandoresearch/fashion-mnist on photographs that scikit-image "
        "and scikit-learn ship",
        places=fashion_mnist.places(),
        extra_names={"background": tuple(photo.name for photo in photographs.PHOTOGRAPHS)},
    )


def _cached(cache_dir: Path, recipe: Recipe, split: str) -> Part:
    """Return one split, mapped from the folder that is named by all that decides its bytes."""
    items = "test" if split == "test" else "train"
    files = fashion_mnist.paths(cache_dir, items)
    own = photographs.of_split(split)
    key = digest(
        {
            "recipe": recipe.address(),
            "split": split,
            "items": [file_sha256(path) for path in files],
            "photographs": [[row, photo.sha256, photo.pixels_sha256] for row, photo in own],
        }
    )

    def is_complete(folder: Path) -> bool:
        meta = read_meta(folder)
        return (
            meta is not None
            and meta.get("key") == key
            and isinstance(meta.get("sha256"), dict)
            and all(_has(folder / name, sha256) for name, sha256 in meta["sha256"].items())
        )

    def write(folder: Path) -> None:
        source = fashion_mnist.read_split(cache_dir, items)
        part = compose(recipe, split, source, fashion_mnist.CLASS_NAMES)
        arrays = {"images": part.images, "labels": part.labels, **part.extras}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        names = [f"{name}.npy" for name in arrays]
        sums = {name: file_sha256(folder / name) for name in names}
        write_meta(folder, {"key": key, "sha256": sums})

    folder = complete_folder(cache_dir / recipe.name / f"{split}-{key[:16]}", is_complete, write)
    arrays = {
        Path(name).stem: np.load(folder / name, mmap_mode="r", allow_pickle=False)
        for name in (read_meta(folder) or {})["sha256"]
    }
    return Part(arrays.pop("images"), arrays.pop("labels"), extras=arrays)


def _has(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
