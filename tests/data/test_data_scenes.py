"""Scenes: composed to the byte, split without overlap, cached; hue tells some of the class."""

from __future__ import annotations

import colorsys
import hashlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bench import data
from bench.data import fashion_mnist, scenes
from bench.data.scenes import items, painting, photographs, recipe
from bench.data.source import Request
from bench.errors import UserError

TINY = replace(scenes.SCENES, train=60, val=20, test=30)
TINY_128 = replace(scenes.SCENES_128, train=40, val=8, test=12)
COLOURS = [[200, 30, 40], [20, 180, 60], [40, 50, 210], [220, 210, 30], [10, 190, 200], [90] * 3]


def picture(number: int) -> np.ndarray:
    """Draw a picture that no other number gives: a box of stripes on black."""
    y, x = np.mgrid[:28, :28]
    gray = 40 + (x * (3 + number % 5) + y * (7 + number % 3) + 11 * number) % 210
    height, width = 20 + number % 8, 14 + number % 11
    inside = (y >= 14 - height // 2) & (y < 14 + height // 2)
    inside &= (x >= 14 - width // 2) & (x < 14 + width // 2)
    return np.where(inside, gray, 0).astype(np.uint8)


@pytest.fixture
def tiny(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_idx: Callable
) -> dict[str, np.ndarray]:
    """Write a Fashion-MNIST of 360 pictures and six plain photographs; small recipes by name."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    pictures = {"train": range(240), "t10k": range(1000, 1120)}
    arrays = {name: np.stack([picture(n) for n in rows]) for name, rows in pictures.items()}
    for name, rows in pictures.items():
        write_idx(folder / f"{name}-images-idx3-ubyte", arrays[name])
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(len(rows)) % 10)
    monkeypatch.setenv("BENCH_FASHION_MNIST", str(folder))

    fakes = []
    for number, colour in enumerate(COLOURS):
        pixels = np.full((300, 320, 3), colour, dtype=np.uint8)
        path = tmp_path / f"photo{number}.png"
        Image.fromarray(pixels).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        pixels_sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        split = ("train", "train", "train", "val", "test", "test")[number]
        fakes.append(
            photographs.Photograph(path.name, "none", split, "CC0", "us", sha256, pixels_sha256)
        )
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", tuple(fakes))
    monkeypatch.setattr(photographs, "locate", lambda photograph: tmp_path / photograph.file)
    monkeypatch.setitem(data.NAMED, "scenes", partial(scenes.read, recipe=TINY))
    monkeypatch.setitem(data.NAMED, "scenes-128", partial(scenes.read, recipe=TINY_128))
    return arrays


def load(name: str = "scenes", size: int = 64, **options) -> data.Dataset:
    return data.load(name, image_size=size, **options)


def refusal(call: Callable) -> str:
    with pytest.raises(UserError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_bytes_are_the_pinned_ones(tiny) -> None:
    single, several = load(), load("scenes-128", 128)

    assert (single.sha256[:16], single.test_sha256[:16]) == ("fb8f017c0f4f1781", "08b020d8326d2acc")
    assert several.sha256[:16] == "36f687e3e2d762b4"
    assert several.test_sha256[:16] == "8850dd6533bb945b"


def test_a_second_load_composes_nothing(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load()
    monkeypatch.setattr(scenes, "compose", None)

    after = load()

    assert (after.sha256, after.test_sha256) == (before.sha256, before.test_sha256)
    assert isinstance(after.images["train"], np.memmap)


@pytest.mark.parametrize("name", ["images.npy", "background.npy", "meta.json"])
def test_a_damaged_cache_is_composed_anew(tiny, own_cache: Path, name: str) -> None:
    before = load()
    extras = {name: np.array(splits["train"]) for name, splits in before.extras.items()}
    (path,) = own_cache.glob(f"scenes/train-*/{name}")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)

    after = load()

    assert after.sha256 == before.sha256
    for extra, values in extras.items():
        assert np.array_equal(after.extras[extra]["train"], values)


def test_items_are_disjoint_and_test_items_are_test_pictures(tiny) -> None:
    dataset = load("scenes-128", 128)

    used = {key: rows[rows >= 0] for key, rows in dataset.extras["item"].items()}

    assert {key: len(rows) for key, rows in used.items()} == {"train": 140, "val": 28, "test": 42}
    assert all(len(np.unique(rows)) == len(rows) for rows in used.values())
    assert not np.intersect1d(used["train"], used["val"]).size
    # The rows are of another file in test; the labels say which, for row r has class r mod 10.
    for key, rows in dataset.extras["item"].items():
        objects = dataset.extras["object"][key]
        assert np.array_equal(objects[rows >= 0], rows[rows >= 0] % 10)
        assert np.ptp(np.bincount(objects[rows >= 0], minlength=10)) <= 1


def test_each_photograph_lies_behind_one_split(tiny) -> None:
    dataset = load()

    for key, which in dataset.extras["background"].items():
        expected = {row for row, photo in enumerate(photographs.PHOTOGRAPHS) if photo.split == key}
        assert set(which.tolist()) == expected
        # The fakes are plain, so each pixel away from an item has its photograph's colour.
        near = ndimage.binary_dilation(dataset.extras["mask"][key], np.ones((1, 9, 9)))
        for image, row, covered in zip(dataset.images[key], which, near, strict=True):
            away = image[:, ~covered].T
            assert (away == np.array(COLOURS[row])).all()
    assert dataset.extra_names["background"] == tuple(f"photo{n}" for n in range(6))


def test_the_real_photographs_are_shared_out_once() -> None:
    assert {photo.split for photo in photographs.PHOTOGRAPHS} == {"train", "val", "test"}
    for field in ("file", "sha256", "pixels_sha256"):
        values = [getattr(photo, field) for photo in photographs.PHOTOGRAPHS]
        assert len(set(values)) == len(values)


def test_nothing_of_test_is_opened_without_test(tiny, tmp_path: Path) -> None:
    (tmp_path / "fashion" / "t10k-images-idx3-ubyte").write_bytes(b"no pictures")
    (tmp_path / "photo4.png").unlink()

    dataset = load(test=False)

    assert set(dataset.images) == set(dataset.extras["background"]) == {"train", "val"}
    assert "t10k" in refusal(load)


def test_the_data_set_brings_its_own_validation(tiny) -> None:
    dataset = load()

    split = data.split(dataset, 0)

    assert split.own
    assert (len(split.train), len(split.val)) == (60, 20)
    assert data.duplicates(dataset, split) == 0


def test_extras_are_in_no_hash(tiny, own_cache: Path) -> None:
    before = load()
    shuffled = data.Dataset(**{**vars(before), "extras": {}})

    assert data.facts(before)["sha256"] == data.facts(shuffled)["sha256"]
    assert data.split(before, 0).sha256 == data.split(shuffled, 0).sha256


def test_boxes_and_labels_follow_the_masks(tiny) -> None:
    dataset = load("scenes-128", 128)

    for key, masks in dataset.extras["mask"].items():
        counts = (dataset.extras["object"][key] >= 0).sum(1)
        assert set(counts.tolist()) == {2, 3, 4, 5}
        for row, mask in enumerate(masks):
            sizes = []
            for number in range(counts[row]):
                y, x = np.nonzero(mask == number + 1)
                box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
                assert tuple(dataset.extras["box"][key][row, number]) == box
                sizes.append(len(y))
            assert mask.max() == counts[row]
            largest = dataset.extras["object"][key][row, int(np.argmax(sizes))]
            assert dataset.labels[key][row] == largest or sizes.count(max(sizes)) > 1


def test_masks_in_pixels_need_their_own_size(tiny) -> None:
    assert "image_size 128" in refusal(lambda: load("scenes-128", 64))
    assert load("scenes", 32).images["train"].shape == (60, 3, 32, 32)


def test_too_few_pictures_are_refused(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.NAMED, "scenes", partial(scenes.read, recipe=scenes.SCENES))

    assert "needs 1200 pictures of 'T-shirt/top'" in refusal(load)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tiny) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "distribution", absent)

    with pytest.raises(UserError, match=r"pip install 'pretrain-bench\[scenes\]'"):
        photographs.read(photographs.PHOTOGRAPHS[0])


def test_another_photograph_is_refused(tiny, tmp_path: Path) -> None:
    Image.new("RGB", (300, 320)).save(tmp_path / "photo3.png")

    assert "photo3.png' is not the one that the scenes are made of" in refusal(load)


def test_another_decoder_is_refused(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(photographs.PHOTOGRAPHS[0], pixels_sha256="0" * 64)

    assert "to other pixels" in refusal(lambda: photographs.read(changed))


def test_drawing_matches_float_interpolation() -> None:
    masks = items.outlines(picture(3)[None])
    packed = items.packed(picture(3)[None], masks, 48)[0]
    mask, gray = packed >> 32, packed & 255
    draw = np.random.default_rng(0)
    u, v = draw.integers(-5 << 16, 40 << 16, (2, 50, 50))

    hides, shade = painting.draw(packed, u, v)

    places = np.clip([v / 65536, u / 65536], 0, 31)
    assert np.abs(hides - ndimage.map_coordinates(mask.astype(float), places, order=1)).max() < 3
    slow = ndimage.map_coordinates(gray.astype(float), places, order=1)
    assert np.abs(shade / 256 - slow).max() < 3  # of 255; places are rounded to 1/256 pixel


def test_painting_is_alpha_blending() -> None:
    draw = np.random.default_rng(1)
    behind = draw.integers(0, 256, (3, 9, 9))
    hides, gray = draw.integers(0, 257, (9, 9)), draw.integers(0, 65281, (9, 9))
    tint = np.array([65536, 20000, 0])

    painted = painting.paint(behind.astype(np.uint8), hides, gray, tint)

    alpha = hides / 256
    slow = (1 - alpha) * behind + alpha * (gray / 256) * (tint / 65536)[:, None, None]
    assert np.abs(painted - slow).max() <= 0.5 + 1 / 256


def test_tints_are_those_of_hsv() -> None:
    hue, saturation, value = np.random.default_rng(2).random((3, 200)) * [[3.0], [1.0], [1.0]]

    tints = items.tints(hue - 1, saturation, value)

    colours = zip(hue % 1, saturation, value, strict=True)
    slow = [colorsys.hsv_to_rgb(*colour) for colour in colours]
    assert np.abs(tints / 65536 - slow).max() < 1e-4


def test_an_item_takes_the_place_with_the_least_overlap() -> None:
    box = np.array([[0, 0, 60, 60]] * 300)
    owner, slot = np.repeat(np.arange(100), 3), np.tile(np.arange(3), 100)
    places = {
        tries: items.place(replace(TINY_128, tries=tries), "train", box, owner, slot)
        for tries in (1, 40)
    }

    def overlap(start: np.ndarray) -> int:
        total = 0
        for image in start.reshape(100, 3, 2):
            for i in range(3):
                for j in range(i):
                    total += int(np.maximum(60 - np.abs(image[i] - image[j]), 0).prod())
        return total

    assert places[40].min() >= 0
    assert places[40].max() <= 128 - 60
    assert overlap(places[40]) < overlap(places[1]) / 3


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    """Compose a part of the real scenes."""
    if fashion_mnist._absent(fashion_mnist.DEBIAN):
        pytest.skip("Fashion-MNIST is not on this machine (Debian: dataset-fashion-mnist)")
    try:
        importlib.metadata.distribution("scikit-image")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("scikit-image is not installed")
    small = replace(scenes.SCENES, train=2000, val=200, test=2000)
    cache = tmp_path_factory.mktemp("scenes")
    source = scenes.read(Request("scenes", "", 64, "error", cache), small)
    parts = {key: read() for key, read in source.splits.items()}
    return data.Dataset(
        name="scenes",
        images={key: part.images for key, part in parts.items()},
        labels={key: part.labels for key, part in parts.items()},
        class_names=source.class_names,
        licence=source.licence,
        source=source.source,
        sha256="0" * 64,
        extras=data._extras(parts),
    )


def test_an_object_covers_a_quarter_of_the_image(real: data.Dataset) -> None:
    for masks in real.extras["mask"].values():
        covered = (masks > 0).mean((1, 2))
        assert covered.min() >= 0.25
        assert 0.28 < np.median(covered) < 0.40


def mean_hues(dataset: data.Dataset, key: str) -> np.ndarray:
    """Return the mean hue (N,) of each item's pixels, in turns, from the circular mean."""
    hues = []
    for image, mask in zip(dataset.images[key], dataset.extras["mask"][key], strict=True):
        red, green, blue = image[:, mask > 0].astype(float)
        angle = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
        hues.append(np.angle(np.exp(1j * angle).mean()) / (2 * np.pi) % 1)
    return np.array(hues)


def test_hue_alone_tells_some_of_the_class(real: data.Dataset) -> None:
    hues = np.concatenate([mean_hues(real, key) for key in ("train", "test")])
    labels = np.concatenate([real.labels[key] for key in ("train", "test")])
    away = (hues[:, None] - np.array(scenes.SCENES.hues) + 0.5) % 1 - 0.5  # (N, C) turns

    # Noise is the same around every centre, so the nearest one is the best guess there is.
    accuracy = (abs(away).argmin(1) == labels).mean()

    assert 0.25 <= accuracy <= 0.45
    expected = 1 - (1 - 0.05 / scenes.SCENES.hue_spread) ** 2
    assert abs(accuracy - expected) < 0.03  # four sd of 4,000 items; fixed bytes


def test_the_background_tells_nothing_of_the_class(real: data.Dataset) -> None:
    table = np.zeros((len(photographs.PHOTOGRAPHS), 10))
    np.add.at(table, (real.extras["background"]["train"], real.labels["train"]), 1)
    table = table[table.sum(1) > 0]

    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()

    squares = ((table - expected) ** 2 / expected).sum()  # chi-squared, 45 degrees of freedom
    assert squares < 77  # p = 0.002; fixed bytes, so it cannot fail by chance


def test_chance_is_addressed_by_image() -> None:
    assert np.array_equal(
        recipe.words(TINY, "train", "pose", 50, 8)[:20], recipe.words(TINY, "train", "pose", 20, 8)
    )
    values = recipe.unit(recipe.words(TINY, "train", "pose", 5000))
    assert 0 <= values.min() < 0.01 < 0.99 < values.max() < 1
    faces = recipe.below(recipe.words(TINY, "val", "pose", 6000), 6)
    assert (np.abs(np.bincount(faces[:, 0]) - 1000) < 150).all()


def test_the_docs_name_every_photograph_with_its_licence() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tracks.md").read_text(encoding="utf-8")

    for photo in photographs.PHOTOGRAPHS:
        cells = (f"`{photo.file}`", photo.distribution, photo.split, photo.licence, photo.author)
        assert f"| {' | '.join(cells)} |" in page
