"""The ledger of test reads: a line per evaluation on a test split, each with the last one's hash.

Nothing on a user's own disk is secret. The ledger makes visible how often a test split was looked
at: deleting a result does not delete its line, and a line that is changed or removed breaks the
chain after it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.identity import canonical_json

if TYPE_CHECKING:
    from bench.results import Result

FILE = "ledger.jsonl"
FIRST = "0" * 64  # what the first line has for the hash of a line before it
MANY_READS = 3  # configurations of one method; more are marked
KEYS = (
    "code",
    "configuration",
    "distribution",
    "method",
    "previous",
    "protocols",
    "run_id",
    "sampling",
    "seed",
    "test_sha256",
    "time",
    "track",
)
# Lines until 29 November 2026 do not say which code was run, and a day later not how was sampled.
WITHOUT_SAMPLING = tuple(key for key in KEYS if key != "sampling")
KNOWN_KEYS = (KEYS, WITHOUT_SAMPLING, WITHOUT_SAMPLING[1:])


def usual_folder() -> Path:
    """Return where boards and ledger lie if nothing else is said: BENCH_LEADERBOARDS, or here."""
    return Path(os.environ.get("BENCH_LEADERBOARDS") or "leaderboards")


def append(path: Path | str, line: Mapping[str, Any]) -> None:
    """Add a line, durably and whole, whatever other processes do at the same time.

    Args:
        line: every key of `KEYS` but `previous` and `time`, which are filled in.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            torn = b"" if content.endswith(b"\n") or not content else b"\n"
            before = content.rstrip(b"\n").rpartition(b"\n")[2]
            said = dict(line) | {
                "previous": hashlib.sha256(before).hexdigest() if before else FIRST,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            file.write(torn + canonical_json(said).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(_unwritable(path, error.strerror)) from error


def refuse_unwritable(path: Path | str) -> None:
    """Raise UserError if no line could be added: to be asked before the work, not after it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_unwritable(path, error.strerror)) from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(_unwritable(path, "no permission"))


def _unwritable(path: Path, why: str | None) -> str:
    return (
        f"the ledger {path} cannot be written ({why}); every test read leaves a line there; choose "
        "--leaderboards-dir"
    )


def read(path: Path | str) -> list[dict[str, Any]]:
    """Return the lines that can be read; none if there is no file."""
    return _parsed(Path(path))[0]


def problems(path: Path | str) -> list[str]:
    """Return one line per break of the chain; empty for a sound ledger, or for none."""
    return _parsed(Path(path))[1]


def _parsed(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], []
    lines, found, previous = [], [], FIRST
    for number, raw in enumerate(content.rstrip(b"\n").split(b"\n") if content else [], start=1):
        try:
            line = json.loads(raw)
            if not isinstance(line, dict) or tuple(sorted(line)) not in KNOWN_KEYS:
                raise ValueError("other keys than a line of the ledger has")
        except ValueError as error:
            found.append(f"{path.name} line {number}: not a line of the ledger ({error})")
        else:
            if line["previous"] != previous:
                found.append(
                    f"{path.name} line {number}: the chain is broken; the line before it was "
                    "changed, removed or added"
                )
            lines.append(line)
        previous = hashlib.sha256(raw).hexdigest()
    return lines, found


def of_run(
    *,
    track: str,
    spec: Mapping[str, Any],
    run_id: str,
    code: Mapping[str, Any],
    protocols: Iterable[str],
    settings: Iterable[Mapping[str, Any]] = (),
    test_sha256: str,
) -> dict[str, Any]:
    """Return what a run's reading of a test split puts into the ledger.

    Args:
        protocols: their hashes.
        settings: of the protocols, of which "sampling" is noted where there is one.
    """
    from bench.results import spec_group

    return {
        "code": code.get("plugin_sha256", ""),
        "configuration": spec_group(spec),
        "distribution": code.get("distribution", ""),
        "method": spec["method"],
        "protocols": sorted(protocols),
        "run_id": run_id,
        "sampling": sorted({canonical_json(s["sampling"]) for s in settings if "sampling" in s}),
        "seed": spec["seed"],
        "test_sha256": test_sha256,
        "track": track,
    }


def test_reads(lines: Iterable[Mapping[str, Any]], result: Result, track: Mapping[str, Any]) -> int:
    """Return how many configurations of a row's method were ever evaluated on this test split.

    A method is what one distribution ships under one name; the same settings of changed code are
    another configuration, and so are samples drawn in another way. The split is known by its hash,
    so a track that is changed in another place counts too; by the track's name where a page has
    none.
    """
    sha256 = track.get("test_sha256")
    owner = (result.code.distribution, result.method)
    read: dict[tuple[str, str | None], set[str]] = {}
    for line in lines:
        here = line["test_sha256"] == sha256 if sha256 else line["track"] == track["id"]
        if here and (line["distribution"], line["method"]) == owner:
            ways = read.setdefault((line["configuration"], line.get("code")), set())
            ways |= set(line.get("sampling", ()))
    told = {configuration for configuration, code in read if code is not None}
    return sum(
        max(1, len(ways))
        for (configuration, code), ways in read.items()
        if code is not None or configuration not in told
    )
