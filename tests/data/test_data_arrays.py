"""What pretraining is given: the right rows, complete or absent, whoever else writes."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import data
from bench.data import arrays
from bench.data.arrays import complete_folder
from bench.errors import UserError

LABELS = [0] * 20 + [1] * 20


def test_only_training_images_are_written(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(LABELS, test=[0, 1])
    split = data.split(dataset, 0)

    folder = data.materialise(dataset, split, tmp_path / "deep" / "key")

    images, labels = data.load_array(folder), data.load_array(folder, labels=True)
    assert isinstance(images, np.memmap)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.array_equal(images, dataset.images["train"][split.train])
    assert np.array_equal(labels, dataset.labels["train"][split.train])
    assert json.loads((folder / "meta.json").read_text()) == {
        "num_images": 36,
        "num_labeled": 36,
        "num_classes": 2,
        "class_names": ["0", "1"],
        "channels": 1,
        "image_size": 4,
        "data_sha256": dataset.sha256,
        "split_sha256": split.sha256,
        "mixed": True,
    }


def test_unlabeled_images_follow_with_label_minus_one(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(LABELS, unlabeled=7)
    split = data.split(dataset, 0)

    folder = data.materialise(dataset, split, tmp_path / "key")

    assert np.array_equal(data.load_array(folder)[36:], dataset.images["unlabeled"])
    assert data.load_array(folder, labels=True)[36:].tolist() == [-1] * 7


def test_methods_without_labels_pretrain_on_the_unlabeled_images(
    make_dataset, tmp_path: Path
) -> None:
    dataset = make_dataset(LABELS, unlabeled=7)
    split = data.split(dataset, 0)
    folder = data.materialise(dataset, split, tmp_path / "key")

    images, labels, meta = data.pretraining(folder, uses_labels=False)
    assert np.array_equal(images, dataset.images["unlabeled"])
    assert labels is None
    assert meta["num_classes"] == 2

    images, labels, _ = data.pretraining(folder, uses_labels=True)
    assert np.array_equal(images, dataset.images["train"][split.train])
    assert np.array_equal(labels, dataset.labels["train"][split.train])


def test_without_an_unlabeled_split_all_methods_pretrain_on_the_same(
    make_dataset, tmp_path: Path
) -> None:
    dataset = make_dataset(LABELS)
    folder = data.materialise(dataset, data.split(dataset, 0), tmp_path / "key")

    with_labels, _, _ = data.pretraining(folder, uses_labels=True)
    without, labels, _ = data.pretraining(folder, uses_labels=False)

    assert np.array_equal(without, with_labels)
    assert len(without) == 36
    assert labels is None
    (folder / "meta.json").unlink()
    with pytest.raises(UserError, match=r"has no meta\.json"):
        data.pretraining(folder, uses_labels=False)


def test_a_whole_array_on_disk_is_linked_and_a_part_is_copied(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(LABELS)
    np.save(tmp_path / "decoded.npy", dataset.images["train"])
    mapped = np.load(tmp_path / "decoded.npy", mmap_mode="r")
    everything = replace(data.split(dataset, 0), train=np.arange(40))
    expected = dataset.images["train"].copy()

    for key, images, split, linked in (
        ("whole", mapped, everything, True),
        ("part", mapped, data.split(dataset, 0), False),
        ("first", mapped[:20], replace(everything, train=np.arange(20)), False),
        ("turned", mapped[::-1], everything, False),
        ("memory", dataset.images["train"], everything, False),
    ):
        dataset = replace(dataset, images=dataset.images | {"train": images})
        folder = data.materialise(dataset, split, tmp_path / key)

        assert (folder / "images.npy").is_symlink() == linked, key
        assert np.array_equal(data.load_array(folder), images[split.train]), key
        assert data.materialise(dataset, split, folder) == folder
    assert np.array_equal(np.load(tmp_path / "decoded.npy"), expected)


def test_gathering_in_small_parts_writes_the_same(make_dataset, tmp_path, monkeypatch) -> None:
    dataset = make_dataset(LABELS, unlabeled=7)
    split = data.split(dataset, 0)
    whole = data.materialise(dataset, split, tmp_path / "whole")
    monkeypatch.setattr("bench.data.arrays.COPIED_BYTES", 3 * 16)  # three images

    parts = data.materialise(dataset, split, tmp_path / "parts")

    for name in ("images.npy", "labels.npy", "meta.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_a_complete_folder_is_reused(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(LABELS)
    split = data.split(dataset, 0)
    folder = data.materialise(dataset, split, tmp_path / "key")
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}

    data.materialise(dataset, split, folder)

    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "images missing": lambda folder: (folder / "images.npy").unlink(),
    "labels missing": lambda folder: (folder / "labels.npy").unlink(),
    "meta missing": lambda folder: (folder / "meta.json").unlink(),
    "images short": lambda folder: cut(folder / "images.npy"),
    "labels short": lambda folder: cut(folder / "labels.npy"),
    "images empty": lambda folder: (folder / "images.npy").write_bytes(b""),
    "meta no JSON": lambda folder: (folder / "meta.json").write_text("{"),
    "meta a list": lambda folder: (folder / "meta.json").write_text("[]"),
    "other data": lambda folder: (folder / "meta.json").write_text('{"data_sha256": "0"}'),
    "other type": lambda folder: np.save(folder / "images.npy", np.zeros((36, 1, 4, 4))),
    "other labels": lambda folder: np.save(folder / "labels.npy", np.zeros(35, np.int64)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_rewritten(case: str, make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(LABELS)
    split = data.split(dataset, 0)
    folder = data.materialise(dataset, split, tmp_path / "key")
    DAMAGE[case](folder)

    data.materialise(dataset, split, folder)

    assert np.array_equal(data.load_array(folder), dataset.images["train"][split.train])
    assert len(data.load_array(folder, labels=True)) == 36
    assert json.loads((folder / "meta.json").read_text())["data_sha256"] == dataset.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == [".key.lock", "key"]


def test_a_file_in_the_way_is_replaced(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(LABELS)
    (tmp_path / "key").write_text("in the way")

    folder = data.materialise(dataset, data.split(dataset, 0), tmp_path / "key")

    assert len(data.load_array(folder)) == 36


def test_what_a_killed_writer_left_is_removed(make_dataset, tmp_path: Path) -> None:
    left = tmp_path / ".key.partial"
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    dataset = make_dataset(LABELS)

    data.materialise(dataset, data.split(dataset, 0), tmp_path / "key")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".key.lock", "key"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "images.npy").write_bytes(b"half")
        raise UserError("no such image")

    with pytest.raises(UserError, match="no such image"):
        complete_folder(tmp_path / "key", lambda folder: False, write)

    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]


def test_a_place_that_cannot_be_written_is_one_line(make_dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    dataset = make_dataset(LABELS)

    with pytest.raises(UserError, match="cannot write") as raised:
        data.materialise(dataset, data.split(dataset, 0), tmp_path / "file" / "key")

    assert "\n" not in str(raised.value)


def test_missing_and_damaged_arrays_are_named(tmp_path: Path) -> None:
    (tmp_path / "images.npy").write_bytes(b"\x93NUMPY")

    with pytest.raises(UserError, match=r"images\.npy"):
        data.load_array(tmp_path)
    with pytest.raises(UserError, match=r"labels\.npy"):
        data.load_array(tmp_path, labels=True)


def write_counted(folder: Path, start, writes: Path) -> None:
    """Wait for the others, then fill the folder unless someone has; leave a trace of each write."""

    def write(partial: Path) -> None:
        (writes / str(os.getpid())).touch()
        for part in range(20):
            with (partial / "text").open("a") as file:
                file.write(f"{part}\n")

    def is_complete(folder: Path) -> bool:
        return (folder / "text").is_file()

    start.wait()
    complete_folder(folder, is_complete, write)
    if len((folder / "text").read_text().split()) != 20:
        raise RuntimeError("the folder was seen half-written")


def test_of_concurrent_writers_one_writes_and_all_see_it_complete(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writes = tmp_path / "writes"
    writes.mkdir()
    start = context.Barrier(6)
    writers = [
        context.Process(target=write_counted, args=(tmp_path / "key", start, writes))
        for _ in range(6)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=30)

    assert [writer.exitcode for writer in writers] == [0] * 6
    assert len(list(writes.iterdir())) == 1


@pytest.mark.parametrize(
    ("labels", "mixed"),
    [
        (np.arange(3000) % 10, True),
        (np.repeat(np.arange(10), 300), False),
        (np.random.default_rng(0).integers(0, 1000, 5000), True),  # 632 of 1,000 are met
        (np.repeat(np.arange(1000), 5), False),
        (np.arange(20) // 10, True),  # all of a small set
    ],
)
def test_meta_says_whether_the_first_images_are_of_all_classes(labels, mixed) -> None:
    assert arrays._is_mixed(labels) == mixed
