"""The protocol `cost` and its results: one JSON file per cell, refused when damaged.

A cell is one method at one backbone, image size, batch, number of cards and precision, on one
machine: measured, or estimated. Derived numbers stand in the file beside the windows they come
from, and a file in which they disagree is refused.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench import timing
from bench.errors import UnknownName, UserError, first_fault
from bench.identity import digest, protocol_hash
from bench.results import Code, Machine, content_sha256, write_text
from bench.saving import Way
from bench.sources import source_sha256

SCHEMA = 1
FOLDER = "cost"
ID, VERSION = "cost", 1
SETTINGS: dict[str, Any] = {
    "windows": 5,  # measured ones of each mode; one synchronisation at each end
    "window_steps": 50,
    "cpu_window_seconds": 10.0,  # fewer steps on a CPU, never below two
    "warm_windows": 3,  # in a row that must agree
    "warm_tolerance": 0.02,  # of their median, largest less smallest
    "warm_limit": 12,  # windows; a row says where they did not agree by then
    "busy_cores": 0.1,  # of others, from which on a row says so
    "num_images": 1_281_167,  # what a method is told of the data set: ImageNet's
    "num_classes": 1000,
    "stored_mib": 64,  # of different images: uniform noise, uint8, stored at the image size
    "epochs": 200,
    "flops_steps": 10,  # counted and averaged, since players may take turns; at most a window's
}
# Dense, without sparsity, as NVIDIA's data sheets state them, in FLOP/s. At fp32 Ampere and later
# cards convolve in TF32 and multiply matrices in fp32: there is no one peak, and none is given.
PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H200": {"bf16": 989.4e12},
    "NVIDIA H100 80GB HBM3": {"bf16": 989.4e12},
    "NVIDIA A100-SXM4-40GB": {"bf16": 312e12},
    "NVIDIA A100-SXM4-80GB": {"bf16": 312e12},
    "Tesla V100-SXM2-16GB": {"fp32": 15.7e12},
    "Tesla V100-SXM2-32GB": {"fp32": 15.7e12},
}
MEASURED, ESTIMATED = "done", "estimated"
KEPT = (MEASURED, ESTIMATED, "unsupported", "out_of_memory")  # not measured anew by a second call


@dataclass(frozen=True)
class Protocol:
    """The protocol `cost` with its settings. Rows of two hashes never share a table."""

    settings: dict[str, Any]

    @property
    def hash(self) -> str:
        return protocol_hash(ID, VERSION, self.settings)


def protocol(overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Return the protocol, `overrides` taken over its own settings.

    Raises:
        UnknownName: no such setting.
        UserError: a value of another type, or one that measures nothing.
    """
    settings = dict(SETTINGS)
    for key, value in (overrides or {}).items():
        if key not in settings:
            raise UnknownName("setting of cost", key, list(settings))
        if type(value) is not type(settings[key]) or not (value > 0 and math.isfinite(value)):
            kind = type(settings[key]).__name__
            raise UserError(f"cost.{key} is {value!r}; expected a {kind} above 0")
        settings[key] = value
    return Protocol(settings)


class _Part(BaseModel):
    """Known keys of their own types only, finite numbers only."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, strict=True, protected_namespaces=()
    )


class Spec(_Part):
    """What was measured. `batch_size` and `chunk` count source images over all cards."""

    method: str = Field(min_length=1)
    config: dict[str, Any]
    recipe: str
    backbone: dict[str, Any]
    image_size: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    cards: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]
    threads: int = Field(ge=1)
    chunk: int | None = Field(default=None, ge=1)
    checkpointing: bool = False
    compile: bool = False

    @property
    def batch_per_card(self) -> int:
        return self.batch_size // self.cards

    @property
    def way(self) -> str:
        """How the step is taken, in words; "" for the plain one."""
        return Way(self.chunk, self.checkpointing, self.compile).words

    @property
    def label(self) -> str:
        """The method and how its step is taken: what tells cells apart that take turns."""
        return f"{self.method} ({self.way})" if self.way else self.method


class Applied(_Part):
    """The protocol as it was applied; its hash follows from the rest."""

    id: Literal["cost"] = ID
    version: int
    settings: dict[str, Any]
    hash: str

    @model_validator(mode="after")
    def hashed(self) -> Applied:
        if self.hash != protocol_hash(self.id, self.version, self.settings):
            raise ValueError("the protocol's hash is not that of its settings")
        return self


class Mode(_Part):
    """One mode's windows, and images per second of one card: median and quartiles."""

    first_step_seconds: float = Field(gt=0)
    window_steps: int = Field(ge=1)
    warm_seconds: list[float]
    warm: bool
    seconds: list[float] = Field(min_length=1)
    images_per_second: float = Field(gt=0)
    low: float
    high: float


