"""Fashion-MNIST from a named folder, Debian's, or a download; its IDX reader."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bench import data
from bench.data import fashion_mnist
from bench.errors import UserError

TRAIN_IMAGES = "train-images-idx3-ubyte"


def refusal() -> str:
    with pytest.raises(UserError) as raised:
        data.load("fashion-mnist", image_size=28)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_named_folder_is_read(fashion_folder: Path, clothes) -> None:
    dataset = data.load("fashion-mnist", image_size=28)

    assert np.array_equal(dataset.images["train"][:, 0], clothes[TRAIN_IMAGES])
    assert np.array_equal(dataset.images["test"][:, 0], clothes["t10k-images-idx3-ubyte"])
    assert np.array_equal(dataset.labels["test"], clothes["t10k-labels-idx1-ubyte"])
    assert dataset.class_names[9] == "Ankle boot"


def test_plain_and_gzipped_files_are_the_same_data(fashion_folder: Path) -> None:
    before = data.load("fashion-mnist", image_size=32)
    for path in fashion_folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()

    after = data.load("fashion-mnist", image_size=32)

    assert (after.sha256, after.test_sha256) == (before.sha256, before.test_sha256)


def test_a_part_is_the_first_training_images_and_the_whole_test_split(
    fashion_folder: Path, tmp_path: Path, clothes, write_idx
) -> None:
    with pytest.raises(UserError, match="have 384 images; expected at least 10000"):
        data.load("fashion-mnist-10k", image_size=28)
    labels = np.arange(20_016) % 10
    images = np.resize(clothes[TRAIN_IMAGES], (len(labels), 28, 28))
    images[:, 0, :2] = np.stack([np.arange(len(labels)) // 256, np.arange(len(labels)) % 256], 1)
    write_idx(fashion_folder / TRAIN_IMAGES, images)
    write_idx(fashion_folder / "train-labels-idx1-ubyte", labels)
    for name in (TRAIN_IMAGES, "train-labels-idx1-ubyte"):
        (fashion_folder / f"{name}.gz").unlink()

    whole = data.load("fashion-mnist", image_size=28)
    for name, count in (("fashion-mnist-20k", 20_000), ("fashion-mnist-10k", 10_000)):
        part = data.load(name, image_size=28)

        assert np.array_equal(part.images["train"], whole.images["train"][:count])
        assert np.array_equal(part.labels["train"], whole.labels["train"][:count])
        assert part.test_sha256 == whole.test_sha256
        assert f"first {count:,} training images" in part.source


def test_the_rest_are_the_training_images_that_no_part_has(
    fashion_folder: Path, clothes, write_idx
) -> None:
    images = np.resize(clothes[TRAIN_IMAGES], (60_000, 28, 28))
    images[:, 0, :2] = np.stack([np.arange(60_000) // 256, np.arange(60_000) % 256], 1)
    labels = np.arange(60_000) % 10
    for name, array in ((TRAIN_IMAGES, images), ("train-labels-idx1-ubyte", labels)):
        write_idx(fashion_folder / name, array)
        (fashion_folder / f"{name}.gz").unlink()

    rest = data.load("fashion-mnist-rest", image_size=28)

    assert np.array_equal(rest.images["train"][:, 0], images[20_000:])
    assert np.array_equal(rest.labels["train"], labels[20_000:])
    assert "training images 20,000 to 60,000 and all test images" in rest.source


def test_torchvision_reads_the_same_images(fashion_folder: Path, tmp_path: Path) -> None:
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in fashion_folder.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))

    dataset = data.load("fashion-mnist", image_size=28)

    for split, train in (("train", True), ("test", False)):
        reference = FashionMNIST(tmp_path, train=train)
        assert np.array_equal(dataset.images[split][:, 0], reference.data.numpy())
        assert np.array_equal(dataset.labels[split], reference.targets.numpy())


def test_test_files_are_not_opened_without_test(fashion_folder: Path) -> None:
    (fashion_folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"not an image")

    assert len(data.load("fashion-mnist", image_size=28, test=False).images["train"]) == 384
    assert "t10k-images" in refusal()


def test_a_named_folder_without_files_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_FASHION_MNIST", str(tmp_path / "absent"))

    line = refusal()

    assert "BENCH_FASHION_MNIST" in line
    assert "t10k-labels-idx1-ubyte" in line


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:3],
        lambda content: content[:10],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\0\0\x0d" + content[3:],  # float32
        lambda content: content[:3] + b"\1" + content[4:],  # one axis
        lambda content: content[:4] + b"\xff" * 12 + content[16:],  # more images than atoms
    ],
)
def test_damaged_idx_files_are_named(damage, fashion_folder: Path) -> None:
    path = fashion_folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(gzip.compress(damage(gzip.decompress(path.read_bytes()))))

    assert TRAIN_IMAGES in refusal()


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_damaged_gzip_files_are_named(keep: int, fashion_folder: Path) -> None:
    path = fashion_folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:keep])

    assert TRAIN_IMAGES in refusal()


def test_labels_must_fit_the_images_and_the_classes(fashion_folder: Path, write_idx) -> None:
    path = fashion_folder / "train-labels-idx1-ubyte.gz"
    write_idx(path, np.zeros(383))
    assert "384 images but" in refusal()

    write_idx(path, np.full(384, 10))
    assert "label 10" in refusal()


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep requests out of the tests' output."""


@pytest.fixture
def mirror(fashion_folder: Path, tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Serve the fixture's folder as torchvision's mirror, with no other copy at hand."""
    from torchvision.datasets import FashionMNIST

    monkeypatch.delenv("BENCH_FASHION_MNIST")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "no-such-package")
    resources = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest())
        for path in sorted(fashion_folder.glob("*.gz"))
    ]
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=fashion_folder))
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    yield fashion_folder
    server.shutdown()
    serving.join()
    server.server_close()


def test_files_are_downloaded_once_into_the_cache(mirror: Path, own_cache: Path, clothes) -> None:
    first = data.load("fashion-mnist", image_size=28)
    for path in mirror.glob("*.gz"):
        path.unlink()

    second = data.load("fashion-mnist", image_size=28)

    assert np.array_equal(first.images["train"][:, 0], clothes[TRAIN_IMAGES])
    assert second.sha256 == first.sha256
    assert [path.name for path in own_cache.iterdir()] == ["fashion-mnist"]


def test_a_download_with_a_wrong_checksum_is_refused(mirror: Path, own_cache: Path) -> None:
    path = mirror / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes() + b"\0")

    line = refusal()

    assert "cannot download" in line
    assert "BENCH_FASHION_MNIST" in line
    assert not (own_cache / "fashion-mnist" / path.name).exists()


def test_an_unreachable_mirror_is_one_line(mirror: Path) -> None:
    for path in mirror.glob("*.gz"):
        path.unlink()

    assert "cannot download" in refusal()


def test_debians_package_is_used_where_it_lies(mirror: Path, monkeypatch, clothes) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", mirror)
    monkeypatch.setattr(fashion_mnist, "_download", lambda folder: pytest.fail("downloaded"))

    dataset = data.load("fashion-mnist", image_size=28)

    assert np.array_equal(dataset.images["train"][:, 0], clothes[TRAIN_IMAGES])


def test_reading_local_files_imports_no_torch(fashion_folder: Path) -> None:
    code = (
        "import sys; from bench import data; data.load('fashion-mnist', image_size=32);"
        "print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
