"""One run, one JSON file: result schema 1, written atomically, refused when damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, first_fault
from bench.files import write_atomically
from bench.identity import digest

SCHEMA = 1
TERMINAL = ("done", "unsupported", "diverged", "invalid")  # skipped the next time
SAMPLES = "samples-"  # how an artifact of drawn images begins
TRACK_FILE = "track.json"  # what a results folder says of its track; no result

Status = Literal["done", "unsupported", "diverged", "invalid", "failed", "timeout", "out_of_memory"]
Name = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=200)]


class _Part(BaseModel):
    """Known keys only, finite numbers only."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Row(_Part):
    """What the board says of the run's row beside its numbers."""

    variant: str = ""
    origin: Literal["installed", "local", "floor", "external"] = "installed"
    title: str = ""
    paper: str = ""
    family: str = ""
    role: Literal["method", "floor", "ceiling"] = "method"
    departs: str = "nothing"
    uses_labels: bool = False
    input: str = "rgb"
    tuning: str = "0"
    recipe: str = ""
    notes: list[str] = []


class Code(_Part):
    """The code that trained; a row is stale when it is not today's."""

    plugin_sha256: str = ""
    distribution: str = ""
    version: str = ""
    engine: int


class Artifact(_Part):
    """A file that the run left in its folder."""

    sha256: str
    bytes: int


class Cost(_Part):
    """What the run took. Seconds are wall seconds; 0 where nothing was measured."""

    train_seconds: float = 0.0
    images_per_second: float = 0.0
    peak_memory_gib: float = 0.0
    passes_with_grad: float = 0.0
    passes_without_grad: float = 0.0
    parameters: int = 0
    wall_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    sampling_seconds: float = 0.0  # of drawing the images that protocols over samples ask for


class Machine(_Part):
    """Where the run ran."""

    device: str = ""
    processor: str = ""
    cores: int = 0
    torch: str = ""
    timm: str = ""
    python: str = ""
    threads: int = 1
    processes: int = 1


class Data(_Part):
    """The images that the run saw and was judged on."""

    duplicates_train_test: int = 0
    near_duplicates_train_test: int = 0  # within 4 bits of a 64-bit difference hash, copies too
    train_images: int = 0
    validation_images: int = 0
    test_images: int = 0
    skipped: list[str] = []
    class_counts_test: list[int] = []


class Losses(_Part):
    """Mean loss of the first and of the last part of training; None without a loss."""

    first: float | None = None
    last: float | None = None


class EvaluationEntry(_Part):
    """A protocol's outcome. `metrics` and `validation` are in percent where they are accuracies.

    `predictions`, `correct` and `shares` hold packed values (`bench.packing`) per test image.
    `shares` has, for a metric that is a mean over draws, in how many of its `draws` each was right.
    """

    id: str
    version: int
    settings: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    validation: dict[str, float] = {}
    metrics: dict[str, float] = {}
    predictions: dict[str, str] = {}
    correct: dict[str, str] = {}
    shares: dict[str, str] = {}
    draws: dict[str, Annotated[int, Field(ge=1, le=255)]] = {}
    test_reads: int = 1
    seconds: float = 0.0
    stamps: list[str] = []


class Result(_Part):
    """A run's result. `content_sha256` is filled in by `write`."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    run_id: Name
    track: Name
    spec: dict[str, Any]
    status: Status
    reason: str = ""
    row: Row = Row()
    code: Code
    artifacts: dict[str, Artifact] = {}
    cost: Cost = Cost()
    machine: Machine = Machine()
    attempts: int = 1
    data: Data = Data()
    health: dict[str, Any] = {}
    losses: Losses = Losses()
    evaluations: dict[str, EvaluationEntry] = {}
    content_sha256: str = ""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )

    @property
    def method(self) -> str:
        """Return the method's name."""
        return str(self.spec["method"])

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return int(self.spec["seed"])

    def document(self) -> dict[str, Any]:
        """Return the JSON document, its content hash computed anew.

        What younger versions added is left out where it is empty, so that an older result that is
        written again keeps its bytes.
        """
        document = self.model_dump(mode="json", by_alias=True)
        for entry in document["evaluations"].values():
            for name in ("shares", "draws"):
                if not entry[name]:
                    del entry[name]
        if not document["cost"]["sampling_seconds"]:
            del document["cost"]["sampling_seconds"]
        document["content_sha256"] = content_sha256(document)
        return document


def content_sha256(document: dict[str, Any]) -> str:
    """Return the hash of a result document without its own hash."""
    return digest({key: value for key, value in document.items() if key != "content_sha256"})


