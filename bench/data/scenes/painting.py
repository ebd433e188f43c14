"""Composing: items are painted, one after the other, onto crops of photographs; integers only."""

from __future__ import annotations

import numpy as np

from bench.data.scenes import items, photographs
from bench.data.scenes.recipe import PATCH, Recipe, below, words
from bench.data.source import Part

WHOLE = 256  # an item's pixel that hides all of what is behind it
PADDED = items.SIDE + 2 * items.MARGIN


def draw(packed: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much an item hides (0..256) and its gray (0..65280), int64 of u's shape.

    Args:
        packed: one picture of `items.packed`, (32, 32).
        u, v: places in it, in units of 2^-16 pixels; what lies outside is empty.
    """
    last = (PADDED - 1 << 16) - 1
    u, v = np.clip(u, 0, last), np.clip(v, 0, last)
    first = (v >> 16) * PADDED + (u >> 16)
    right, down = (u >> 8) & 255, (v >> 8) & 255  # 1/256 of a pixel
    flat = packed.reshape(-1)
    # Bilinear: mask and gray never meet, as the gray's sum stays below 2^24.
    upper = flat[first] * (256 - right) + flat[first + 1] * right
    lower = flat[first + PADDED] * (256 - right) + flat[first + PADDED + 1] * right
    both = upper * (256 - down) + lower * down
    return both >> 48, (both & (1 << 32) - 1) >> 8


def paint(behind: np.ndarray, hides: np.ndarray, gray: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Return uint8 (3, H, W): the item over what is behind it, rounded to the nearest."""
    colour = (gray * tint[:, None, None]) >> 16  # (3, H, W), 0..65280
    mixed = (behind.astype(np.int64) << 8) * (WHOLE - hides) + colour * hides
    return (mixed + 32768 >> 16).astype(np.uint8)


def backgrounds(recipe: Recipe, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a split's backgrounds, uint8 (N, 3, S, S), and their photographs, int64 (N,).

    Photograph, zoom, place and mirroring are drawn evenly and apart from the items.
    """
    count, size = recipe.count(split), recipe.image_size
    own = photographs.of_split(split)
    levels = []
    for _, photograph in own:
        pixels = photographs.read(photograph)
        levels.append([photographs.scaled(pixels, round(zoom * size)) for zoom in recipe.zooms])
    chance = words(recipe, split, "background", count, 5).T
    which, zoom = below(chance[0], len(own)), below(chance[1], len(recipe.zooms))
    shapes = np.array([[level.shape[1:] for level in photograph] for photograph in levels])
    room = shapes[which, zoom] - size + 1  # (N, 2)
    top, left = below(chance[2], room[:, 0]), below(chance[3], room[:, 1])
    mirrored = below(chance[4], 2)
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    for row in range(count):
        level = levels[which[row]][zoom[row]]
        y, x = top[row], left[row]
        crop = level[:, y : y + size, x : x + size]
        images[row] = crop[:, :, ::-1] if mirrored[row] else crop
    return images, np.array([position for position, _ in own])[which]


def compose(recipe: Recipe, split: str, source: Part, class_names: tuple[str, ...]) -> Part:
    """Return one split with its extras.

    The extras: "background", int64 (N,), a position in `photographs.PHOTOGRAPHS`; "item", int64
    (N, most), rows of the Fashion-MNIST file, -1 where an image has fewer items; "object", their
    classes likewise; "box", int64 (N, most, 4): x0, y0, x1, y1 in pixels, ends excluded, tight
    around the item's visible pixels, 0 where there are none; "mask", uint8 (N, S, S): 0 the
    background, j + 1 where item j is seen. A pixel belongs to an item that hides at least half of
    what is behind it. An image's label is the class of the item with the most visible pixels (of
    equals the one in front).

    Args:
        source: the Fashion-MNIST split that the items come from.

    Raises:
        UserError: as `items.choose` and `photographs.read`.
    """
    pictures = source.images[:, 0]
    every = items.outlines(pictures)
    rows = items.choose(recipe, split, every, source.labels, class_names)
    masks, classes = every[rows], source.labels[rows]
    packed = items.packed(pictures[rows], masks, recipe.darkest)
    poses = items.pose(recipe, split, masks, classes)
    per_image = recipe.items(split)
    owner = np.repeat(np.arange(len(per_image)), per_image)
    slot = np.arange(len(rows)) - np.repeat(np.cumsum(per_image) - per_image, per_image)

    grid = np.arange(PATCH)
    drawn_hides = np.empty((len(rows), PATCH, PATCH), dtype=np.uint16)
    drawn_gray = np.empty_like(drawn_hides)
    for row in range(len(rows)):
        a, b = poses.a[row], poses.b[row]
        u = (poses.start_u[row] + a * grid) + (b * grid)[:, None]
        v = (poses.start_v[row] - b * grid) + (a * grid)[:, None]
        drawn_hides[row], drawn_gray[row] = draw(packed[row], u, v)
    box = items.boxes(drawn_hides >= WHOLE // 2)
    corner = items.place(recipe, split, box, owner, slot)

    images, background = backgrounds(recipe, split)
    size = recipe.image_size
    seen = np.zeros((len(images), size, size), dtype=np.uint8)
    for row in range(len(rows)):
        image, (x, y) = owner[row], corner[row] - box[row, :2]  # of the patch, maybe outside
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + PATCH, size), min(y + PATCH, size)
        part = (slice(top - y, bottom - y), slice(left - x, right - x))
        hides = drawn_hides[row][part].astype(np.int64)
        gray = drawn_gray[row][part].astype(np.int64)
        there = images[image, :, top:bottom, left:right]
        there[...] = paint(there, hides, gray, poses.tint[row])
        seen[image, top:bottom, left:right][hides >= WHOLE // 2] = slot[row] + 1

    return _part(recipe, images, background, seen, (rows, classes, owner, slot))


def _part(
    recipe: Recipe,
    images: np.ndarray,
    background: np.ndarray,
    seen: np.ndarray,
    painted: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> Part:
    """Return the split, with what is visible of each item measured from `seen` (N, S, S)."""
    rows, classes, owner, slot = painted
    item = np.full((len(images), recipe.most), -1, dtype=np.int64)
    kind = item.copy()
    item[owner, slot], kind[owner, slot] = rows, classes
    box = np.zeros((len(images), recipe.most, 4), dtype=np.int64)
    visible = np.zeros((len(images), recipe.most), dtype=np.int64)
    for number in range(recipe.most):
        mask = seen == number + 1
        box[:, number] = items.boxes(mask)
        visible[:, number] = mask.sum((1, 2))
    largest = recipe.most - 1 - visible[:, ::-1].argmax(1)
    extras = {"background": background, "item": item, "object": kind, "box": box, "mask": seen}
    return Part(images, kind[np.arange(len(images)), largest], extras=extras)
