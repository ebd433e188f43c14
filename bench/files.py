"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return where downloads, decoded images and timed trials are kept: the environment's
    BENCH_CACHE, else ~/.cache/pretrain-bench."""
    return Path(os.environ.get("BENCH_CACHE") or "~/.cache/pretrain-bench").expanduser()


def keep_temporary_files(folder: Path) -> None:
    """Have this process and what it starts write temporary files, and code it compiles, to a
    folder. torch fixes its own place for code the first time that any process asks for it, and
    those forked later inherit that: here the fork server's, which a plugin may not write to."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "compiled" / "triton")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, whole: temp, fsync,
    rename, fsync of the folder."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
