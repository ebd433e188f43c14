"""`timm:NAME`: torchvision's sets through timm, a stand-in for Hugging Face's, and refusals.

Decoding runs in a process of its own, which takes seconds to import timm: one test shows that it
does, the others call what runs there.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import data
from bench.data import timm_decoding, timm_sets
from bench.errors import UserError
from bench.track import absolute_name, data_name

# As much of Hugging Face's package as timm's reader uses: rows with an undecoded image and a label.
STAND_IN = """
import os, pickle
from pathlib import Path

class Image:
    def __init__(self, decode): self.decode = decode

class Label:
    names = ["cat", "dog", "eel"]

class Info:
    features = {"label": Label(), "image": None}
    splits = None

class Dataset:
    info = Info()
    def __init__(self, rows): self.rows = rows
    def cast_column(self, name, kind): return self
    def __len__(self): return len(self.rows)
    def __getitem__(self, number):
        content, label = self.rows[number]
        return {"image": {"bytes": content, "path": None}, "label": label}

def load_dataset(name, split, cache_dir, **more):
    print("downloading", name)
    rows = pickle.loads(Path(os.environ["STAND_IN_ROWS"]).read_bytes())
    if split not in rows:
        raise ValueError(f"Unknown split {split!r}")
    return Dataset(rows[split])
"""


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


Rows = list[tuple[bytes, int]]


def rows(count: int, seed: int, *, gray: bool = False) -> tuple[Rows, np.ndarray]:
    """Return a split's rows, and its 8x8 pixels as (N, C, H, W)."""
    shape = (count, 8, 8) if gray else (count, 8, 8, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = [(encoded(image), number % 3) for number, image in enumerate(pixels)]
    return found, pixels[:, None] if gray else pixels.transpose(0, 3, 1, 2)


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in this process, unless a test is about the other one."""
    if "apart" not in request.fixturenames:
        monkeypatch.setattr(timm_sets, "_run", timm_decoding.attempt)


@pytest.fixture
def apart() -> None:
    """Decode in a process of its own."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Install the stand-in; give what stores splits there and returns the set's name."""
    package = tmp_path / "packages" / "datasets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    paths = [str(package.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("STAND_IN_ROWS", str(tmp_path / "rows"))
    modules = ("datasets", "timm.data.readers.reader_hfds")
    kept = {name: sys.modules.pop(name) for name in modules if name in sys.modules}

    def store(splits: dict[str, Rows]) -> str:
        (tmp_path / "rows").write_bytes(pickle.dumps(splits))
        return "timm:hfds/ada/animals"

    yield store
    for name in modules:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def load(name: str, **options) -> data.Dataset:
    return data.load(name, image_size=8, **options)


def refusal(name: str) -> str:
    with pytest.raises(UserError) as raised:
        load(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_process_of_its_own_decodes(hub, apart) -> None:
    train, pixels = rows(9, 0)

    dataset = load(hub({"train": train}), test=False)

    assert np.array_equal(dataset.images["train"], pixels)
    assert dataset.class_names == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('{\"said\": \"halfway\"}'); raise SystemExit('no more')", "no more"),
        ('print(\'{"refused": "not this one"}\'); raise SystemExit(1)', "not this one"),
        ("import os; os._exit(7)", "it ended with status 7"),
        ('print(\'{"said": "halfway"}\')', ""),
    ],
)
def test_what_that_process_says_and_dies_of_is_told(code, told, apart, monkeypatch) -> None:
    real, lines = subprocess.Popen, []
    monkeypatch.setattr(
        timm_sets.subprocess, "Popen", lambda _, **more: real([sys.executable, "-c", code], **more)
    )

    assert timm_sets._run({}, lines.append) == told

    assert lines == ["halfway"] * ("halfway" in code)


def test_hugging_faces_rows_are_decoded_once(hub, monkeypatch) -> None:
    (train, pixels), (test, unseen) = rows(9, 0), rows(6, 1)
    name = hub({"train": train, "validation": test})

    first = load(f"{name}?test=validation")
    monkeypatch.setattr(timm_sets, "_decode", lambda *_: pytest.fail("decoded again"))
    second = load(f"{name}?test=validation")

    assert np.array_equal(first.images["train"], pixels)
    assert np.array_equal(first.images["test"], unseen)
    assert first.labels["train"].tolist() == [0, 1, 2] * 3
    assert first.class_names == ("cat", "dog", "eel")
    assert isinstance(first.images["train"], np.memmap)
    assert (second.sha256, second.test_sha256) == (first.sha256, first.test_sha256)


def test_the_test_split_is_not_read_without_test_and_a_missing_one_is_named(hub) -> None:
    name = hub({"train": rows(9, 0)[0]})

    assert set(load(name, test=False).images) == {"train"}
    assert (
        "cannot read split 'test' of timm:hfds/ada/animals (ValueError: Unknown split"
        in refusal(name)
    )


