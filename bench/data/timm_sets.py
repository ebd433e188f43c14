"""Data sets by timm's `create_dataset` names, `timm:NAME?KEY=VALUE&...`.

Names:   torch/, hfds/, hfids/, tfds/ or wds/ and what timm's readers take: `timm:hfds/mnist`,
         `timm:wds/imagenet?root=/data/shards`. Hugging Face's datasets, webdataset and
         tensorflow_datasets are extras of this package; whatever they fetch, they fetch.
Keys:    root (a folder: of shards, or for downloads), train, test and val (splits; "train", "test"
         and none by default), input_key and target_key (columns).
Pixels:  see `bench.data.decode`; one channel if in every training image all channels are equal.
Cache:   `timm/<key>/`: each split is decoded once, in a process of its own, since timm's readers
         run torch. What a name stands for may change at its source; what was decoded stays.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from bench.data.arrays import complete_folder, read_meta, write_meta
from bench.data.hashes import split_sha256
from bench.data.source import Part, Request, Source
from bench.errors import UnknownName, UserError
from bench.identity import digest

PACKAGES = {  # by the prefix of a name: the package, and this package's extra that has it
    "torch": ("torchvision", ""),
    "hfds": ("datasets", "hfds"),
    "hfids": ("datasets", "hfds"),
    "tfds": ("tensorflow_datasets", "tfds"),
    "wds": ("webdataset", "wds"),
}
TWO_SPLITS = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "qmnist")
DEFAULTS = {
    "root": "",
    "train": "train",
    "test": "test",
    "val": "",
    "input_key": "",
    "target_key": "",
}


def read(request: Request) -> Source:
    """Return the data set's splits; train is decoded now, the others when they are read.

    Raises:
        UserError: a key or prefix is unknown, the package that reads it is missing, or timm cannot
            read it; the message says what timm said.
    """
    name, keys = parse(request.path)
    package, extra = PACKAGES[name.partition("/")[0]]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{request.name} needs the package {package}, which is not installed; "
            f"pip install 'pretrain-bench[{extra}]'"
        )
    train, meta = _decoded(request, name, keys, "train", None)
    gray = train.images.shape[1] == 1

    def reader(key: str) -> Callable[[], Part]:
        return lambda: _decoded(request, name, keys, key, gray)[0]

    splits = {"train": lambda: train, "test": reader("test")}
    if keys["val"]:
        splits["val"] = reader("val")
    classes = meta["classes"] or [str(label) for label in range(int(train.labels.max()) + 1)]
    places = (Path(keys["root"]).expanduser(),) if keys["root"] else ()
    return Source(
        splits=splits,
        class_names=tuple(classes),
        licence="unknown",
        source=f"timm's {name}",
        places=places,
    )


def parse(path: str) -> tuple[str, dict[str, str]]:
    """Return the name and all keys of what follows `timm:`.

    Raises:
        UserError: another prefix than timm's, or an unknown or repeated key.
    """
    name, _, query = path.partition("?")
    prefix, _, rest = name.partition("/")
    given = f"data set {f'timm:{path}'!r}"
    if prefix in ("folder", "torch") and rest in ("", "folder", "image_folder"):
        raise UserError(f"{given}: a folder of images is read as imagefolder:PATH")
    if prefix not in PACKAGES or not rest:
        raise UserError(
            f"{given}: expected timm:PREFIX/NAME with a PREFIX of {', '.join(PACKAGES)}"
        )
    pairs = parse_qsl(query, keep_blank_values=True)
    keys = dict(pairs)
    for key in keys:
        if key not in DEFAULTS:
            raise UnknownName("key of a timm data set", key, list(DEFAULTS))
    whole = not query or all("=" in part for part in query.split("&"))
    if len(keys) < len(pairs) or not whole:
        raise UserError(f"{given}: expected ?KEY=VALUE&KEY=VALUE, each key once")
    _refuse_splits_that_are_none(given, name, DEFAULTS | keys)
    return name, DEFAULTS | keys


def _refuse_splits_that_are_none(given: str, name: str, keys: dict[str, str]) -> None:
    """timm gives the test images of these sets for every split that is not named "train"."""
    prefix, _, rest = name.partition("/")
    if prefix != "torch" or rest.lower() not in TWO_SPLITS:
        return
    asked = {key: keys[key] for key in ("train", "test", "val")}
    if asked != {"train": "train", "test": "test", "val": ""}:
        raise UserError(
            f"{given}: {name} has the splits train and test and no other; leave train=, test= and "
            "val= out"
        )


def _decoded(
    request: Request, name: str, keys: dict[str, str], key: str, gray: bool | None
) -> tuple[Part, dict[str, Any]]:
    """Return one split and its meta from the cache, decoding it into the cache first."""
    asked = {
        "name": name,
        "split": keys[key],
        "root": str(Path(keys["root"]).expanduser().absolute()) if keys["root"] else "",
        "input_key": keys["input_key"],
        "target_key": keys["target_key"],
        "image_size": request.image_size,
        "gray": gray,
        "skip": request.on_bad_image == "skip",
    }
    folder = request.cache_dir / "timm" / digest(asked)[:32]

    def write(folder: Path) -> None:
        downloads = asked["root"] or str(request.cache_dir / "timm" / "downloads")
        _decode(asked | {"root": downloads, "folder": str(folder)}, request)
        meta = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        images, labels = _arrays(folder)
        write_meta(folder, meta | {"sha256": split_sha256(images, labels, request.say)})

    def is_complete(folder: Path) -> bool:
        meta = read_meta(folder)
        try:
            return meta is not None and len(_arrays(folder)[0]) == meta["count"]
        except (OSError, ValueError, EOFError):
            return False

    meta = read_meta(complete_folder(folder, is_complete, write)) or {}
    images, labels = _arrays(folder)
    skipped = tuple(f"{key}/{line}" for line in meta["skipped"])
    return Part(images, labels, skipped, sha256=meta["sha256"]), meta


def _arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    return images, np.load(folder / "labels.npy", allow_pickle=False)


def _decode(asked: dict[str, Any], request: Request) -> None:
    """Decode in a process of its own, pass on what it says, and raise what it could not do."""
    reason = " ".join(_run(asked, request.say).split())
    if reason:
        raise UserError(
            f"timm cannot read split {asked['split']!r} of {request.name} ({reason[:300]}); "
            "see timm's create_dataset for names and splits"
        )


def _run(asked: dict[str, Any], say: Callable[[str], None]) -> str:
    """Run the decoding process and return why it could not do it, or ""."""
    command = [sys.executable, "-m", "bench.data.timm_decoding", json.dumps(asked)]
    refused = ""
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        for line in process.stdout:
            told = json.loads(line)
            refused = told.get("refused", "")
            if not refused:
                say(told["said"])
        process.wait()
        stderr.seek(0)
        lines = stderr.read().decode(errors="replace").strip().splitlines()
    if refused or process.returncode == 0:
        return refused
    return lines[-1] if lines else f"it ended with status {process.returncode}"
