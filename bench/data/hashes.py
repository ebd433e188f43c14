"""Hashes of splits and of files, and which files need not be hashed again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.data.progress import Progress
from bench.files import write_atomically
from bench.identity import canonical_json

HASHED_BYTES = 64 * 2**20  # of an array that may lie on disk, read at a time
SETTLED_SECONDS = 2.0  # a younger file may change again within one tick of its clock


def split_sha256(
    images: np.ndarray, labels: np.ndarray | None, say: Callable[[str], None] = lambda line: None
) -> str:
    """Return the hash over shapes and bytes of one split.

    Args:
        images: uint8 (N, C, H, W).
        labels: integers (N,) or None.
        say: takes a line every ten seconds.
    """
    head = {"images": images.shape, "labels": None if labels is None else labels.shape}
    sha256 = hashlib.sha256(canonical_json(head).encode())
    rows = max(1, HASHED_BYTES // images[0].size)
    progress = Progress(say, "hashing", len(images), "images")
    for first in range(0, len(images), rows):
        part = np.ascontiguousarray(images[first : first + rows])
        sha256.update(part)
        progress.advance(len(part))
    if labels is not None:
        sha256.update(labels.astype("<i8").tobytes())
    return sha256.hexdigest()


class Hashes:
    """Hashes of files by name, remembered while a file's size and times stay what they were.

    A file is known again by its size, the time of its last change and that of its inode, which no
    program can set back. A file that had changed within two seconds before it was hashed is not
    remembered: it could change once more without its times showing it.

    Args:
        file: where they are remembered, a JSON list per line. What is there but cannot be read
            counts as nothing.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, tuple[tuple[int, ...], str]] = {}
        self.seen: dict[str, tuple[tuple[int, ...], str]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, UnicodeDecodeError):
            for line in file.read_text(encoding="ascii").splitlines():
                name, *stamp, sha256 = json.loads(line)
                self.known[name] = (tuple(stamp), sha256)

    def of(self, name: str, path: Path, compute: Callable[[], str]) -> str:
        """Return the hash that `path` had when its times were what they are, else `compute()`."""
        now = time.time_ns()
        try:
            status = path.stat()
        except OSError:
            return compute()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        remembered, sha256 = self.known.get(name, ((), ""))
        if remembered != stamp:
            sha256 = compute()
        if remembered == stamp or max(stamp[1:]) < now - SETTLED_SECONDS * 1e9:
            self.seen[name] = (stamp, sha256)
        return sha256

    def save(self) -> None:
        """Remember what was seen, and only that; where it cannot be written, nothing."""
        if self.seen == self.known:
            return
        lines = [json.dumps([name, *stamp, sha256]) for name, (stamp, sha256) in self.seen.items()]
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, "".join(f"{line}\n" for line in lines).encode("ascii"))
