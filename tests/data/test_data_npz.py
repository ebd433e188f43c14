"""`npz:PATH`: every accepted shape, and every malformed archive as one line."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import data
from bench.errors import UserError


def refusal(name: str, **options) -> str:
    """Load a data set that must be refused and return the one line that says why."""
    with pytest.raises(UserError) as raised:
        data.load(name, image_size=8, **options)
    line = str(raised.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("to_shape", "channels"),
    [
        (lambda x: x[..., 0], 1),  # (N, H, W)
        (lambda x: x[..., :1], 1),  # (N, H, W, 1)
        (lambda x: x, 3),  # (N, H, W, 3)
        (lambda x: x[..., :1].transpose(0, 3, 1, 2), 1),  # (N, 1, H, W)
        (lambda x: x.transpose(0, 3, 1, 2), 3),  # (N, 3, H, W)
    ],
)
def test_accepted_shapes_hold_the_same_pixels(to_shape, channels, arrays, write_npz) -> None:
    expected = arrays["x_train"].transpose(0, 3, 1, 2)[:, :channels]
    for key in ("x_train", "x_test"):
        arrays[key] = to_shape(arrays[key])

    dataset = data.load(write_npz(arrays), image_size=8)

    assert np.array_equal(dataset.images["train"], expected)
    assert dataset.class_names == ("0", "1", "2")


def test_optional_splits_and_names_are_read(arrays, write_npz) -> None:
    arrays |= {
        "x_val": arrays["x_test"][:5],
        "y_val": arrays["y_test"][:5].astype(np.uint8),
        "x_unlabeled": arrays["x_test"][:, :6],  # another size: resized like all
        "class_names": np.array(["cat", "dog", "eel"]),
    }

    dataset = data.load(write_npz(arrays), image_size=8)

    assert {key: images.shape for key, images in dataset.images.items()} == {
        "train": (30, 3, 8, 8),
        "test": (9, 3, 8, 8),
        "val": (5, 3, 8, 8),
        "unlabeled": (9, 3, 8, 8),
    }
    assert set(dataset.labels) == {"train", "test", "val"}
    assert dataset.labels["val"].dtype == np.int64
    assert dataset.class_names == ("cat", "dog", "eel")


MALFORMED: dict[str, tuple[Callable[[dict], dict], str]] = {
    "float images": (lambda a: {"x_train": a["x_train"] / 255}, "x_train.*float64.*uint8"),
    "int64 images": (lambda a: {"x_test": a["x_test"].astype(int)}, "x_test.*int64.*uint8"),
    "flat images": (lambda a: {"x_train": a["x_train"].reshape(30, -1)}, r"x_train.*\(30, 192\)"),
    "four channels": (
        lambda a: {"x_train": np.zeros((30, 8, 8, 4), np.uint8)},
        r"x_train.*\(30, 8, 8, 4\)",
    ),
    "ambiguous axes": (lambda a: {"x_train": np.zeros((30, 3, 8, 3), np.uint8)}, "ambiguous"),
    "no images": (lambda a: {"x_train": a["x_train"][:0], "y_train": a["y_train"][:0]}, "empty"),
    "no test images": (lambda a: {"x_test": a["x_test"][:0], "y_test": a["y_test"][:0]}, "empty"),
    "no height": (lambda a: {"x_test": a["x_test"][:, :0]}, "x_test.*empty"),
    "too few labels": (lambda a: {"y_train": a["y_train"][:29]}, "30 images but.*29 labels"),
    "too many labels": (lambda a: {"y_test": np.arange(10) % 3}, "9 images but.*10 labels"),
    "negative label": (lambda a: {"y_train": a["y_train"] - 1}, "negative label -1"),
    "negative test label": (lambda a: {"y_test": a["y_test"] - 1}, "y_test.*negative label -1"),
    "float labels": (lambda a: {"y_train": a["y_train"] / 1}, "y_train.*float64.*integers"),
    "text labels": (lambda a: {"y_train": a["y_train"].astype(str)}, "y_train.*integers"),
    "one-hot labels": (lambda a: {"y_train": np.eye(3, dtype=int)[a["y_train"]]}, r"\(30, 3\)"),
    "huge label": (lambda a: {"y_train": a["y_train"] * 2**40}, "label 2199023255552"),
    "label beyond int64": (
        lambda a: {"y_train": np.full(30, 2**64 - 1, np.uint64)},
        "label 18446744073709551615",
    ),
    "unseen test label": (lambda a: {"y_test": a["y_test"] + 1}, r"split test.*\[3\].*train"),
    "one class": (lambda a: {"y_train": 0 * a["y_train"], "y_test": 0 * a["y_test"]}, "1 class"),
    "object images": (
        lambda a: {"x_train": np.array([a["x_train"], None], dtype=object)},
        "x_train.*cannot be read",
    ),
    "object labels": (
        lambda a: {"y_train": a["y_train"].astype(object)},
        "y_train.*cannot be read",
    ),
    "object names": (
        lambda a: {"class_names": np.array(["a", "b", "c"], dtype=object)},
        "class_names.*cannot be read",
    ),
    "numbers as names": (lambda a: {"class_names": np.arange(3)}, "class_names.* is int64"),
    "too few names": (lambda a: {"class_names": np.array(["a", "b"])}, "2 names but.*label 2"),
    "equal names": (lambda a: {"class_names": np.array(["a", "b", "a"])}, "two classes named 'a'"),
    "names not UTF-8": (lambda a: {"class_names": np.array(["a", "b", "\udcff"])}, "UTF-8"),
    "gray test": (lambda a: {"x_test": a["x_test"][..., 0]}, "test.*1 channels but train has 3"),
    "gray unlabeled": (lambda a: {"x_unlabeled": a["x_test"][..., 0]}, "split unlabeled.*1 chan"),
    "half a validation": (lambda a: {"x_val": a["x_test"]}, "only one of x_val and y_val"),
    "bad validation": (
        lambda a: {"x_val": a["x_test"], "y_val": a["y_test"][:3]},
        "x_val.*9 images but y_val",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_archives_are_refused_in_one_line(case: str, arrays, write_npz) -> None:
    change, said = MALFORMED[case]

    line = refusal(write_npz(arrays | change(arrays)))

    assert re.search(said, line), line


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_key_is_named(key: str, arrays, write_npz) -> None:
    del arrays[key]

    assert f"has no {key};" in refusal(write_npz(arrays))


def test_files_that_are_no_archive_are_refused(tmp_path: Path, arrays, write_npz) -> None:
    text, empty, single = tmp_path / "text.npz", tmp_path / "empty.npz", tmp_path / "one.npy"
    text.write_text("hello")
    empty.touch()
    np.save(single, arrays["x_train"])
    cut = tmp_path / "cut.npz"
    whole = Path(write_npz(arrays).removeprefix("npz:")).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])

    for path in (text, empty, single, cut):
        assert "is no .npz archive" in refusal(f"npz:{path}")
    assert "no such file" in refusal(f"npz:{tmp_path / 'absent.npz'}")
    assert "no such file" in refusal("npz:a\0b\nc")
    assert "a folder" in refusal(f"npz:{tmp_path}")


def test_members_that_are_no_arrays_are_refused(tmp_path: Path, arrays, write_npz) -> None:
    path = Path(write_npz(arrays).removeprefix("npz:"))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for content in (b"", b"hello", b"\x93NUMPY\x01\x00\xff\xff{", members["x_train.npy"][:500]):
        with zipfile.ZipFile(path, "w") as archive:
            for name, whole in members.items():
                archive.writestr(name, content if name == "x_train.npy" else whole)

        assert "x_train" in refusal(f"npz:{path}")


def test_a_damaged_test_member_is_met_only_when_test_is_read(arrays, write_npz) -> None:
    name = write_npz(arrays)
    path = Path(name.removeprefix("npz:"))
    content = bytearray(path.read_bytes())
    at = content.index(arrays["x_test"].tobytes()[:40])
    content[at] ^= 0xFF  # the member's checksum no longer fits
    path.write_bytes(content)

    assert set(data.load(name, image_size=8, test=False).images) == {"train"}
    assert "x_test" in refusal(name)
