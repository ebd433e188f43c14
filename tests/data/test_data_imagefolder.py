"""`imagefolder:PATH`: splits, classes, pixels, the cache, and every kind of bad file."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import data
from bench.data import imagefolder
from bench.errors import UserError

SIZE = 8


def load(root: Path, **options) -> data.Dataset:
    return data.load(f"imagefolder:{root}", image_size=SIZE, **options)


def refusal(root: Path, **options) -> str:
    with pytest.raises(UserError) as raised:
        load(root, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def expected(path: Path, mode: str = "RGB") -> np.ndarray:
    """The shorter side resized to SIZE, then the centre cut out: two steps in Pillow, (C, H, W)."""
    image = Image.open(path).convert(mode)
    scale = SIZE / min(image.size)
    wide = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (wide.width - SIZE) // 2, (wide.height - SIZE) // 2
    pixels = np.asarray(wide.crop((left, top, left + SIZE, top + SIZE)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def save_gray(root: Path) -> None:
    for path in root.rglob("*.*g"):
        Image.open(path).convert("L").save(path)


def test_classes_are_folders_and_rows_are_sorted_files(image_tree: Path) -> None:
    dataset = load(image_tree)

    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels["train"].tolist() == [0] * 4 + [1] * 4
    assert dataset.labels["test"].tolist() == [0] * 2 + [1] * 2
    assert dataset.images["train"].shape == (8, 3, SIZE, SIZE)
    assert dataset.images["train"].dtype == np.uint8
    assert dataset.skipped == ()


def test_pixels_are_resized_and_centre_cropped(tmp_path: Path, image_tree: Path) -> None:
    draw = np.random.default_rng(0)
    for name, shape in (("wide", (16, 48, 3)), ("tall", (32, 16, 3)), ("square", (24, 24, 3))):
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(image_tree / "train" / "cat" / f"z-{name}.png")

    rows = load(image_tree).images["train"][4:7].astype(int)

    for row, name in zip(rows, ("square", "tall", "wide"), strict=True):
        reference = expected(image_tree / "train" / "cat" / f"z-{name}.png")
        assert np.abs(row - reference).max() <= 1


def test_gray_training_images_give_one_channel_everywhere(image_tree: Path) -> None:
    save_gray(image_tree / "train")

    dataset = load(image_tree)

    assert dataset.images["train"].shape == (8, 1, SIZE, SIZE)
    assert dataset.images["test"].shape == (4, 1, SIZE, SIZE)


def test_one_colour_image_gives_three_channels(image_tree: Path) -> None:
    keep = (image_tree / "train" / "dog" / "3.png").read_bytes()
    save_gray(image_tree)
    (image_tree / "train" / "dog" / "3.png").write_bytes(keep)

    images = load(image_tree).images["train"]

    assert images.shape == (8, 3, SIZE, SIZE)
    assert (images[0] == images[0, :1]).all()
    assert (images[7] != images[7, :1]).any()


def test_val_alone_is_the_reported_split(image_tree: Path) -> None:
    before = load(image_tree)
    (image_tree / "test").rename(image_tree / "val")

    dataset = load(image_tree)

    assert set(dataset.images) == {"train", "test"}
    assert np.array_equal(dataset.images["test"], before.images["test"])


def test_val_beside_test_is_the_validation_split(image_tree: Path) -> None:
    shutil.copytree(image_tree / "test", image_tree / "val")
    (image_tree / "val" / "dog" / "1.png").unlink()

    dataset = load(image_tree)

    assert dataset.labels["val"].tolist() == [0, 0, 1]
    assert len(dataset.labels["test"]) == 4
    assert data.split(dataset, 0).own


def test_unlabeled_images_of_any_folders_are_a_split_without_labels(image_tree: Path) -> None:
    plain = load(image_tree)
    (image_tree / "unlabeled" / "deep" / "er").mkdir(parents=True)
    shown = sorted((image_tree / "train" / "cat").iterdir())[:2]
    shutil.copy(shown[0], image_tree / "unlabeled" / "deep" / "er" / shown[0].name)
    shutil.copy(shown[1], image_tree / "unlabeled" / f"z{shown[1].suffix}")

    for _ in range(2):  # decoded, then from the cache
        dataset = load(image_tree)
        assert np.array_equal(dataset.images["unlabeled"], dataset.images["train"][:2])
        assert "unlabeled" not in dataset.labels
        assert dataset.sha256 != plain.sha256
    shutil.rmtree(image_tree / "unlabeled")
    (image_tree / "unlabeled").mkdir()
    assert "has no files; add images or remove it" in refusal(image_tree)


def test_code_below_the_root_is_not_hidden_from_plugins(image_tree: Path, monkeypatch) -> None:
    """A project's folder may be its data's, and hold the environment that runs it."""
    assert load(image_tree).places[1:] == (image_tree,)
    monkeypatch.syspath_prepend(image_tree / ".venv" / "lib")
    assert load(image_tree).places[1:] == (image_tree / "train", image_tree / "test")


def test_linked_class_folders_and_files_are_followed(image_tree: Path, tmp_path: Path) -> None:
    before = load(image_tree)
    (image_tree / "train" / "cat").rename(tmp_path / "elsewhere")
    (image_tree / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    (image_tree / "train" / "dog" / "0.jpg").rename(tmp_path / "one.jpg")
    (image_tree / "train" / "dog" / "0.jpg").symlink_to(tmp_path / "one.jpg")

    assert load(image_tree).sha256 == before.sha256


def test_names_with_a_dot_in_front_are_not_data(image_tree: Path) -> None:
    before = load(image_tree)
    (image_tree / "train" / ".DS_Store").write_bytes(b"x")
    (image_tree / "train" / "cat" / "._0.jpg").write_bytes(b"x")
    (image_tree / "train" / ".cache").mkdir()

    assert load(image_tree).sha256 == before.sha256


# Bad files: what is put at train/cat/9.png (or another name), and what the message says of it.


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_16_bit_colour() -> bytes:
    """A 16-bit colour PNG, chunk by chunk: Pillow writes none, and reads it as 8-bit RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(range(12))) * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def flipped(content: bytes, at: int | None = None) -> bytes:
    """One bit is another one: in the middle, or of the byte `at`."""
    changed = bytearray(content)
    changed[len(changed) // 2 if at is None else at] ^= 1
    return bytes(changed)


FRAMES = {"save_all": True, "append_images": [picture("L").convert("RGB")], "duration": 50}
DEEP = Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16))

