"""Public archives of images: from a folder that a variable names, else downloaded once.

A download is checked against its publisher's md5 while it arrives, unpacked beside its place, and
renamed into it: the cache holds a whole data set or nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.data.arrays import complete_folder
from bench.data.progress import Progress
from bench.data.source import Request
from bench.errors import UserError
from bench.files import cache_folder

CHUNK = 2**20
SECONDS = 60  # without a byte from the server
DOWNLOAD_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    tarfile.TarError,
    http.client.HTTPException,
)


@dataclass(frozen=True)
class Archive:
    """A tar archive and what must be in it.

    Attributes:
        url, md5: as its publisher gives them.
        folder: the archive's top folder; files are named below it.
        files: what must be there, files or folders.
        variable: the environment variable that names a folder to use instead.
    """

    url: str
    md5: str
    folder: str
    files: tuple[str, ...]
    variable: str

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


def place(archive: Archive, request: Request) -> Path:
    """Return the folder with the archive's files, downloading them if they are nowhere.

    A named folder may be the archive's own or the one that it was unpacked in.

    Raises:
        UserError: the named folder lacks a file, or the download failed.
    """
    named = os.environ.get(archive.variable)
    if named:
        return _named(archive, named)
    folder = request.cache_dir / "archives" / archive.folder
    return complete_folder(
        folder, lambda it: not _absent(archive, it), lambda it: _fetch(archive, request, it)
    )


def state(archive: Archive) -> str:
    """Return in a few words how the archive can be had; nothing is read or downloaded."""
    named = os.environ.get(archive.variable)
    if not named:
        folder = cache_folder() / "archives" / archive.folder
        if not _absent(archive, folder):
            return f"available in {folder}"
        return f"downloaded at first use, or named by {archive.variable}"
    try:
        return f"available in {_named(archive, named)}"
    except UserError as error:
        return str(error)


def _named(archive: Archive, named: str) -> Path:
    top = Path(named).expanduser()
    inner = top / archive.folder
    folder = inner if inner.is_dir() else top
    absent = _absent(archive, folder)
    if absent:
        raise UserError(
            f"{archive.variable}={named!r} lacks {', '.join(absent)}; name the folder that "
            f"{archive.file_name} is unpacked in, or unset it"
        )
    return folder


def _absent(archive: Archive, folder: Path) -> list[str]:
    return [name for name in archive.files if not (folder / name).exists()]


def _fetch(archive: Archive, request: Request, folder: Path) -> None:
    """Download, check and unpack into the empty `folder`."""
    packed = folder / ".download"
    try:
        _download(archive, request, packed)
        request.say(f"unpacking {archive.file_name}")
        _unpack(packed, archive.folder, folder)
        packed.unlink()
        absent = _absent(archive, folder)
        if absent:
            raise ValueError(f"{archive.file_name} has no {', '.join(absent)}")
    except DOWNLOAD_ERRORS as error:
        if getattr(error, "errno", None) in (28, 122):  # ENOSPC, EDQUOT: say it as it is
            raise
        raise UserError(
            f"cannot download {request.name} from {archive.url} "
            f"({' '.join(str(error).split()) or type(error).__name__}); fetch "
            f"{archive.file_name} by hand, unpack it, and set {archive.variable} to its folder"
        ) from error


def _download(archive: Archive, request: Request, target: Path) -> None:
    md5 = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(archive.url, timeout=SECONDS) as answer, target.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        progress = Progress(request.say, f"downloading {archive.file_name}", total, "MB", 10**6)
        while chunk := answer.read(CHUNK):
            md5.update(chunk)
            file.write(chunk)
            progress.advance(len(chunk))
    if md5.hexdigest() != archive.md5:
        raise ValueError(f"its md5 is {md5.hexdigest()}, expected {archive.md5}")


def _unpack(packed: Path, top: str, folder: Path) -> None:
    """Write the regular files below the archive's folder `top`; links and the like are left out."""
    with tarfile.open(packed, "r:*") as archive:
        for member in archive:
            parts = [part for part in PurePosixPath(member.name).parts if part != "."]
            if not member.isfile() or parts[:1] != [top] or ".." in parts or len(parts) < 2:
                continue
            target = folder.joinpath(*parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
