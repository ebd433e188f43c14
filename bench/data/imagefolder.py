"""A folder of image files, `imagefolder:PATH`: one folder per split, in it one per class.

Splits: train/ with test/ or val/. Next to test/, val/ is the data set's own validation split; alone
it is what is reported, as ImageNet's is, and validation is set aside from train/. Of unlabeled/, if
there is one, all images count, in whatever folders: methods without labels pretrain on them.
Pixels: see `bench.data.decode`. One channel if every training image is gray, else three; the other
splits follow train.
Cache: `imagefolder/<key>/images.npy`; the key hashes class names, relative paths, file bytes and
the image size of one split. A cached array whose bytes changed is decoded again. `listings/` keeps
the files' hashes, so that a second look at a large folder reads sizes and times alone.
Names that start with a dot are not part of the data set.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.data.arrays import complete_folder, read_meta, write_meta
from bench.data.decode import BadImage, in_threads, is_colour, pixels
from bench.data.hashes import Hashes, split_sha256
from bench.data.progress import Progress
from bench.data.source import Part, Request, Source
from bench.errors import UserError
from bench.identity import file_sha256

UNLABELED, NO_CLASS = "unlabeled", -1


@dataclass(frozen=True)
class Entry:
    """One file: where it lies, its path below the root, its class (None: outside all; NO_CLASS: of
    a split without labels)."""

    path: Path
    relative: str
    label: int | None

    def __str__(self) -> str:
        return self.relative if self.relative.isprintable() else repr(self.relative)


@dataclass(frozen=True)
class Folder:
    """A folder of images and how it is read.

    Attributes:
        root: has train/ and the others.
        classes: the class folders of train/, sorted; labels number them.
        gray: whether one channel is kept.
        strict: see `bench.data.decode.pixels`.
    """

    root: Path
    classes: tuple[str, ...]
    gray: bool
    strict: bool


def read(request: Request) -> Source:
    """Return the folder's splits; train is decoded now, the others when they are read.

    Raises:
        UserError: a split or class is missing, or (with on_bad_image "error") a file is no image
            that can be used; the message names it.
    """
    root = Path(request.path).expanduser()
    return read_folder(
        request,
        root,
        licence="unknown",
        source=f"local folder {root.resolve().name!r}",
        splits=("train", "val", "test", UNLABELED),
    )


def read_folder(
    request: Request,
    root: Path,
    *,
    licence: str,
    source: str,
    name_class: Callable[[str], str] = str,
    strict: bool = True,
    splits: tuple[str, ...] = ("train", "val", "test"),
) -> Source:
    """Return the splits below `root`, as `read` does.

    Args:
        splits: the folders to look at; of others that stand there nothing is said.
        name_class: a class's name from its folder's; may raise UserError.
        strict: see `bench.data.decode.pixels`.
    """
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is no folder; expected one with train/ and test/ or val/")
    present = [name for name in splits if (root / name).is_dir()]
    if "train" not in present or not {"val", "test"} & set(present):
        raise UserError(
            f"{str(root)!r} has {', '.join(f'{name}/' for name in present) or 'no split'}; "
            "expected train/ with test/ or val/, each with one folder per class"
        )
    classes = tuple(_class_folders(root / "train"))
    names = tuple(name_class(name) for name in classes)
    entries = _entries(root, "train", classes)
    filled = {entry.label for entry in entries}
    for label, name in enumerate(classes):
        if label not in filled:
            raise UserError(f"{str(root / 'train' / name)!r} has no files; add images or remove it")
    gray = not any(entry.label is not None and is_colour(entry.path) for entry in entries)
    folder = Folder(root, classes, gray, strict)
    train = _decoded(request, folder, "train", entries)

    def reader(split: str) -> Callable[[], Part]:
        return lambda: _decoded(request, folder, split, _entries(root, split, classes))

    splits = {"train": lambda: train, "test": reader("test" if "test" in present else "val")}
    if "val" in present and "test" in present:
        splits["val"] = reader("val")
    if UNLABELED in present:
        splits[UNLABELED] = reader(UNLABELED)
    places = tuple(root / name for name in present) if _has_code(root) else (root,)
    return Source(splits=splits, class_names=names, licence=licence, source=source, places=places)


def _has_code(root: Path) -> bool:
    """Return whether the code that runs lies below, as where a project's folder is its data's: all
    of that cannot be hidden from a plugin."""
    code = (sys.prefix, sys.base_prefix, *(path for path in sys.path if path), __file__)
    whole = root.resolve()
    return any(Path(path).resolve().is_relative_to(whole) for path in code)


def _class_folders(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _entries(root: Path, split: str, classes: tuple[str, ...]) -> list[Entry]:
    """Return all files below a split's folder, sorted by the parts of their relative paths."""
    if split == UNLABELED:
        below = _files(str(root / split), split)
        entries = [Entry(Path(path), name, NO_CLASS) for path, name in below]
        if not entries:
            raise UserError(f"{str(root / split)!r} has no files; add images or remove it")
        return entries
    unseen = sorted(set(_class_folders(root / split)) - set(classes))
    if unseen:
        raise UserError(
            f"{str(root / split / unseen[0])!r} is a class that train/ lacks; "
            "use the same class folders in all splits"
        )
    labels = {name: label for label, name in enumerate(classes)}
    entries = []
    for top in sorted(os.scandir(root / split), key=lambda entry: entry.name):
        if top.name.startswith("."):
            continue
        relative = f"{split}/{top.name}"
        if top.is_dir():  # a class folder may be a link
            below = _files(top.path, relative)
            entries += [Entry(Path(path), name, labels[top.name]) for path, name in below]
        else:
            entries.append(Entry(Path(top.path), relative, None))
    if not entries:
        raise UserError(f"{str(root / split)!r} has no files; add images in one folder per class")
    return entries


