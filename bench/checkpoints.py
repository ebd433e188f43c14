"""Checkpoints that survive a kill at any moment: atomic, hashed, two kept.

A checkpoint is one file whose name carries its step and the sha256 of its bytes, so that content
and hash appear in one rename. A file that does not hash to its name is not used.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.errors import UserError
from bench.files import write_atomically

NAME = re.compile(r"checkpoint-(\d{9})-([0-9a-f]{64})\.pt")
KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step` and remove all but the newest two."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    name = f"checkpoint-{step:09d}-{hashlib.sha256(content).hexdigest()}.pt"
    write_atomically(folder / name, content)
    ours = found(folder)
    for _, stale in [entry for entry in ours if entry[1].name != name][KEPT - 1 :]:
        stale.unlink(missing_ok=True)
    return folder / name


def found(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the checkpoints in `folder`, newest first."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.pt"))
    return sorted(((int(m[1]), path) for m, path in matches if m), reverse=True)


def _print(text: str) -> None:
    print(text, flush=True)


def restore(
    folder: Path, identity: str, warn: Callable[[str], None] = _print
) -> dict[str, Any] | None:
    """Return the newest checkpoint of this identity that is whole, or None.

    A damaged one is said and removed, and one of another identity: it may have more steps than any
    to come, and would be taken for the newest of them.
    """
    for _, path in found(folder):
        try:
            state = read(path)
        except UserError as error:
            warn(str(error))
        except FileNotFoundError:  # another rank removed it
            continue
        else:
            if state["identity"] == identity:
                return state
            warn(f"checkpoint {path.name[:20]} is of other code, settings or processes; removed")
        path.unlink(missing_ok=True)
    return None


def read(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state, on the CPU.

    Raises:
        UserError: the name has no hash, or the bytes do not match it.
    """
    match = NAME.fullmatch(path.name)
    if not match:
        raise UserError(
            f"{path.name} is no checkpoint name; expected checkpoint-<step>-<sha256>.pt"
        )
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != match[2]:
        raise UserError(
            f"checkpoint {path.name[:20]} is damaged: its bytes hash to {actual[:10]}, its name "
            f"says {match[2][:10]}; the one before it is used"
        )
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
