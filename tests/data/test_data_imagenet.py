"""ImageNet and Imagenette from folders laid out as theirs; a listing that is hashed once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import data
from bench.data import decode, hashes, imagefolder, imagenet
from bench.errors import UserError

SIZE = 16
WORDNET_IDS = ("n01440764", "n02102040", "n03888257")
DRAW = np.random.default_rng(8)


def photograph(mode: str = "RGB") -> Image.Image:
    pixels = DRAW.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC).convert(mode)


def write(root: Path) -> Path:
    """Write train/<id>/<id>_<n>.JPEG and val/<id>/ILSVRC2012_val_<n>.JPEG."""
    number = 0
    for wordnet_id in WORDNET_IDS:
        for split, count in (("train", 4), ("val", 2)):
            folder = root / split / wordnet_id
            folder.mkdir(parents=True)
            for _ in range(count):
                number += 1
                name = wordnet_id if split == "train" else "ILSVRC2012_val"
                photograph().save(folder / f"{name}_{number:08d}.JPEG", "JPEG")
    return root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = write(tmp_path / "ILSVRC2012")
    monkeypatch.setenv("BENCH_IMAGENET", str(root))
    return root


def load(name: str = "imagenet", **options) -> data.Dataset:
    return data.load(name, image_size=SIZE, **options)


def refusal(name: str = "imagenet") -> str:
    with pytest.raises(UserError) as raised:
        load(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_imagenet_is_train_and_the_reported_val(folder: Path) -> None:
    dataset = load()

    assert dataset.class_names == WORDNET_IDS
    assert dataset.labels["train"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.labels["test"].tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.images["train"].shape == (12, 3, SIZE, SIZE)
    assert isinstance(dataset.images["train"], np.memmap)
    assert not data.split(dataset, 0).own
    assert folder in dataset.places
    plain = data.load(f"imagefolder:{folder}", image_size=SIZE)
    assert np.array_equal(dataset.images["test"], plain.images["test"])


def test_the_flat_test_folder_of_the_contest_is_no_split(folder: Path) -> None:
    (folder / "test").mkdir()
    photograph().save(folder / "test" / "ILSVRC2012_test_00000001.JPEG", "JPEG")
    dataset = load()
    assert set(dataset.images) == {"train", "test"}
    assert len(dataset.images["test"]) == 2 * len(WORDNET_IDS)


def test_images_that_imagenet_has_and_a_user_folder_may_not_have_are_decoded(folder: Path) -> None:
    """Of ILSVRC's training images some are CMYK, and n02105855_2933.JPEG is a PNG."""
    photograph("CMYK").save(folder / "train" / WORDNET_IDS[0] / "z_cmyk.JPEG", "JPEG")
    photograph().save(folder / "train" / WORDNET_IDS[0] / "z_png.JPEG", "PNG")
    photograph("L").save(folder / "train" / WORDNET_IDS[0] / "z_gray.JPEG", "JPEG")

    images = load().images["train"]

    assert len(images) == 15
    for row, name in ((4, "z_cmyk"), (5, "z_gray"), (6, "z_png")):
        path = folder / "train" / WORDNET_IDS[0] / f"{name}.JPEG"
        with Image.open(path) as image:
            expected = decode.square(image, SIZE, gray=False)
        assert np.array_equal(images[row], expected)
    with pytest.raises(UserError, match="CMYK"):
        data.load(f"imagefolder:{folder}", image_size=SIZE)