class Memory(_Part):
    """Bytes of one card, or of the process on a CPU; None where they do not apply.

    `allocated` and `reserved` are peaks of torch's allocator by mode, `driver` is what the driver
    says that the process holds, `rss` the process's peak and `rss_before` what it held before there
    was a model. `estimated` is by category. `stored` are the data set's images that lie on a card.
    """

    allocated: dict[str, int] = {}
    reserved: dict[str, int] = {}
    driver: int | None = None
    rss: int | None = None
    rss_before: int | None = None
    estimated: dict[str, int] = {}
    stored: int = 0
    card: int | None = None  # all that the card has

    @property
    def peak(self) -> int | None:
        """Return the bytes that the page shows."""
        if self.estimated:
            return sum(self.estimated.values())
        return self.allocated["step"] if self.allocated else self.rss


@functools.cache
def harness(*, estimated: bool = False) -> str:
    """Return 12 hex digits over the harness's own part of a step that is measured, or estimated:
    the engine and all modules that it is made of."""
    name = "allocations" if estimated else "gauge"
    return source_sha256(Path(__file__).with_name(f"{name}.py"))[:12]


class Cost(_Part):
    """A cell's result. `content_sha256` is filled in by `write`."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    cell: str
    spec: Spec
    title: str
    status: Literal["done", "estimated", "unsupported", "out_of_memory", "failed"]
    reason: str = ""
    protocol: Applied
    modes: dict[Literal["step", "pipeline"], Mode] = {}
    efficiency: float | None = None  # of the harness: pipeline over step
    epochs_seconds: float | None = None  # of `epochs` on `cards` cards, traffic not counted
    memory: Memory = Memory()
    flops_per_image: float | None = None  # of one source image's share of a step
    utilisation: float | None = None
    largest_batch: int | None = None  # per card, estimated
    parameters: int = 0
    turns_with: list[str] = []  # the cells it was interleaved with
    busy_cores: float | None = None  # of others, the median over windows
    others: list[str] = []  # who else was on the card
    notes: list[str] = []
    code: Code
    harness: str = ""  # what `harness` said then, "" in results from before it was noted
    machine: Machine
    content_sha256: str = ""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    @model_validator(mode="after")
    def says_one_thing(self) -> Cost:
        if self.spec.batch_size % self.spec.cards:
            raise ValueError("the batch does not divide among the cards")
        if self.cell != name(self.spec, place(self)):
            raise ValueError("the cell's name is not that of its spec and machine")
        if (self.status == MEASURED) != (set(self.modes) == set(timing.MODES)):
            raise ValueError("a measured cell has both modes, another has none")
        if (self.status == ESTIMATED) != bool(self.memory.estimated):
            raise ValueError("an estimated cell has its memory by category, another has not")
        if self.status == ESTIMATED and self.spec.compile:
            raise ValueError("a compiled step is measured, never estimated")
        if self.status == ESTIMATED and self.flops_per_image is None:
            raise ValueError("an estimated cell has its FLOPs")
        for key, value in derived(self).items():
            if not _close(getattr(self, key), value):
                raise ValueError(f"{key} is not what the windows say")
        for mode in self.modes.values():
            found = timing.spread(_rates(self, mode))
            shown = (mode.images_per_second, mode.low, mode.high)
            if not all(map(_close, shown, (found.median, found.low, found.high))):
                raise ValueError("images per second are not what the windows say")
        return self

    def document(self) -> dict[str, Any]:
        """Return the JSON document, its content hash computed anew."""
        document = self.model_dump(mode="json", by_alias=True)
        document["content_sha256"] = content_sha256(document)
        return document


def _rates(cost: Cost, mode: Mode) -> list[float]:
    return timing.rates(mode.seconds, mode.window_steps, cost.spec.batch_per_card)


def derived(cost: Cost) -> dict[str, float | None]:
    """Return efficiency, epochs_seconds and utilisation as windows and FLOPs give them."""
    empty: dict[str, float | None] = dict.fromkeys(("efficiency", "epochs_seconds", "utilisation"))
    if not cost.modes:
        return empty
    settings, rate = cost.protocol.settings, cost.modes["pipeline"].images_per_second
    peak = PEAKS.get(cost.machine.device, {}).get(cost.spec.precision)
    both = [_rates(cost, cost.modes[mode]) for mode in ("pipeline", "step")]
    return {
        "efficiency": timing.efficiency(*both),
        "epochs_seconds": timing.epochs_seconds(
            rate, cost.spec.cards, settings["num_images"], settings["epochs"]
        ),
        "utilisation": timing.utilisation(rate, cost.flops_per_image, peak)
        if peak and cost.flops_per_image
        else None,
    }


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-9)


def mode_of(warmth: timing.Warmth, seconds: Iterable[float], images: int) -> Mode:
    """Return a mode's entry from its windows over `images` source images a step."""
    seconds = list(seconds)
    found = timing.spread(timing.rates(seconds, warmth.steps, images))
    return Mode(
        first_step_seconds=warmth.first_seconds,
        window_steps=warmth.steps,
        warm_seconds=list(warmth.seconds),
        warm=warmth.reached,
        seconds=seconds,
        images_per_second=found.median,
        low=found.low,
        high=found.high,
    )


