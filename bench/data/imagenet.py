"""ImageNet (ILSVRC 2012) and Imagenette, ten of its classes: photographs of many sizes.

Paper:   Russakovsky et al., IJCV 2015. https://www.image-net.org/challenges/LSVRC/2012/
Source:  https://github.com/fastai/imagenette
Files:   train/ and val/ with one folder per class, named by its WordNet id. val/ is what is
         reported; validation is set aside from train/.
Pixels:  ImageNet's few CMYK JPEGs and the PNG named .JPEG are decoded as everybody does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.data.archives import Archive, place
from bench.data.imagefolder import read_folder
from bench.data.source import Request, Source
from bench.errors import UserError

VARIABLE = "BENCH_IMAGENET"
TERMS = "ImageNet terms of access: non-commercial research and education"
SITE = "https://s3.amazonaws.com/fast-ai-imageclas/"
IMAGENETTE = {  # by the largest side that an archive's images have enough pixels for
    160: ("imagenette2-160", "e793b78cc4c9e9a4ccc0c1155377a412"),
    320: ("imagenette2-320", "3df6f0d01a2c9592104656642f5e78a3"),
    4096: ("imagenette2", "fe2fc210e6bb7c5664d602c3cd71e612"),
}
IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def imagenette(size: int) -> Archive:
    """Return the smallest archive whose images' shorter sides are at least `size` pixels."""
    folder, md5 = IMAGENETTE[min(side for side in IMAGENETTE if side >= size)]
    return Archive(f"{SITE}{folder}.tgz", md5, folder, ("train", "val"), "BENCH_IMAGENETTE")


def read_imagenette(request: Request) -> Source:
    """Return Imagenette's two splits at the size asked for.

    Raises:
        UserError: a class folder or an image is not as it must be, or the download failed.
    """
    archive = imagenette(request.image_size)
    return read_folder(
        request,
        place(archive, request),
        licence=TERMS,
        source="https://github.com/fastai/imagenette, version 2",
        name_class=_imagenette_class,
        strict=False,
    )


def read_imagenet(request: Request) -> Source:
    """Return the two splits of the folder that BENCH_IMAGENET names, at the size asked for.

    Raises:
        UserError: no folder is named, or a class folder or an image is not as it must be.
    """
    root = imagenet_folder()
    if not any(path.is_dir() for path in (root / "val").iterdir()):
        raise UserError(
            f"{str(root / 'val')!r} has no class folders; sort the validation images into one "
            "folder per WordNet id, as train/ has"
        )
    return read_folder(
        request,
        root,
        licence=TERMS,
        source="https://www.image-net.org/challenges/LSVRC/2012/",
        name_class=_wordnet_id,
        strict=False,
        splits=("train", "val"),  # test/ has no labels
    )


def imagenet_folder() -> Path:
    """Return the folder that BENCH_IMAGENET names.

    Raises:
        UserError: it names none, or one without train/ and val/.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise UserError(
            "imagenet cannot be downloaded: its terms ask every user to register at image-net.org; "
            f"set {VARIABLE} to a folder with train/ and val/, in each one folder per WordNet id"
        )
    root = Path(named).expanduser()
    absent = [f"{split}/" for split in ("train", "val") if not (root / split).is_dir()]
    if absent:
        raise UserError(
            f"{VARIABLE}={named!r} lacks {' and '.join(absent)}; name the folder that has train/ "
            "and val/, in each one folder per WordNet id"
        )
    return root


def imagenet_state() -> str:
    """Return in a few words how ImageNet can be had; no image is read."""
    try:
        return f"available in {imagenet_folder()}"
    except UserError as error:
        return str(error)


def _wordnet_id(folder: str) -> str:
    if not re.fullmatch(r"n\d{8}", folder):
        raise UserError(
            f"{folder!r} is no class folder of ImageNet; expected a WordNet id, n01440764"
        )
    return folder


def _imagenette_class(folder: str) -> str:
    if folder not in IMAGENETTE_CLASSES:
        raise UserError(
            f"{folder!r} is no class folder of Imagenette; expected {', '.join(IMAGENETTE_CLASSES)}"
        )
    return IMAGENETTE_CLASSES[folder]
