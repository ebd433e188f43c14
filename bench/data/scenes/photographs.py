"""The photographs behind the scenes: files inside the wheels of scikit-image and scikit-learn.

They are found by their distribution's path; neither package is imported. Every photograph belongs
to one split, chosen by hand so that each split has everyday, scientific and texture-like motifs,
gray ones among them. Each is pinned by the sha256 of its file and of its decoded pixels: a JPEG
decoder that rounds otherwise would make another data set under the same name.

Licences are those that `skimage.data`'s docstrings and scikit-learn's `datasets/images/README.txt`
state. Photographs for which they state none (motorcycle, moon, page) are not used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from bench.data import resize
from bench.errors import UserError

FOLDERS = {"scikit-image": "skimage/data", "scikit-learn": "sklearn/datasets/images"}
EXTRA = "pip install 'pretrain-bench[scenes]'"


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Attributes:
        file: its name in the distribution's folder of images.
        split: the only split whose backgrounds are cut from it.
        licence, author: as the distribution's documentation has them.
        sha256: of the file.
        pixels_sha256: of its pixels as RGB bytes, row by row.
    """

    file: str
    distribution: str
    split: str
    licence: str
    author: str
    sha256: str
    pixels_sha256: str

    @property
    def name(self) -> str:
        """Return the file's name without its suffix."""
        return self.file.partition(".")[0]


PHOTOGRAPHS = (
    Photograph(
        "astronaut.png",
        "scikit-image",
        "train",
        "public domain",
        "NASA",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071",
    ),
    Photograph(
        "coffee.png",
        "scikit-image",
        "train",
        "CC0",
        "Rachel Michetti",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "0ce2b51640b9c95f19617f03eabf40c3f0368589cc1ee1190b70966165ac184f",
    ),
    Photograph(
        "china.jpg",
        "scikit-learn",
        "train",
        "CC BY 2.0",
        "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "e701459344fd69797154c91add3bb5d70e5ed1a61d8bed889bab3a796104698d",
    ),
    Photograph(
        "ihc.png",
        "scikit-image",
        "train",
        "no known copyright restrictions",
        "Center for Microscopy and Molecular Imaging",
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        "c5b3ef509a92f16d4c29be8cf0300fe75d53e13a3ce650159db932caea8dcc1b",
    ),
    Photograph(
        "camera.png",
        "scikit-image",
        "train",
        "CC0",
        "Lav Varshney",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "13e2b4aa92cb1649b4aac5a4d48b38a8ea3a18b86e8abdf5a4871abf24c9d038",
    ),
    Photograph(
        "grass.png",
        "scikit-image",
        "train",
        "CC0",
        "linolafett",
        "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        "c7ca5c984d6b5a2787506e70a42bcac22b164b00e8e1cf9e06cf76b8110c5734",
    ),
    Photograph(
        "flower.jpg",
        "scikit-learn",
        "val",
        "CC BY 2.0",
        "vultilion, https://www.flickr.com/photos/vultilion/6056698931",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "3202904ed246795bf616c66d7859cd7c6080eff736c6e38dc5cc62779742033f",
    ),
    Photograph(
        "hubble_deep_field.jpg",
        "scikit-image",
        "val",
        "public domain",
        "NASA",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "9a3ea9548188f81e63435188456e74de45a981ebeb791e265abe79a26d3b528b",
    ),
    Photograph(
        "coins.png",
        "scikit-image",
        "val",
        "no known copyright restrictions",
        "Brooklyn Museum",
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "aaecc2ad43bd43e204f7ad01dc60494586ff80d42236c2db358c59b9be1f5427",
    ),
    Photograph(
        "brick.png",
        "scikit-image",
        "val",
        "CC0",
        "CC0Textures",
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        "3501e216fb0968c378803347d3a13e3cc04021eaecc44b64c6528088c7ea0f64",
    ),
    Photograph(
        "chelsea.png",
        "scikit-image",
        "test",
        "CC0",
        "Stefan van der Walt",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "416b729128bfb2c3d1eb69bf9b1734a796293abc17939267b2dc94f8a5784031",
    ),
    Photograph(
        "rocket.jpg",
        "scikit-image",
        "test",
        "public domain",
        "SpaceX",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "3d4435cc745752b7f9724df88c6e18817de3ce7e3d2d71c55f85f7831e68f197",
    ),
    Photograph(
        "retina.jpg",
        "scikit-image",
        "test",
        "CC0",
        "Mikael Häggström",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "3670e389d0dae9f755cc1bb7e4da4c3d2cdf10eba2dc3060836d8d4b8024d860",
    ),
    Photograph(
        "gravel.png",
        "scikit-image",
        "test",
        "CC0",
        "CC0Textures",
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
        "e73bd88250cbfd7f96f232357ecad0d2302252483457337f5cf79d2c5b82227a",
    ),
)


def of_split(split: str) -> list[tuple[int, Photograph]]:
    """Return the photographs of a split with their positions in `PHOTOGRAPHS`."""
    return [(row, photo) for row, photo in enumerate(PHOTOGRAPHS) if photo.split == split]


def locate(photograph: Photograph) -> Path:
    """Return the path of a photograph.

    Raises:
        UserError: its distribution is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(photograph.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the scenes need the photographs of {photograph.distribution}, which is not "
            f"installed; {EXTRA}"
        ) from None
    folder = FOLDERS[photograph.distribution]
    return Path(str(distribution.locate_file(f"{folder}/{photograph.file}")))


def read(photograph: Photograph) -> np.ndarray:
    """Return a photograph as uint8 (3, H, W).

    Raises:
        UserError: it is missing, or its file or its decoded pixels are not the pinned ones.
    """
    path = locate(photograph)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"photograph {str(path)!r} cannot be read ({error.strerror}); install "
            f"{photograph.distribution} again: {EXTRA}"
        ) from error
    if hashlib.sha256(content).hexdigest() != photograph.sha256:
        raise UserError(
            f"photograph {str(path)!r} is not the one that the scenes are made of (sha256 "
            f"{photograph.sha256[:12]}...); install {photograph.distribution} again: {EXTRA}"
        )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    if hashlib.sha256(pixels.tobytes()).hexdigest() != photograph.pixels_sha256:
        raise UserError(
            f"Pillow {PIL.__version__} decodes {str(path)!r} to other pixels than the scenes are "
            "made of; install a Pillow whose JPEG decoder is libjpeg-turbo, as its wheels have"
        )
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def scaled(pixels: np.ndarray, shorter: int) -> np.ndarray:
    """Return uint8 (3, H, W) resized, antialiased, so that its shorter side has so many pixels."""
    _, height, width = pixels.shape
    side = min(height, width)
    rows = resize.weights(height, (height * shorter + side // 2) // side)  # (h, H)
    columns = resize.weights(width, (width * shorter + side // 2) // side)  # (w, W)
    total = rows @ pixels.astype(np.float64) @ columns.T  # whole numbers below 2^53: exact
    return np.floor(total * 2.0 ** (-2 * resize.FRACTION_BITS) + 0.5).astype(np.uint8)
