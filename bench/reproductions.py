"""The record of runs that were trained again, `reproduced.jsonl`: one JSON line each."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, first_fault
from bench.files import write_atomically
from bench.results import Machine

if TYPE_CHECKING:
    from bench.results import Result
    from bench.rows import TableRow

FILE = "reproduced.jsonl"
SHOWN = {"bytes": "bytes", "interval": "interval", "outside": "**not reproduced**"}


class Record(BaseModel):
    """One reproduction.

    Attributes:
        date: the day in UTC, YYYY-MM-DD.
        verdict: "bytes": the same backbone and the same numbers; "interval": other bytes, all
            numbers inside the published interval of one run; "outside": neither.
        published: sha256 of the backbone that was to be reproduced; "" where nothing trains.
        backbone: sha256 of the one that came out; "" where none did.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    run_id: str
    track: str
    verdict: Literal["bytes", "interval", "outside"]
    published: str
    backbone: str
    machine: Machine
    version: str


def backbone_sha256(result: Result) -> str:
    """Return the hash of a run's backbone, "" without one."""
    artifact = result.artifacts.get("backbone.safetensors")
    return artifact.sha256 if artifact else ""


def read(leaderboards_dir: Path) -> list[Record]:
    """Return the records beside the boards, in the order of the file; none without a file.

    Raises:
        UserError: a line is no record.
    """
    path = leaderboards_dir / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            reason = first_fault(error)
            raise UserError(
                f"{path}, line {number}: no record of a reproduction: {reason}; remove the line"
            ) from None
    return records


def append(leaderboards_dir: Path, record: Record) -> Path:
    """Add a record as the file's last line; a reader sees it whole or not at all.

    Raises:
        UserError: the file holds a line that is no record.
    """
    folder = os.open(leaderboards_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        records = [*read(leaderboards_dir), record]
        text = "".join(f"{json.dumps(r.model_dump(), sort_keys=True)}\n" for r in records)
        write_atomically(leaderboards_dir / FILE, text.encode())
    finally:
        os.close(folder)
    return leaderboards_dir / FILE


def cells(rows: Iterable[TableRow], records: Sequence[Record]) -> Mapping[str, str]:
    """Return row's key -> day and verdict of the latest reproduction of one of its runs.

    A record counts for the very backbone that the row shows: a run that was published anew, by
    other code, has not been reproduced yet.
    """
    shown = {}
    for row in rows:
        hashes = {(result.run_id, backbone_sha256(result)) for result in row.results}
        known = [r for r in records if r.track == row.first.track]
        known = [r for r in known if (r.run_id, r.published) in hashes]
        if known:
            latest = max(enumerate(known), key=lambda item: (item[1].date, item[0]))[1]
            shown[row.key] = f"{latest.date}, {SHOWN[latest.verdict]}"
    return shown
