"""The items of the scenes: Fashion-MNIST pictures with their outlines, chosen, posed and tinted.

Fashion-MNIST's ground is black, so an item's mask is what is not: pixels of at least 16 (below lies
the noise of its compression), closed by a 3x3 square so that dark seams do not tear it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.data.scenes.recipe import PATCH, Recipe, below, unit, words
from bench.errors import UserError

SIDE = 28  # of a Fashion-MNIST picture
MARGIN = 2  # empty pixels around it, so that whatever lies outside reads as nothing
DARK = 16  # gray values below this are ground
SHRINK = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the rotation, until a thin item fits


def outlines(pictures: np.ndarray) -> np.ndarray:
    """Return the masks, bool (N, 28, 28), of gray pictures, uint8 (N, 28, 28)."""
    mask = np.pad(pictures >= DARK, ((0, 0), (2, 2), (2, 2)))
    grown = _any3(_any3(mask, 1), 2)
    closed = ~_any3(_any3(~grown, 1), 2)
    return closed[:, 2:-2, 2:-2]


def _any3(mask: np.ndarray, axis: int) -> np.ndarray:
    """Return whether a pixel or a neighbour along the axis is set; the edge has no neighbours."""
    found = mask.copy()
    before = [slice(None)] * mask.ndim
    after = [slice(None)] * mask.ndim
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    found[tuple(after)] |= mask[tuple(before)]
    found[tuple(before)] |= mask[tuple(after)]
    return found


def boxes(masks: np.ndarray) -> np.ndarray:
    """Return the tight boxes of masks (N, H, W) as int64 (N, 4): x0, y0, x1, y1, ends excluded.

    An empty mask has the box 0, 0, 0, 0.
    """
    columns, rows = masks.any(1), masks.any(2)
    found = np.stack(
        [
            columns.argmax(1),
            rows.argmax(1),
            columns.shape[1] - columns[:, ::-1].argmax(1),
            rows.shape[1] - rows[:, ::-1].argmax(1),
        ],
        axis=1,
    )
    return np.where(rows.any(1)[:, None], found, 0)


def choose(
    recipe: Recipe, split: str, masks: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> np.ndarray:
    """Return the pictures that a split uses, int64 (M,), each once, in the order of painting.

    Classes are equally frequent to one item. Per class, pictures are drawn in a chance order from
    those that can be large enough; validation draws on where training stopped.

    Args:
        masks, labels: of all pictures of the file that the split draws from.

    Raises:
        UserError: a class has too few pictures.
    """
    source = "test" if split == "test" else "train"
    order = np.argsort(words(recipe, source, "items", len(labels))[:, 0], kind="stable")
    order = order[_can_be_large(recipe, masks)[order]]
    total, classes = int(recipe.items(split).sum()), len(class_names)
    picked = []
    for label in range(classes):
        rows = order[labels[order] == label]
        first = _share(int(recipe.items("train").sum()), classes, label) if split == "val" else 0
        count = _share(total, classes, label)
        if len(rows) < first + count:
            raise UserError(
                f"{recipe.name!r} needs {first + count} pictures of {class_names[label]!r} from "
                f"Fashion-MNIST's {source} files, which have {len(rows)} of a usable size; "
                "fetch the whole data set"
            )
        picked.append(rows[first : first + count])
    together = np.concatenate(picked)
    return together[np.argsort(words(recipe, split, "shuffle", total)[:, 0], kind="stable")]


def _share(total: int, classes: int, label: int) -> int:
    return total // classes + (label < total % classes)


def _can_be_large(recipe: Recipe, masks: np.ndarray) -> np.ndarray:
    """Return whether each item, upright, covers the least share within the longest side."""
    box = boxes(masks)
    longest = np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
    return masks.sum((1, 2)) * recipe.longest**2 >= recipe.cover[0] * PATCH**2 * longest**2


@dataclass(frozen=True)
class Poses:
    """How items are drawn: from a patch's pixel (x, y) to a place in the padded 32x32 picture.

    In units of 2^-16 picture pixels: u = start_u + a x + b y, v = start_v - b x + a y.

    Attributes:
        a, b, start_u, start_v: int64 (M,).
        tint: int64 (M, 3), what an item's white becomes in red, green, blue; 65536 is full.
    """

    a: np.ndarray
    b: np.ndarray
    start_u: np.ndarray
    start_v: np.ndarray
    tint: np.ndarray


def pose(recipe: Recipe, split: str, masks: np.ndarray, labels: np.ndarray) -> Poses:
    """Return the poses and tints of a split's items, given in the order of painting."""
    chance = unit(words(recipe, split, "pose", len(masks), 8)).T  # (8, M)
    box = boxes(masks)
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    area = masks.sum((1, 2)).astype(np.float64)
    low, high = recipe.cover
    wanted = np.sqrt((low + (high - low) * chance[0]) * PATCH**2 / area)  # patch / picture pixels
    needed = np.sqrt(low * PATCH**2 / area)
    cosine, sine = np.ones(len(masks)), np.zeros(len(masks))
    fits = np.zeros(len(masks), dtype=bool)
    largest = wanted
    for shrink in SHRINK:
        half = (2 * chance[1] - 1) * recipe.tilt * shrink  # the tangent of half the angle
        c, s = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
        side = np.maximum(width * c + height * abs(s), width * abs(s) + height * c)
        new = ~fits & (needed * side <= recipe.longest)
        cosine, sine = np.where(new, c, cosine), np.where(new, s, sine)
        largest = np.where(new, recipe.longest / side, largest)
        fits |= new
    scale = np.minimum(wanted, largest)
    a = np.rint(65536 * (cosine / scale)).astype(np.int64)
    b = np.rint(65536 * (sine / scale)).astype(np.int64)
    # The box's centre falls on the patch's; pixel centres lie at halves in both.
    centre = (box[:, :2] + box[:, 2:]) * 32768 + (MARGIN * 65536 - 32768)  # (M, 2)
    start_u = centre[:, 0] - ((a + b) * (PATCH - 1) >> 1)
    start_v = centre[:, 1] - ((a - b) * (PATCH - 1) >> 1)
    noise = (chance[2] + chance[3] - 1) * recipe.hue_spread  # triangular
    hue = np.array(recipe.hues)[labels] + noise
    saturation = _between(recipe.saturation, chance[4])
    brightness = _between(recipe.brightness, chance[5])
    return Poses(a, b, start_u, start_v, tints(hue, saturation, brightness))


