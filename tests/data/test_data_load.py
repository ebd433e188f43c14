"""`bench.data.load`: names, the unread test split, hashes, facts."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from bench import data
from bench.data.source import Part, Request, Source
from bench.errors import UnknownName, UserError


def test_digits_are_sixteenths_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits", image_size=8)

    values = np.concatenate([digits.images["train"], digits.images["test"]])
    assert values.dtype == np.uint8
    assert values.shape == (1797, 1, 8, 8)
    assert len(digits.images["test"]) == 500
    # A byte is the nearest to 255/16 of the value, so it is within half of it.
    assert np.abs(values[:, 0] - load_digits().images * 255 / 16).max() <= 0.5
    labels = np.concatenate([digits.labels["train"], digits.labels["test"]])
    assert np.array_equal(labels, load_digits().target)


def test_images_become_square_of_the_asked_size() -> None:
    digits = data.load("digits", image_size=32)

    assert digits.images["train"].shape == (1297, 1, 32, 32)
    assert digits.images["test"].shape == (500, 1, 32, 32)


def sentinel(request: Request) -> Source:
    def opened() -> Part:
        raise AssertionError("the test split was opened")

    images = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 1, 3, 3)
    return Source(
        splits={"train": lambda: Part(images, np.array([0, 1, 0, 1])), "test": opened},
        class_names=("a", "b"),
        licence="none",
        source="this test",
    )


def test_test_split_is_never_opened_without_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.NAMED, "sentinel", sentinel)

    dataset = data.load("sentinel", image_size=3, test=False)

    assert set(dataset.images) == set(dataset.labels) == {"train"}
    with pytest.raises(AssertionError, match="was opened"):
        data.load("sentinel", image_size=3, test=True)


def test_sha256_does_not_depend_on_reading_the_test_split() -> None:
    without = data.load("digits", image_size=8, test=False)
    with_test = data.load("digits", image_size=8)

    assert without.sha256 == with_test.sha256
    assert without.test_sha256 == ""
    assert len(with_test.test_sha256) == 64


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_val", "y_val", "x_unlabeled"])
def test_sha256_changes_with_every_split_but_test(key, arrays, write_npz) -> None:
    arrays |= {"x_val": arrays["x_test"].copy(), "y_val": arrays["y_test"].copy()}
    arrays |= {"x_unlabeled": arrays["x_test"].copy()}
    before = data.load(write_npz(arrays), image_size=8)
    arrays[key].flat[:2] = arrays[key].flat[1::-1]  # the first two values change places

    after = data.load(write_npz(arrays), image_size=8)

    assert after.sha256 != before.sha256
    assert after.test_sha256 == before.test_sha256


@pytest.mark.parametrize("key", ["x_test", "y_test"])
def test_test_sha256_changes_with_the_test_split_alone(key, arrays, write_npz) -> None:
    before = data.load(write_npz(arrays), image_size=8)
    arrays[key].flat[:2] = arrays[key].flat[1::-1]

    after = data.load(write_npz(arrays), image_size=8)

    assert after.sha256 == before.sha256
    assert after.test_sha256 != before.test_sha256


def test_sha256_changes_with_class_names(arrays, write_npz) -> None:
    plain = data.load(write_npz(arrays), image_size=8)
    named = data.load(write_npz(arrays | {"class_names": np.array(["a", "b", "c"])}), image_size=8)

    assert plain.sha256 != named.sha256


def test_facts_are_json_and_say_the_sizes() -> None:
    facts = data.facts(data.load("digits", image_size=16))

    assert json.loads(json.dumps(facts)) == facts
    assert facts["sizes"] == {"train": 1297, "test": 500}
    assert (facts["image_size"], facts["channels"], facts["classes"]) == (16, 1, 10)
    assert facts["class_names"] == list("0123456789")
    assert facts["licence"]
    assert facts["source"]


KIND_NAMES = [f"{kind}:PATH" for kind in data.KINDS]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digts", "did you mean digits"),
        ("fashion_mnist", "did you mean fashion-mnist"),
        ("zzz", f"known: {', '.join(sorted([*data.NAMED, *KIND_NAMES]))}"),
        ("", "known: cifar10"),
        ("imagefoldr:/tmp", "did you mean imagefolder"),
        ("a\nb", "known: cifar10"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UnknownName) as raised:
        data.load(name, image_size=8)

    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["npz", "npz:", "imagefolder", "imagefolder:"])
def test_a_kind_without_path_says_how_to_write_it(name: str) -> None:
    with pytest.raises(UserError, match=f"write {name.rstrip(':')}:PATH"):
        data.load(name, image_size=8)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "32", 10**6])
def test_image_sizes_that_cannot_be_are_refused(size) -> None:
    with pytest.raises(UserError, match="image size"):
        data.load("digits", image_size=size)


def test_unknown_way_with_bad_images_is_refused() -> None:
    with pytest.raises(UserError, match="'error' or 'skip'"):
        data.load("digits", image_size=8, on_bad_image="ignore")


def test_an_unreadable_source_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Request) -> Source:
        raise PermissionError(13, "Permission denied", "/data/secret")

    monkeypatch.setitem(data.NAMED, "locked", refuse)

    with pytest.raises(UserError, match=r"'locked' cannot be read .*Permission denied"):
        data.load("locked", image_size=8)


def test_loading_imports_no_torch() -> None:
    code = (
        "import sys; from bench import data; d = data.load('digits', image_size=32);"
        "data.split(d, 0); print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