def read(path: Path | str) -> Result:
    """Return the result in a file.

    Raises:
        UserError: the file is missing, not JSON, of another schema, altered since it was written,
            or not named `<run_id>.json` (`result.json`, in a run's own folder, is allowed).
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise UserError(f"{path}: not a result file: {error}") from error
    try:
        result = parse(document)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if path.name not in (f"{result.run_id}.json", "result.json"):
        raise UserError(f"{path}: holds the run {result.run_id}, expected {result.run_id}.json")
    return result


def parse(document: Any) -> Result:
    """Return the result that a JSON document holds.

    Raises:
        UserError: as for `read`.
    """
    if not isinstance(document, dict):
        raise UserError(f"expected a JSON object, got {type(document).__name__}")
    schema = document.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise UserError(
            f"has result schema {schema!r}, this version reads {SCHEMA}; "
            "render it with the version that wrote it, or run again"
        )
    try:
        found = content_sha256(document)
    except (TypeError, ValueError) as error:
        raise UserError(f"not a result: {error}") from error
    if document.get("content_sha256") != found:
        raise UserError("altered since it was written: content_sha256 does not match; run it again")
    try:
        result = Result.model_validate(document)
    except ValidationError as error:
        raise UserError(f"not a result of schema {SCHEMA}: {first_fault(error)}") from error
    method, seed = result.spec.get("method"), result.spec.get("seed")
    if not isinstance(method, str) or not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"spec needs a method and a whole seed, got {method!r} and {seed!r}")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def write(path: Path | str, result: Result) -> None:
    """Write a result so that a reader, or a crash, sees the old file or the new one, whole."""
    document = json.dumps(
        result.document(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    write_text(Path(path), document + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text, atomically and durably; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def add_evaluation(path: Path | str, protocol_hash: str, entry: EvaluationEntry) -> Result:
    """Add, or replace, one evaluation in a result file; return the new result."""
    result = read(path)
    evaluations = {**result.evaluations, protocol_hash: entry}
    changed = result.model_copy(update={"evaluations": evaluations})
    write(path, changed)
    return read(path)


def read_all(folder: Path | str) -> tuple[list[Result], list[str]]:
    """Return a folder's results by run id, and one line for each file that is none.

    Hidden files and the track's own are passed over. A missing folder has no results.
    """
    folder = Path(folder)
    results, problems = [], []
    paths = sorted(folder.iterdir(), key=lambda path: path.name) if folder.is_dir() else []
    for path in paths:
        if path.name == TRACK_FILE or path.name.startswith("."):
            continue
        if path.suffix != ".json" or not path.is_file():
            problems.append(f"{path.name}: not a result file")
            continue
        try:
            results.append(read(path))
        except UserError as error:
            problems.append(str(error).replace(f"{path}: ", f"{path.name}: ", 1))
    return sorted(results, key=lambda result: result.run_id), problems


def group(result: Result) -> str:
    """Return what a run shares with its other seeds: 10 hex digits over its spec without them."""
    return spec_group(result.spec)


def spec_group(spec: Mapping[str, Any]) -> str:
    """Return `group` of a run's spec."""
    shared = {key: value for key, value in spec.items() if key != "seed"}
    if isinstance(shared.get("data"), dict):  # the split follows the seed
        shared["data"] = {key: value for key, value in shared["data"].items() if key != "split"}
    return digest(shared)[:10]


def path_of_run(orders: Mapping[str, Any], run_id: str, runs_dir: Path) -> Path:
    """Return a finished run's result file: among one's boards, else where its last orders put it.

    A run's folder is shared by boards, studies and `--dev`; the orders are of whoever came last.

    Raises:
        UserError: there is none, there are several, or it is one that never opened the test split.
    """
    named = Path(orders["results"]) / f"{run_id}.json"
    found = sorted((runs_dir / "results").glob(f"*/{run_id}.json"))
    if named.resolve() in [path.resolve() for path in found]:
        return named
    if len(found) > 1:
        raise UserError(
            f"{run_id} stands on several boards; name one of {', '.join(map(str, found))}"
        )
    if found:
        return found[0]
    if orders.get("dev"):
        raise UserError(
            f"{run_id} is a run of --dev or a trial, whose test split stays closed; `bench run` "
            "without --dev makes its result"
        )
    if not named.exists():
        raise UserError(f"{run_id} has no result yet; `bench run` finishes it")
    return named


def replaced(target: Path) -> Path:
    """Return where a result lies while its run is made anew."""
    return target.parent / ".replaced" / target.name