def test_imagenets_folder_must_be_named_and_whole(folder: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("BENCH_IMAGENET")
    assert "image-net.org" in refusal()
    assert "BENCH_IMAGENET" in refusal()
    assert data.STATES["imagenet"]() == refusal()

    monkeypatch.setenv("BENCH_IMAGENET", str(tmp_path / "absent"))
    assert "lacks train/ and val/" in refusal()

    monkeypatch.setenv("BENCH_IMAGENET", str(folder))
    (folder / "train" / "cats").mkdir()
    photograph().save(folder / "train" / "cats" / "1.JPEG")
    assert "'cats' is no class folder of ImageNet" in refusal()
    shutil.rmtree(folder / "train" / "cats")

    (folder / "train" / WORDNET_IDS[1] / "broken.JPEG").write_bytes(b"\xff\xd8 no more")
    assert "broken.JPEG" in refusal()
    (folder / "train" / WORDNET_IDS[1] / "broken.JPEG").unlink()

    for path in list((folder / "val").glob("*/*")):
        path.rename(folder / "val" / path.name)
    for path in list((folder / "val").glob("n*")):
        path.rmdir()
    assert "val' has no class folders" in refusal()


def test_imagenette_has_its_classes_names(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_IMAGENETTE", str(folder))
    (folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")

    dataset = load("imagenette")

    assert dataset.class_names == ("tench", "English springer", "parachute")
    assert np.array_equal(dataset.images["train"], load().images["train"])

    for split in ("train", "val"):
        (folder / split / WORDNET_IDS[0]).rename(folder / split / "n00000001")
    assert "'n00000001' is no class folder of Imagenette" in refusal("imagenette")
    shutil.rmtree(folder / "val")
    assert "lacks val" in refusal("imagenette")


def test_imagenettes_archive_fits_the_size_that_is_stored() -> None:
    from torchvision.datasets import Imagenette

    for size, variant in (
        (96, "160px"),
        (160, "160px"),
        (161, "320px"),
        (320, "320px"),
        (336, "full"),
    ):
        url, md5 = Imagenette._ARCHIVES[variant]
        archive = imagenet.imagenette(size)
        assert (archive.url, archive.md5) == (url, md5)
    classes = {wnid: words[0] for wnid, words in Imagenette._WNID_TO_CLASS.items()}
    assert classes == imagenet.IMAGENETTE_CLASSES


def test_imagenette_is_downloaded_and_unpacked_once(folder: Path, tmp_path, monkeypatch) -> None:
    packed = tmp_path / "imagenette2-160.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, "imagenette2-160")
    monkeypatch.delenv("BENCH_IMAGENETTE", raising=False)
    archive = dataclasses.replace(
        imagenet.imagenette(SIZE),
        url=packed.as_uri(),
        md5=hashlib.md5(packed.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(imagenet, "imagenette", lambda size: archive)

    first = load("imagenette")
    packed.unlink()

    assert load("imagenette").sha256 == first.sha256


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The image files that are read from now on."""
    names: list[str] = []
    content = imagefolder._content
    monkeypatch.setattr(
        imagefolder, "_content", lambda entry: (names.append(entry.relative), content(entry))[1]
    )
    return names


def age(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files be old enough that their times can be relied on."""
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", 0.0)
    time.sleep(0.02)  # more than a tick of the file system's clock


def test_a_second_load_reads_no_file_and_hashes_no_array(folder, monkeypatch, reads) -> None:
    age(folder, monkeypatch)
    first = load()
    load()  # the arrays, fresh from decoding, are hashed once more
    assert sorted(set(reads)) == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*.JPEG")
    )
    reads.clear()
    monkeypatch.setattr(imagefolder, "split_sha256", lambda *a: pytest.fail("hashed again"))
    monkeypatch.setattr(data, "split_sha256", lambda *a: pytest.fail("hashed again"))

    second = load()

    assert reads == []
    assert (second.sha256, second.test_sha256) == (first.sha256, first.test_sha256)


def test_the_kept_hash_is_the_one_that_the_arrays_have(folder: Path) -> None:
    dataset = load()

    sha256 = hashes.split_sha256(np.array(dataset.images["test"]), dataset.labels["test"])

    assert dataset.test_sha256 == sha256


def test_only_a_changed_file_is_read_again(folder, monkeypatch, reads) -> None:
    path = folder / "train" / WORDNET_IDS[1] / "z.JPEG"
    photograph().save(path, "BMP")  # all bitmaps of one shape have one size
    age(folder, monkeypatch)
    first = load()
    status = path.stat()
    time.sleep(0.02)
    photograph().save(path, "BMP")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time say nothing
    monkeypatch.setattr(imagefolder, "_pixels", lambda *_: np.zeros((3, SIZE, SIZE), np.uint8))
    reads.clear()

    second = load()

    assert reads == [str(path.relative_to(folder))]
    assert path.stat().st_size == status.st_size
    assert second.sha256 != first.sha256


def test_a_file_that_is_younger_than_two_seconds_is_not_relied_on(tmp_path: Path) -> None:
    path, listing = tmp_path / "file", tmp_path / "listing.jsonl"
    path.write_bytes(b"one")
    remembered = hashes.Hashes(listing)
    assert remembered.of("file", path, lambda: "1" * 64) == "1" * 64
    remembered.save()

    assert hashes.Hashes(listing).of("file", path, lambda: "2" * 64) == "2" * 64


@pytest.mark.parametrize("content", [b"", b"[", b'["a"]\n', b"\xff\xfe", b"[1, 2]\n{}\n"])
def test_a_damaged_listing_counts_as_nothing(content: bytes, tmp_path: Path) -> None:
    path, listing = tmp_path / "file", tmp_path / "listing.jsonl"
    path.write_bytes(b"one")
    listing.write_bytes(content)

    assert hashes.Hashes(listing).of("file", path, lambda: "3" * 64) == "3" * 64


def test_threads_decode_to_the_same_bytes_in_order(folder: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(decode.os, "sched_getaffinity", lambda _: {0})
    one = load(cache_dir=tmp_path / "one")
    monkeypatch.setattr(decode.os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(decode, "AT_A_TIME", 5)

    several = load(cache_dir=tmp_path / "several")

    assert (several.sha256, several.test_sha256) == (one.sha256, one.test_sha256)