def _between(limits: tuple[float, float], chance: np.ndarray) -> np.ndarray:
    return limits[0] + (limits[1] - limits[0]) * chance


def tints(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return red, green and blue, int64 (M, 3) in 0..65536, of colours in HSV.

    Args:
        hue: in turns, any number.
        saturation, value: in [0, 1].
    """
    channels = []
    for offset in (5.0, 3.0, 1.0):  # the piecewise linear form of the hexcone
        sector = (offset + 6 * (hue - np.floor(hue))) % 6
        away = np.clip(np.minimum(sector, 4 - sector), 0, 1)
        channels.append(np.rint(65536 * (value - value * saturation * away)))
    return np.stack(channels, axis=1).astype(np.int64)


def packed(pictures: np.ndarray, masks: np.ndarray, darkest: int) -> np.ndarray:
    """Return pictures and masks in one array, int64 (M, 32, 32): mask 0 or 256 above 32 bits, gray.

    The gray is lifted to `darkest`..255 and spread by one pixel beyond the mask, so that a pixel on
    the soft edge has the item's shade, not that of the ground.
    """
    gray = np.where(masks, darkest + (pictures.astype(np.int64) * (255 - darkest) + 127) // 255, 0)
    around = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
    gray, mask = np.pad(gray, around), np.pad(masks, around)
    spread = gray
    for axis in (1, 2):
        spread = np.maximum(spread, np.maximum(np.roll(spread, 1, axis), np.roll(spread, -1, axis)))
    return (mask.astype(np.int64) << 40) | np.where(mask, gray, spread)


def place(
    recipe: Recipe, split: str, box: np.ndarray, owner: np.ndarray, slot: np.ndarray
) -> np.ndarray:
    """Return where each item's box goes in its image, int64 (M, 2): its x0, y0.

    Of the places that an item tries, it takes the one whose box overlaps least with the boxes
    of its image's earlier items.

    Args:
        box: (M, 4), as drawn in the patch.
        owner, slot: the image of each item, and its number in it, int64 (M,).
    """
    size = box[:, 2:] - box[:, :2]  # (M, 2)
    chance = words(recipe, split, "place", len(box), 2 * recipe.tries).reshape(len(box), -1, 2)
    tried = below(chance, (recipe.image_size - size + 1)[:, None])  # (M, T, 2)
    placed = np.zeros((int(owner.max()) + 1, recipe.most, 4), dtype=np.int64)
    found = np.empty((len(box), 2), dtype=np.int64)
    for number in range(recipe.most):
        rows = np.flatnonzero(slot == number)
        if not len(rows):
            continue
        start = tried[rows]  # (R, T, 2)
        earlier = placed[owner[rows]][:, None]  # (R, 1, most, 4); an empty box overlaps nothing
        stop = start + size[rows][:, None]
        both = np.minimum(stop[:, :, None], earlier[..., 2:]) - np.maximum(
            start[:, :, None], earlier[..., :2]
        )
        overlap = np.maximum(both, 0).prod(3).sum(2)  # (R, T) pixels
        best = overlap.argmin(1)
        found[rows] = start[np.arange(len(rows)), best]
        placed[owner[rows], number] = np.concatenate([found[rows], found[rows] + size[rows]], 1)
    return found