def _files(folder: str, relative: str) -> Iterator[tuple[str, str]]:
    """Yield path and relative path of all files below; links to folders are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        name = f"{relative}/{entry.name}"
        if not entry.is_dir():
            yield entry.path, name
        elif not entry.is_symlink():
            yield from _files(entry.path, name)


def _decoded(request: Request, folder: Folder, split: str, entries: list[Entry]) -> Part:
    """Return one split from the cache, decoding it into the cache first if it is not there."""
    size, gray = request.image_size, folder.gray
    place = request.cache_dir / "imagefolder" / _key(request, folder, split, entries)
    shape = (1 if gray else 3, size, size)

    def decode(entry: Entry) -> np.ndarray | BadImage:
        try:
            return _pixels(entry, size, gray, folder.strict)
        except BadImage as reason:
            return reason

    def write(place: Path) -> None:
        rows = np.lib.format.open_memmap(
            place / "images.npy", mode="w+", dtype=np.uint8, shape=(len(entries), *shape)
        )
        labels, skipped = [], []
        progress = Progress(request.say, f"decoding {split}/", len(entries), "images")
        for entry, found in zip(entries, in_threads(decode, entries), strict=True):
            progress.advance()
            if isinstance(found, BadImage):
                if request.on_bad_image == "error":
                    raise _refusal(folder, f"{entry}: {found}") from found
                skipped.append(f"{entry}: {found}")
            else:
                rows[len(labels)] = found
                labels.append(entry.label)
        if not labels:
            raise UserError(
                f"{str(folder.root)!r} has no image that can be used; first {skipped[0]}"
            )
        if skipped:
            np.save(place / "kept.npy", rows[: len(labels)])
            (place / "kept.npy").replace(place / "images.npy")
        else:
            rows.flush()
        np.save(place / "labels.npy", np.array(labels, dtype=np.int64))
        meta = {
            "skipped": skipped,
            "labels_sha256": file_sha256(place / "labels.npy"),
            "sha256": _arrays_sha256(place, request),
        }
        write_meta(place, meta)

    complete_folder(place, lambda it: _is_intact(it, request), write)
    meta = read_meta(place) or {}
    skipped = tuple(meta["skipped"])
    if skipped and request.on_bad_image == "error":
        raise _refusal(folder, skipped[0])
    images = np.load(place / "images.npy", mmap_mode="r", allow_pickle=False)
    return Part(images, _labels(place), skipped, sha256=meta["sha256"])


def _key(request: Request, folder: Folder, split: str, entries: list[Entry]) -> str:
    """Return the hash over what the decoded split depends on; files are read if they are new."""
    where = hashlib.sha256(os.fsencode((folder.root / split).resolve())).hexdigest()
    hashes = Hashes(request.cache_dir / "listings" / f"{where[:16]}.jsonl")
    progress = Progress(request.say, f"looking through {split}/", len(entries), "files")

    def hashed(entry: Entry) -> str | BadImage:
        try:
            return hashes.of(
                entry.relative, entry.path, lambda: hashlib.sha256(_content(entry)).hexdigest()
            )
        except BadImage as reason:
            return reason

    head = (request.image_size, folder.gray, list(folder.classes), len(entries))
    key = hashlib.sha256(repr(head if folder.strict else (*head, "all")).encode())
    for entry, found in zip(entries, in_threads(hashed, entries), strict=True):
        progress.advance()
        key.update(entry.relative.encode("utf-8", "surrogateescape") + b"\0")
        key.update(f"{found}\0".encode() if isinstance(found, BadImage) else bytes.fromhex(found))
    hashes.save()
    return key.hexdigest()


def _refusal(folder: Folder, line: str) -> UserError:
    return UserError(
        f"bad image in {str(folder.root)!r}, {line}; repair or remove it, or leave such files out "
        "with --on-bad-image skip"
    )


def _is_intact(place: Path, request: Request) -> bool:
    """Return whether the cached arrays are those that were written, byte for byte."""
    meta = read_meta(place)
    if meta is None or "labels_sha256" not in meta:
        return False
    hashes = Hashes(place / "hashes.jsonl")
    try:
        if file_sha256(place / "labels.npy") != meta["labels_sha256"]:
            return False
        found = hashes.of("images", place / "images.npy", lambda: _arrays_sha256(place, request))
    except (OSError, ValueError, EOFError):
        return False
    if found == meta["sha256"]:
        hashes.save()
    return found == meta["sha256"]


def _arrays_sha256(place: Path, request: Request) -> str:
    images = np.load(place / "images.npy", mmap_mode="r", allow_pickle=False)
    return split_sha256(images, _labels(place), request.say)


def _labels(place: Path) -> np.ndarray | None:
    labels = np.load(place / "labels.npy", allow_pickle=False)
    return None if len(labels) and (labels == NO_CLASS).all() else labels


def _content(entry: Entry) -> bytes:
    """Return the file's bytes, or raise BadImage."""
    if not entry.path.is_file():  # opening a pipe would wait for its other end
        raise BadImage("a broken link or no regular file")
    try:
        return entry.path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error


def _pixels(entry: Entry, size: int, gray: bool, strict: bool) -> np.ndarray:
    """Return one file as uint8 (1 or 3, size, size), or raise BadImage."""
    if entry.label is None:
        raise BadImage("not in a class folder")
    return pixels(_content(entry), entry.path.suffix, size, gray=gray, strict=strict)
