"""CIFAR and STL-10 from files laid out as the archives are, and from downloaded archives."""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import data, inventory
from bench.data import archives, cifar, progress, stl10
from bench.errors import UserError

DRAW = np.random.default_rng(6)
SIDES = {"cifar10": 32, "cifar100": 32, "stl10": 96}
ARCHIVES = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100, "stl10": stl10.STL10}


def pictures(count: int, side: int) -> np.ndarray:
    return DRAW.integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def write_cifar10(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write cifar-10-batches-bin and return images and labels by split."""
    names = [f"class_{number}" for number in range(10)]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    images, labels = pictures(50, 32), np.arange(50) % 10
    for batch in range(5):
        content = b"".join(
            bytes([labels[row]]) + images[row].tobytes()
            for row in range(10 * batch, 10 * batch + 10)
        )
        (folder / f"data_batch_{batch + 1}.bin").write_bytes(content)
    test = pictures(10, 32), np.arange(10)[::-1]
    content = b"".join(bytes([label]) + image.tobytes() for image, label in zip(*test, strict=True))
    (folder / "test_batch.bin").write_bytes(content)
    return {"train": (images, labels), "test": test}


def write_cifar100(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write cifar-100-binary, whose records have a coarse and a fine label."""
    (folder / "fine_label_names.txt").write_text("".join(f"class_{n}\n" for n in range(100)))
    (folder / "coarse_label_names.txt").write_text("".join(f"group_{n}\n" for n in range(20)))
    splits = {}
    for split, count in (("train", 200), ("test", 100)):
        images, labels = pictures(count, 32), np.arange(count) % 100
        content = b"".join(
            bytes([label // 5, label]) + image.tobytes()
            for image, label in zip(images, labels, strict=True)
        )
        (folder / f"{split}.bin").write_bytes(content)
        splits[split] = images, labels
    return splits


def write_stl10(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write stl10_binary: every plane column by column, labels from 1."""
    (folder / "class_names.txt").write_text("\n".join(f"class_{n}" for n in range(10)) + "\n")
    (folder / "fold_indices.txt").write_text("0 1 2 \n")
    splits = {}
    for split, count in (("train", 20), ("test", 10), ("unlabeled", 30)):
        images, labels = pictures(count, 96), np.arange(count) % 10
        planes = [plane.tobytes(order="F") for image in images for plane in image]
        (folder / f"{split}_X.bin").write_bytes(b"".join(planes))
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes(int(label) + 1 for label in labels))
        splits[split] = images, labels
    return splits


WRITERS: dict[str, Callable] = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "stl10": write_stl10,
}
Made = tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]


@pytest.fixture(params=sorted(WRITERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def made(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Write the set's folder, let its variable name it, and return it with what was written."""
    folder = tmp_path / "unpacked" / ARCHIVES[name].folder
    folder.mkdir(parents=True)
    splits = WRITERS[name](folder)
    monkeypatch.setenv(ARCHIVES[name].variable, str(folder))
    return folder, splits


def load(name: str, **options) -> data.Dataset:
    return data.load(name, image_size=SIDES[name], **options)


def refusal(name: str) -> str:
    with pytest.raises(UserError) as raised:
        load(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_images_and_labels_are_those_of_the_files(name: str, made: Made) -> None:
    _, splits = made

    dataset = load(name)

    assert set(dataset.images) == set(splits)
    for key, (images, labels) in splits.items():
        assert np.array_equal(dataset.images[key], images)
        if key != "unlabeled":
            assert np.array_equal(dataset.labels[key], labels)
    assert len(dataset.class_names) == (100 if name == "cifar100" else 10)
    assert dataset.licence
    assert dataset.source.startswith("https://")
    assert made[0] in dataset.places


def test_torchvision_reads_the_same_stl10(tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    write_stl10(folder)
    monkeypatch.setenv("BENCH_STL10", str(tmp_path))
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)

    dataset = load("stl10")

    for split in ("train", "test", "unlabeled"):
        reference = STL10(tmp_path, split=split)
        assert np.array_equal(dataset.images[split], reference.data)
        if split != "unlabeled":
            assert np.array_equal(dataset.labels[split], reference.labels)


def test_the_folder_above_may_be_named(name: str, made: Made, monkeypatch) -> None:
    folder, _ = made
    before = load(name)

    monkeypatch.setenv(ARCHIVES[name].variable, str(folder.parent))

    assert load(name).sha256 == before.sha256


def test_the_doctor_says_how_a_set_can_be_had(name: str, made: Made, monkeypatch) -> None:
    folder, _ = made
    variable = ARCHIVES[name].variable
    assert data.STATES[name]() == f"available in {folder}"

    monkeypatch.setenv(variable, str(folder / "none"))
    assert "lacks" in data.STATES[name]()

    monkeypatch.delenv(variable)
    assert variable in data.STATES[name]()
    assert set(data.STATES) | {"digits"} <= set(inventory._data())


def test_a_missing_file_is_named(name: str, made: Made) -> None:
    folder, _ = made
    for file in ARCHIVES[name].files:
        kept = (folder / file).read_bytes()
        (folder / file).unlink()

        line = refusal(name)

        assert file in line
        assert ARCHIVES[name].variable in line
        (folder / file).write_bytes(kept)
    assert load(name)


def test_truncated_empty_and_foreign_files_are_named(name: str, made: Made) -> None:
    folder, _ = made
    for file in ARCHIVES[name].files:
        kept = (folder / file).read_bytes()
        damages = [b"", b"not data"] if file.endswith(".txt") else [b"", kept[:-1], b"not data"]
        for damaged in damages:
            (folder / file).write_bytes(damaged)
            assert file in refusal(name), damaged[:20]
        (folder / file).write_bytes(kept)
    assert load(name)


def test_labels_out_of_range_are_refused(tmp_path: Path, monkeypatch) -> None:
    for name, file, at, value in (
        ("cifar10", "data_batch_3.bin", 0, 10),
        ("cifar100", "train.bin", 1, 100),
        ("stl10", "train_y.bin", 4, 0),
        ("stl10", "test_y.bin", 4, 11),
    ):
        folder = tmp_path / f"{name}-{value}"
        folder.mkdir()
        WRITERS[name](folder)
        content = bytearray((folder / file).read_bytes())
        content[at] = value
        (folder / file).write_bytes(content)
        monkeypatch.setenv(ARCHIVES[name].variable, str(folder))

        line = refusal(name)

        assert f"label {value}" in line
        assert file in line


def test_test_files_are_not_read_without_test(name: str, made: Made) -> None:
    folder, _ = made
    before = load(name)
    for path in folder.glob("test*"):
        path.write_bytes(b"?")

    assert load(name, test=False).sha256 == before.sha256


@pytest.fixture
def served(name: str, made: Made, tmp_path: Path, monkeypatch) -> Path:
    """Pack the folder as its publisher does and put it where the downloads come from."""
    folder, _ = made
    packed = tmp_path / ARCHIVES[name].file_name
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, f"./{folder.name}" if name == "stl10" else folder.name)
    monkeypatch.delenv(ARCHIVES[name].variable)
    archive = dataclasses.replace(
        ARCHIVES[name], url=packed.as_uri(), md5=hashlib.md5(packed.read_bytes()).hexdigest()
    )
    monkeypatch.setattr(stl10 if name == "stl10" else cifar, name.upper(), archive)
    return packed


def test_archives_are_downloaded_once(name: str, made: Made, served: Path, own_cache: Path) -> None:
    first = load(name)
    served.unlink()

    second = load(name)

    assert np.array_equal(first.images["train"], made[1]["train"][0])
    assert second.sha256 == first.sha256
    kept = own_cache / "archives" / ARCHIVES[name].folder
    assert sorted(p.name for p in kept.iterdir()) == sorted(p.name for p in made[0].iterdir())
    assert inventory._data()[name].startswith("available in ")


@pytest.mark.parametrize("fault", ["absent", "md5", "short", "other"])
def test_a_failed_download_is_one_line_and_leaves_nothing(
    fault: str, name: str, served: Path, own_cache: Path, monkeypatch
) -> None:
    module = stl10 if name == "stl10" else cifar
    archive = getattr(module, name.upper())
    if fault == "absent":
        served.unlink()
    elif fault == "md5":
        served.write_bytes(served.read_bytes() + b"\0")
    else:  # the right sum of what is no whole archive, or of another one
        if fault == "short":
            served.write_bytes(served.read_bytes()[:3000])
        else:
            with tarfile.open(served, "w:gz") as other:
                other.add(Path(__file__), "elsewhere/data.bin")
        md5 = hashlib.md5(served.read_bytes()).hexdigest()
        monkeypatch.setattr(module, name.upper(), dataclasses.replace(archive, md5=md5))

    line = refusal(name)

    assert f"cannot download {name}" in line
    assert archive.variable in line
    assert [path for path in (own_cache / "archives").iterdir() if path.is_dir()] == []


def test_members_outside_the_archives_folder_are_not_written(tmp_path: Path) -> None:
    packed, folder = tmp_path / "evil.tar.gz", tmp_path / "place" / "inside"
    folder.mkdir(parents=True)
    with tarfile.open(packed, "w:gz") as archive:
        for member in ("top/../../../escaped", "/top/absolute", "top", "other/file", "top/good"):
            archive.addfile(tarfile.TarInfo(member))
        link = tarfile.TarInfo("top/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)

    archives._unpack(packed, "top", folder)

    written = [path for path in tmp_path.rglob("*") if not path.is_dir() and path != packed]
    assert written == [folder / "good"]


def test_progress_is_said_now_and_then_in_units(monkeypatch) -> None:
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines: list[str] = []
    counted = progress.Progress(lines.append, "downloading", 3_000_000_000, "MB", 10**6)

    for _ in range(3):
        counted.advance(500_000_000)

    assert lines == ["downloading: 1,000 of 3,000 MB"]
