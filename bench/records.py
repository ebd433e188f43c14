"""A study's record: which claim, as it was worded, before which runs began.

Written before the first run starts and added to before every further one, so that a claim that was
worded after its results is found out: by its hash, or by the times.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import results
from bench.claim import Claim, parse_claim
from bench.errors import UserError, first_fault
from bench.results import content_sha256, write_text

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Registered(_Part):
    """The commit in which the claim first said what it says now."""

    commit: str
    time: str


class Tuned(_Part):
    """What was chosen on validation in a cell: the mean score of each factor, in percent."""

    field: str
    scores: dict[str, float | None]
    factor: float
    value: float
    at_edge: bool


class CellRecord(_Part):
    """The runs of one method at one side of one contrast.

    Attributes:
        contrast, side: where the claim asks for it, from 0.
        runs: seed -> run id, of the results in the folder of `track`. trials: those of tuning.
        absent: the method is not installed; nothing else is filled in.
    """

    contrast: int
    side: int
    method: str
    title: str = ""
    variant: str = ""
    track: str = ""
    batch_size: int = 0
    budget: str = ""
    runs: dict[str, str] = {}
    trials: list[str] = []
    tuned: Tuned | None = None
    absent: bool = False


class Record(_Part):
    """A claim's study.

    Attributes:
        claim, claim_sha256: the claim as it is worded. begun: when the record was first written.
        registered: None outside of a repository, or where the wording was never committed.
        holds: what its numbers hold for, in words. seeds: those that every cell needs.
        protocols: {id: hash} of the evaluations that count. cells: the runs.
        observations: {contrast, from 0: [file]}.
        traces: {run or observation: the earliest sign of it}.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    claim: str
    claim_sha256: str
    begun: str
    registered: Registered | None = None
    holds: str = ""
    seeds: list[int] = []
    protocols: dict[str, str] = {}
    cells: list[CellRecord] = []
    observations: dict[str, list[str]] = {}
    traces: dict[str, str] = {}
    content_sha256: str = ""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_by_name=True)


def studies_folder(runs_dir: Path) -> Path:
    """Return where studies work."""
    return runs_dir / "studies"


def result_files(studies: Path, track: str, run_id: str) -> list[Path]:
    """Return where a study's run may lie: among its own, or on the board beside the studies."""
    folders = (studies / "results", studies.parent / "results")
    return [folder / track / f"{run_id}.json" for folder in folders]


def find_result(studies: Path, track: str, run_id: str, needed: Iterable[str] = ()) -> Path | None:
    """Return the file of a study's run, if there is one: the first that has what is needed.

    Args:
        needed: hashes of protocols.
    """
    files = [f for f in result_files(studies, track, run_id) if f.is_file()]
    wanted = set(needed)
    if len(files) > 1 and wanted:
        with contextlib.suppress(UserError):
            files.sort(key=lambda file: not wanted <= set(results.read(file).evaluations))
    return files[0] if files else None


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def path(studies: Path, claim: str) -> Path:
    """Return where a claim's record lies in a folder of studies."""
    return studies / "records" / f"{claim}.json"


def write(file: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    document = record.model_dump(mode="json", by_alias=True)
    document["content_sha256"] = content_sha256(document)
    write_text(file, json.dumps(document, indent=1, sort_keys=True) + "\n")


def read(file: Path) -> Record:
    """Return the record in a file.

    Raises:
        UserError: the file is missing, damaged, altered, or of another claim than its name.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"expected an object of schema {SCHEMA}")
        if document.get("content_sha256") != content_sha256(document):
            raise ValueError("altered since it was written; remove it and run the study again")
        record = Record.model_validate(document)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{file}: not a record of a study: {first_fault(error)}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a record of a study: {error}") from None
    if file.stem != record.claim:
        raise UserError(f"{file}: is the record of {record.claim}")
    return record


def open_record(studies: Path, claim: Claim, claim_file: Path) -> Record:
    """Return the claim's record, or a new one where none is there or the claim said otherwise."""
    file = path(studies, claim.id)
    if file.exists():
        record = read(file)
        if record.claim_sha256 == claim.sha256:
            known = record.registered or registered(claim, claim_file)
            return record.model_copy(update={"registered": known})
    return Record(
        claim=claim.id,
        claim_sha256=claim.sha256,
        begun=now(),
        registered=registered(claim, claim_file),
    )


def registered(claim: Claim, file: Path) -> Registered | None:
    """Return the oldest commit since which the file has said what it says now, by git."""
    log = _git(file.parent, "log", "--format=%H %cI", "--", file.name)
    found = None
    for line in (log or b"").decode().splitlines():
        commit, _, time = line.partition(" ")
        content = _git(file.parent, "show", f"{commit}:./{file.name}")
        try:
            then = parse_claim(content or b"", file).sha256
        except UserError:
            break
        if then != claim.sha256:
            break
        utc = datetime.fromisoformat(time).astimezone(UTC).isoformat(timespec="seconds")
        found = Registered(commit=commit[:10], time=utc)
    return found


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout


def trace(places: Iterable[Path]) -> str | None:
    """Return the time of the earliest file among files and folders' files, UTC; None if none is."""
    times = []
    for place in places:
        files = place.iterdir() if place.is_dir() else [place]
        times += [file.stat().st_mtime for file in files if file.is_file()]
    if not times:
        return None
    return datetime.fromtimestamp(min(times), UTC).isoformat(timespec="seconds")


def noted(
    record: Record, places: dict[str, list[Path]], reads: Mapping[str, str] | None = None
) -> Record:
    """Return the record with the earliest sign of each run: of its files, of its test reads, or now
    for one to come.

    Args:
        places: run -> the files and folders that are there once it has begun.
        reads: run -> when the ledger first has one of the record's protocols read for it, by
            whomever, wherever its files lie now.
    """
    reads = reads or {}
    new = {}
    for name, files in places.items():
        sign = record.traces.get(name) or trace(files) or now()
        new[name] = min(sign, reads.get(name, sign), key=_time)
    return record.model_copy(update={"traces": record.traces | new})


def first_reads(lines: Iterable[Mapping[str, Any]], protocols: Iterable[str]) -> dict[str, str]:
    """Return when the ledger's lines first have a run's test read by one of these protocols."""
    wanted, found = set(protocols), {}
    for line in lines:
        if wanted & set(line.get("protocols", ())):
            found.setdefault(line["run_id"], line["time"])
    return found


def fault(claim: Claim, record: Record) -> str:
    """Return why no verdict may rest on this record, or ""."""
    if record.claim_sha256 != claim.sha256:
        return "the claim says something else than when its runs began"
    since = record.registered.time if record.registered else record.begun
    older = sorted(name for name, time in record.traces.items() if _time(time) < _time(since))
    if older:
        more = f" and {len(older) - 1} more" if older[1:] else ""
        return f"the claim, of {since}, is younger than {older[0]}{more}"
    return ""


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
