"""What decides every pixel of the composed data sets beside the pictures themselves, and chance.

Chance is addressed: a raw PCG64 stream for each (data set, split, purpose), whose words NumPy
promises never to change. Word i of a column belongs to image or item i, in integers or in float64
operations that IEEE 754 rounds one way, so that every machine composes the same bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.identity import canonical_json

VERSION = 1  # of the composing code: raised when the same recipe gives other pixels
PATCH = 64  # side of the square in which an item is drawn, pixels


@dataclass(frozen=True)
class Recipe:
    """The composition of one data set.

    Attributes:
        name: of the data set.
        image_size: side of the images in pixels.
        train, val, test: images of each split.
        fewest, most: items in an image; image i has fewest + i mod (most - fewest + 1).
        cover: least and largest share of the patch (64x64 pixels) that an item is scaled to cover,
            its own pixels counted. An item too thin to cover the least share is left out.
        longest: largest side of an item's box in pixels, which may keep it below the largest share.
        tilt: tangent of half the largest rotation; 0.17 is 19 degrees. A thin item that would not
            cover the least share within `longest` is turned less.
        hues: centre of each class's hues, in turns.
        hue_spread: an item's hue is its class's centre plus triangular noise of this half-width,
            in turns. Nearest-centre guesses are then right with probability
            1 - (1 - 0.05 / hue_spread)^2 for ten equidistant centres.
        saturation, brightness: ranges of an item's colour, 0 to 1.
        darkest: what an item's black is lifted to, of 255, so that it keeps its hue.
        zooms: a background is cut from its photograph scaled so that the shorter side is one of
            these multiples of the image's side.
        tries: places that an item tries where an image has several; the least overlapped is taken.
    """

    name: str
    image_size: int
    train: int
    val: int
    test: int
    fewest: int = 1
    most: int = 1
    cover: tuple[float, float] = (0.26, 0.40)
    longest: int = 63
    tilt: float = 0.17
    # Classes of like shape stand apart: T-shirt, pullover, coat and shirt 0.2 turns or more.
    hues: tuple[float, ...] = (0.0, 0.1, 0.3, 0.7, 0.5, 0.2, 0.8, 0.6, 0.4, 0.9)
    hue_spread: float = 0.34
    saturation: tuple[float, float] = (0.45, 0.9)
    brightness: tuple[float, float] = (0.7, 1.0)
    darkest: int = 48
    zooms: tuple[float, ...] = (1.2, 1.6, 2.2)
    tries: int = 24

    def count(self, split: str) -> int:
        """Return how many images a split has."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def items(self, split: str) -> np.ndarray:
        """Return how many items each image of a split has, int64 (N,)."""
        return self.fewest + np.arange(self.count(split)) % (self.most - self.fewest + 1)

    def address(self) -> dict[str, Any]:
        """Return the recipe as JSON."""
        return {"version": VERSION, **asdict(self)}


SCENES = Recipe("scenes", image_size=64, train=12_000, val=2_000, test=5_000)
SCENES_128 = Recipe(
    "scenes-128",
    image_size=128,
    train=4_000,
    val=800,
    test=2_000,
    fewest=2,
    most=5,
    cover=(0.16, 0.40),
    longest=60,
)


def words(recipe: Recipe, split: str, purpose: str, rows: int, columns: int = 1) -> np.ndarray:
    """Return raw words, uint64 (rows, columns), of one address."""
    address = canonical_json([recipe.name, VERSION, split, purpose])
    stream = np.random.PCG64(int.from_bytes(hashlib.sha256(address.encode()).digest(), "big"))
    return stream.random_raw(rows * columns).reshape(rows, columns)


def unit(words: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1), float64, of raw words."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(words: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Return whole numbers in [0, bound), int64, of raw words; bound < 2^32."""
    high = words >> np.uint64(32)
    return ((high * np.asarray(bound, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)
