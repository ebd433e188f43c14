"""What of a working folder can be made anew, and may go: `bench clean`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = re.compile(r"checkpoint-\d{9}-[0-9a-f]{64}\.pt")


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing needs any more.

    Attributes:
        kind: "checkpoints of finished runs", "temporary files" or "copies of images and features".
    """

    path: Path
    kind: str

    @property
    def size(self) -> int:
        """Bytes."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())


def waste(runs_dir: Path) -> Iterator[Waste]:
    """Yield what may go: nothing of runs that are worked on or that a checkpoint goes on from.

    Each keeps its newest checkpoint: samples that a board or a claim asks for later start from it,
    and a backbone whose file was changed is made again from it. Copies of
    the training images, and features of images, are laid out again when a run asks for them; they
    stay while any run is worked on.
    """
    from bench.worker import is_leased

    busy = False
    for orders in sorted(runs_dir.glob("*/run.json")):
        folder = orders.parent
        if is_leased(folder):
            busy = True
            continue
        if not _is_done(folder):
            continue
        names = sorted(p.name for p in folder.glob("checkpoint-*.pt"))
        names = [name for name in names if CHECKPOINT.fullmatch(name)]
        for name in names[:-1]:
            yield Waste(folder / name, "checkpoints of finished runs")
        if (folder / "tmp").is_dir():
            yield Waste(folder / "tmp", "temporary files")
    for place in [] if busy else sorted((runs_dir / "data").glob("*/")):
        yield Waste(place, "copies of images and features")


def _is_done(folder: Path) -> bool:
    """Return whether a training ended well, and its backbone is still there."""
    try:
        outcome = json.loads((folder / "outcome.json").read_text())["outcome"]
    except (OSError, ValueError, KeyError):
        return False
    return outcome.get("status") == "done" and (folder / "backbone.safetensors").is_file()


def remove(waste: Waste) -> None:
    """Remove it."""
    if waste.path.is_dir():
        shutil.rmtree(waste.path)
    else:
        waste.path.unlink(missing_ok=True)