BAD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("9.png", lambda: b"", "empty file"),
    "text": ("9.png", lambda: b"hello", "broken or truncated"),
    "half a PNG": ("9.png", lambda: encoded(picture(), "PNG")[:3000], "truncated"),
    "a PNG without end": ("9.png", lambda: encoded(picture(), "PNG")[:-12], "truncated"),
    "a PNG short of a byte": ("9.png", lambda: encoded(picture(), "PNG")[:-1], "truncated"),
    "a PNG with a flipped bit": ("9.png", lambda: flipped(encoded(picture(), "PNG")), "broken"),
    "a wrong checksum": ("9.png", lambda: flipped(encoded(picture(), "PNG"), -13), "broken"),
    "half a JPEG": ("9.jpg", lambda: encoded(picture(), "JPEG")[:900], "truncated"),
    "a JPEG without end": ("9.jpeg", lambda: encoded(picture(), "JPEG")[:-2], "truncated"),
    "a JPEG's head": ("9.jpg", lambda: encoded(picture(), "JPEG")[:20], "broken"),
    "half a WebP": ("9.webp", lambda: encoded(picture(), "WEBP")[:500], "broken"),
    "half a GIF": ("9.gif", lambda: encoded(picture(), "GIF")[:900], "broken"),
    "half a BMP": ("9.bmp", lambda: encoded(picture(), "BMP")[:900], "broken"),
    "half a TIFF": ("9.tif", lambda: encoded(picture(), "TIFF")[:900], "broken"),
    "half a PPM": ("9.ppm", lambda: encoded(picture(), "PPM")[:900], "broken"),
    "PPM of junk": ("9.ppm", lambda: b"P6\n4 x", "broken"),
    "CMYK JPEG": ("9.jpg", lambda: encoded(picture("CMYK"), "JPEG"), "CMYK"),
    "CMYK TIFF": ("9.tiff", lambda: encoded(picture("CMYK"), "TIFF"), "CMYK"),
    "Lab TIFF": ("9.tiff", lambda: encoded(picture("LAB"), "TIFF"), "mode LAB"),
    "16-bit gray PNG": ("9.png", lambda: encoded(DEEP, "PNG"), "16 bits"),
    "16-bit colour PNG": ("9.png", png_16_bit_colour, "16 bits"),
    "16-bit TIFF": ("9.tif", lambda: encoded(DEEP, "TIFF"), "16 bits"),
    "16-bit PGM": ("9.pgm", lambda: encoded(DEEP, "PPM"), "16 bits"),
    "16-bit PPM": ("9.ppm", lambda: b"P6 # deep\n2 1 65535\n" + bytes(12), "16 bits"),
    "float TIFF": ("9.tif", lambda: encoded(picture("F"), "TIFF"), "32 bits"),
    "animated GIF": ("9.gif", lambda: encoded(picture(), "GIF", **FRAMES), "animated, 2 frames"),
    "animated PNG": ("9.png", lambda: encoded(picture(), "PNG", **FRAMES), "animated, 2 frames"),
    "animated WebP": ("9.webp", lambda: encoded(picture(), "WEBP", **FRAMES), "animated"),
    "two-page TIFF": ("9.tif", lambda: encoded(picture(), "TIFF", **FRAMES), "2 frames"),
    "JPEG named .png": ("9.png", lambda: encoded(picture(), "JPEG"), "wrongly named.*JPEG"),
    "PNG named .jpg": ("9.JPG", lambda: encoded(picture(), "PNG"), "wrongly named.*PNG"),
    "PostScript named .png": ("9.png", lambda: encoded(picture(), "EPS"), "broken"),
    "notes": ("notes.txt", lambda: b"remember", "no image extension"),
    "PNG named .txt": ("9.txt", lambda: encoded(picture(), "PNG"), "no image extension"),
    "no extension": ("9", lambda: encoded(picture(), "PNG"), "no image extension"),
    "outside a class": ("../9.png", lambda: encoded(picture(), "PNG"), "not in a class folder"),
    "a name of two lines": ("a\nb.png", lambda: b"", "empty file"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_an_error_that_names_it_or_is_skipped(case: str, image_tree: Path) -> None:
    clean = load(image_tree)
    name, content, said = BAD[case]
    (image_tree / "train" / "cat" / name).write_bytes(content())
    shown = os.path.normpath(f"train/cat/{name}").replace("\n", "\\n")

    line = refusal(image_tree)
    assert shown in line
    assert re.search(said, line), line

    dataset = load(image_tree, on_bad_image="skip")
    assert dataset.sha256 == clean.sha256
    (skipped,) = dataset.skipped
    assert shown in skipped
    assert re.search(said, skipped), skipped
    assert data.facts(dataset)["skipped"] == [skipped]

    assert refusal(image_tree) == line  # now from the cache


@pytest.mark.parametrize(
    ("suffix", "form", "mode", "options"),
    [
        ("jpeg", "JPEG", "L", {}),
        ("JPG", "JPEG", "RGB", {"progressive": True}),
        ("png", "PNG", "P", {}),
        ("png", "PNG", "1", {}),
        ("png", "PNG", "LA", {}),
        ("png", "PNG", "RGBA", {}),
        ("gif", "GIF", "P", {}),
        ("bmp", "BMP", "RGB", {}),
        ("webp", "WEBP", "RGBA", {"lossless": True}),
        ("tif", "TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("tiff", "TIFF", "1", {}),
        ("ppm", "PPM", "RGB", {}),
        ("pgm", "PPM", "L", {}),
        ("jpg", "MPO", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}),
    ],
)
def test_good_files_of_every_kind_are_read(suffix, form, mode, options, image_tree) -> None:
    path = image_tree / "train" / "dog" / f"9.{suffix}"
    picture(mode).save(path, form, **options)

    row = load(image_tree).images["train"][8].astype(int)

    assert np.abs(row - expected(path)).max() <= 1


def test_links_to_nowhere_and_pipes_are_named(image_tree: Path) -> None:
    (image_tree / "train" / "cat" / "8.png").symlink_to(image_tree / "absent.png")
    os.mkfifo(image_tree / "train" / "cat" / "9.png")

    assert "train/cat/8.png: a broken link" in refusal(image_tree)
    assert len(load(image_tree, on_bad_image="skip").skipped) == 2


def test_bad_test_files_are_met_only_when_test_is_read(image_tree: Path) -> None:
    before = load(image_tree)
    (image_tree / "test" / "dog" / "0.jpg").write_bytes(b"")

    assert load(image_tree, test=False).sha256 == before.sha256
    assert "test/dog/0.jpg" in refusal(image_tree)
    assert len(load(image_tree, on_bad_image="skip").skipped) == 1


def test_nothing_of_the_test_split_is_opened_without_test(image_tree: Path, monkeypatch) -> None:
    opened = []
    content = imagefolder._content
    monkeypatch.setattr(
        imagefolder, "_content", lambda entry: (opened.append(entry.relative), content(entry))[1]
    )

    load(image_tree, test=False)

    assert {name.split("/")[0] for name in opened} == {"train"}


def test_structure_errors_are_one_line(image_tree: Path, tmp_path: Path) -> None:
    assert "is no folder" in refusal(tmp_path / "absent")
    assert "is no folder" in refusal(image_tree / "train" / "cat" / "0.jpg")
    assert "has no split" in refusal(tmp_path / "animals" / "train")

    (image_tree / "test" / "eel").mkdir()
    assert "class that train/ lacks" in refusal(image_tree)
    (image_tree / "test" / "eel").rmdir()

    (image_tree / "train" / "eel").mkdir()
    assert "train/eel' has no files" in refusal(image_tree)
    (image_tree / "train" / "eel").rmdir()

    shutil.rmtree(image_tree / "train" / "dog")
    shutil.rmtree(image_tree / "test" / "dog")
    assert "1 class" in refusal(image_tree)

    shutil.rmtree(image_tree / "test")
    assert "has train/; expected" in refusal(image_tree)
    (image_tree / "test").mkdir()
    assert "has no files" in refusal(image_tree)


def test_a_split_of_bad_files_alone_is_refused(image_tree: Path) -> None:
    for path in (image_tree / "train").rglob("*.*g"):
        path.write_bytes(b"")

    assert "no image that can be used" in refusal(image_tree, on_bad_image="skip")


@pytest.fixture
def decoded_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded from now on."""
    names = []
    pixels = imagefolder._pixels
    monkeypatch.setattr(
        imagefolder,
        "_pixels",
        lambda entry, *how: (names.append(entry.relative), pixels(entry, *how))[1],
    )
    return names


def test_files_are_decoded_once(image_tree: Path, own_cache: Path, decoded_files) -> None:
    first = load(image_tree)
    assert len(decoded_files) == 12
    image_tree.rename(image_tree.with_name("moved"))

    second = load(image_tree.with_name("moved"))

    assert len(decoded_files) == 12
    assert second.sha256 == first.sha256
    assert isinstance(second.images["train"], np.memmap)
    assert len([path for path in (own_cache / "imagefolder").iterdir() if path.is_dir()]) == 2


def test_cache_dir_is_where_the_arrays_go(image_tree: Path, own_cache: Path, tmp_path) -> None:
    load(image_tree, cache_dir=tmp_path / "other")

    assert (tmp_path / "other" / "imagefolder").is_dir()
    assert not own_cache.exists()


def test_a_changed_file_is_decoded_again(image_tree: Path, decoded_files) -> None:
    before = load(image_tree)
    path = image_tree / "train" / "dog" / "1.png"
    stat = path.stat()
    picture().save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the clock says nothing

    after = load(image_tree)

    assert after.sha256 != before.sha256
    assert after.test_sha256 == before.test_sha256
    assert len(decoded_files) == 12 + 8


def test_another_size_or_class_name_has_its_own_cache(image_tree: Path, decoded_files) -> None:
    first = load(image_tree)
    larger = data.load(f"imagefolder:{image_tree}", image_size=16)
    for split in ("train", "test"):
        (image_tree / split / "dog").rename(image_tree / split / "bat")

    renamed = load(image_tree)

    assert larger.images["train"].shape[-1] == 16
    assert renamed.class_names == ("bat", "cat")
    assert np.array_equal(renamed.images["train"], first.images["train"][[4, 5, 6, 7, 0, 1, 2, 3]])
    assert len(decoded_files) == 36


def test_a_new_class_renumbers_cached_splits(image_tree: Path) -> None:
    shutil.rmtree(image_tree / "test" / "cat")
    before = load(image_tree)
    shutil.copytree(image_tree / "train" / "cat", image_tree / "train" / "ant")

    after = load(image_tree)

    assert before.labels["test"].tolist() == [1, 1]
    assert after.labels["test"].tolist() == [2, 2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "images.npy").unlink(),
        lambda folder: (folder / "meta.json").write_text("{}"),
        lambda folder: (folder / "labels.npy").write_bytes(b""),
        lambda folder: (folder / "images.npy").write_bytes(
            flipped((folder / "images.npy").read_bytes())
        ),
    ],
)
def test_a_damaged_cache_is_decoded_again(damage, image_tree, own_cache, decoded_files) -> None:
    before = load(image_tree)
    for folder in (own_cache / "imagefolder").iterdir():
        if folder.is_dir():
            damage(folder)

    after = load(image_tree)

    assert (after.sha256, after.test_sha256) == (before.sha256, before.test_sha256)
    assert len(decoded_files) == 24