def with_derived(cost: dict[str, Any]) -> Cost:
    """Return a cell's result from its fields, the derived numbers computed.

    Raises:
        ValidationError: the fields are no result.
    """
    bare = Cost.model_construct(**{"flops_per_image": None, "modes": {}} | cost)
    return Cost(**(cost | derived(bare)))


def place(cost: Cost) -> str:
    """Return what a cell's numbers hold for: the card, the processor, or no machine at all."""
    if cost.status == ESTIMATED:
        return ""
    return cost.machine.processor if cost.spec.device == "cpu" else cost.machine.device


def name(spec: Spec, machine: str) -> str:
    """Return `<method>-<backbone>-<size>px-b<batch>x<cards>-<precision>-<10 hex>`."""
    document = spec.model_dump(mode="json")
    for key in ("chunk", "checkpointing", "compile"):
        if not document[key]:
            del document[key]
    if not machine:  # an estimate knows neither device nor threads
        del document["device"], document["threads"]
    backbone = re.sub(r"[^A-Za-z0-9_.]+", "_", str(spec.backbone["name"]))
    shape = f"{spec.image_size}px-b{spec.batch_size}x{spec.cards}-{spec.precision}"
    hashed = digest({"spec": document, "machine": machine})[:10]
    return f"{spec.method}-{backbone}-{shape}-{hashed}"


def path(leaderboards_dir: Path, cell: str) -> Path:
    """Return where a cell's result lies."""
    return Path(leaderboards_dir) / FOLDER / f"{cell}.json"


def write(leaderboards_dir: Path, cost: Cost) -> Path:
    """Write a cell's result, whole or not at all; return the file."""
    file = path(leaderboards_dir, cost.cell)
    text = json.dumps(cost.document(), indent=1, sort_keys=True, ensure_ascii=False)
    write_text(file, text + "\n")
    return file


def read(file: Path) -> Cost:
    """Return the result in a file.

    Raises:
        UserError: it is missing, damaged, altered, contradicts itself, or has another cell's name.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a result of bench cost: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UserError(f"{file}: expected a JSON object with schema {SCHEMA}; measure it again")
    try:
        altered = document.get("content_sha256") != content_sha256(document)
        cost = Cost.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{file}: not a result of bench cost: {first_fault(error)}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: not a result of bench cost: {error}") from error
    if altered:
        raise UserError(f"{file}: altered since it was written; measure it again")
    if file.name != f"{cost.cell}.json":
        raise UserError(f"{file}: holds the cell {cost.cell}, expected {cost.cell}.json")
    return cost


def read_all(leaderboards_dir: Path) -> tuple[list[Cost], list[str]]:
    """Return the cells of a folder of boards by name, and a line for each file that is none."""
    folder = Path(leaderboards_dir) / FOLDER
    found, problems = [], []
    for file in sorted(folder.glob("*")) if folder.is_dir() else []:
        if file.name.startswith("."):
            continue
        try:
            if file.suffix != ".json":
                raise UserError(f"{file}: not a result of bench cost")
            found.append(read(file))
        except UserError as error:
            problems.append(str(error).replace(f"{file}", f"{FOLDER}/{file.name}", 1))
    return found, problems