def test_gray_training_images_give_one_channel_everywhere(hub) -> None:
    (train, pixels), (test, colour) = rows(9, 0, gray=True), rows(6, 1)

    dataset = load(hub({"train": train, "test": test}))

    assert np.array_equal(dataset.images["train"], pixels)
    assert dataset.images["test"].shape == (6, 1, 8, 8)
    reference = np.asarray(Image.fromarray(colour[0].transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(dataset.images["test"][0, 0], reference)


def test_a_broken_image_is_named_or_skipped_never_replaced(hub) -> None:
    """timm's own data set would silently show the next image under this one's number."""
    train, pixels = rows(9, 0)
    train[4] = (train[4][0][:60], 1)
    name = hub({"train": train, "test": rows(6, 1)[0]})

    assert "image 4" in refusal(name)

    dataset = load(name, on_bad_image="skip")
    assert np.array_equal(dataset.images["train"], np.delete(pixels, 4, axis=0))
    assert [line.partition(":")[0] for line in dataset.skipped] == ["train/image 4"]


def test_labels_that_number_no_class_are_refused(hub) -> None:
    for label in (-1, 0.5, None, True):
        train = rows(9, 0)[0]
        train[2] = (train[2][0], label)
        assert "2" in refusal(hub({"train": train}))


def test_torchvisions_sets_are_read_through_timm(fashion_folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in fashion_folder.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    ours = data.load("fashion-mnist", image_size=28)

    theirs = data.load(f"timm:torch/fashion_mnist?root={tmp_path / 'root'}", image_size=28)

    for split in ("train", "test"):
        assert np.array_equal(theirs.images[split], ours.images[split])
        assert np.array_equal(theirs.labels[split], ours.labels[split])
    assert theirs.class_names == ours.class_names
    assert tmp_path / "root" in theirs.places


def test_a_missing_package_is_one_line(monkeypatch) -> None:
    find = timm_sets.importlib.util.find_spec
    absent = ("datasets", "webdataset", "tensorflow_datasets")
    monkeypatch.setattr(
        timm_sets.importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    for prefix, package in (("hfds", "datasets"), ("wds", "webdataset"), ("hfids", "datasets")):
        line = refusal(f"timm:{prefix}/anything")
        assert f"needs the package {package}" in line
        assert "pip install 'pretrain-bench[" in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:", "lacks its path"),
        ("timm:cifar10", "expected timm:PREFIX/NAME"),
        ("timm:kaggle/cats", "expected timm:PREFIX/NAME with a PREFIX of torch, hfds"),
        ("timm:hfds/", "expected timm:PREFIX/NAME"),
        ("timm:torch/image_folder?root=/x", "imagefolder:PATH"),
        ("timm:hfds/x?rot=/x", "did you mean root"),
        ("timm:hfds/x?train", "each key once"),
        ("timm:hfds/x?train=a&train=b", "each key once"),
        ("timm:torch/cifar10?val=val", "has the splits train and test and no other"),
        ("timm:torch/MNIST?train=train[:90%25]", "has the splits train and test and no other"),
        ("timm:torch/no_such_set", "timm cannot read split 'train'"),
    ],
)
def test_names_that_cannot_be_read_are_one_line(name: str, said: str) -> None:
    assert said in refusal(name)


def test_specs_have_no_folder_of_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "timm:wds/animals?train=a&root=shards%20here&test=b"

    assert data_name(name) == "timm:wds/animals?train=a&test=b"
    assert (
        data_name("timm:wds/animals?root=x") == data_name("timm:wds/animals") == "timm:wds/animals"
    )
    _, keys = timm_sets.parse(absolute_name(name).removeprefix("timm:"))
    assert keys["root"] == str(tmp_path / "shards here")
    assert (keys["train"], keys["test"]) == ("a", "b")


class Stream:
    """What an iterable data set of timm's yields."""

    def __init__(self, *samples: tuple[Image.Image, int]) -> None:
        from torch.utils.data import IterableDataset

        class Samples(IterableDataset):
            def __iter__(self):
                return iter(samples)

        self.dataset = Samples()


def test_streams_are_decoded_until_they_end(tmp_path: Path, monkeypatch) -> None:
    pixels = rows(7, 2)[1]
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in pixels]
    stream = Stream(*((picture, number % 2) for number, picture in enumerate(pictures)))
    monkeypatch.setattr(timm_decoding, "_open", lambda asked: stream.dataset)
    monkeypatch.setattr(timm_decoding, "CHUNK", 3)
    asked = {"name": "wds/x", "split": "train", "folder": str(tmp_path), "image_size": 8}

    timm_decoding.decode(asked | {"gray": None, "skip": False}, print)

    assert np.array_equal(np.load(tmp_path / "images.npy"), pixels)
    assert np.load(tmp_path / "labels.npy").tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert not (tmp_path / "images.raw").exists()


def test_naming_the_kind_imports_no_torch() -> None:
    code = (
        "import sys; from bench.data import timm_sets, timm_decoding;"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
