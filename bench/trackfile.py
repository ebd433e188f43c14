"""What the TOML of a track may say: its keys, their ranges, what stands where one is missing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from bench.budgets import KINDS
from bench.columns import METRICS, WHERE_NAMED
from bench.errors import UnknownName, UserError, first_fault
from bench.evaluations import chooses
from bench.identity import canonical_json
from bench.metrics.names import BESIDE

SHIPPED = Path(__file__).parent / "tracks"
LATER = (  # keys that a release added, left out where they say nothing, so that ids stay
    "parity",
    "chunk",
    "checkpointing",
    "compile",
    "division",
    "max_parameters",
    "recipes_of",
    "smaller",
)
FD_SAMPLES = 10_000  # that a Frechet distance ranks by; with fewer the kernel distance does
USUAL_METRICS = {"few_labels": "k10_top1"}  # of others the first that pages show
TRACK_ID = re.compile(r"[a-z0-9][a-z0-9_-]*~[0-9a-f]{6}")  # of a track that is not shipped


def shipped() -> list[str]:
    """Return the names of the tracks that come with `bench`."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read(path: Path) -> dict[str, Any]:
    """Return what a TOML file says.

    `base` names a shipped track whose keys stand wherever the file has none; of the tables `data`
    and `backbone` each key, of the others the whole.

    Raises:
        UnknownName: no shipped track has the name of the base.
        UserError: it cannot be read, or is not TOML.
    """
    content = _toml(path)
    if (name := content.pop("base", None)) is None:
        return content
    if name not in shipped():
        raise UserError(f"track file {str(path)!r}: {UnknownName('base', str(name), shipped())}")
    base = _toml(SHIPPED / f"{name}.toml")
    if "base" in base:
        raise UserError(f"track file {str(path)!r}: its base {name} has a base itself; name that")
    joined = {
        key: base[key] | content[key]
        for key in ("data", "backbone")
        if isinstance(content.get(key), dict)
    }
    return base | content | joined


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"track file {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"track file {str(path)!r} is not TOML: {error}") from None


def checked(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return a track's content with every default filled in.

    Keys that a release added are left out where they say nothing, so that ids stay.

    Args:
        origin: how an error names where the content is from.

    Raises:
        UserError: a key is unknown, a value out of its range, or a track is named that is none.
    """
    _refuse_unknown_keys(content, _Content, origin, "")
    try:
        found = _Content.model_validate(content).model_dump()
    except ValidationError as error:
        raise UserError(f"{origin}: {first_fault(error, met=True)}") from None
    _refuse_unknown_tracks(found, origin)
    if found["data"]["store_size"] in (None, found["data"]["image_size"]):
        del found["data"]["store_size"]  # ids are as if the key did not exist
    for key in LATER:
        if not found[key] or (key, found[key]) == ("division", "closed"):
            del found[key]
    found["budget"] = {k: v for k, v in found["budget"].items() if v is not None}
    try:
        canonical_json(found)
    except (TypeError, ValueError) as error:  # dates, NaN and the like in free-form tables
        raise UserError(f"{origin}: {error}") from None
    return found


def _refuse_unknown_keys(
    content: Mapping[str, Any], model: type[BaseModel], origin: str, prefix: str
) -> None:
    fields = model.model_fields
    for key, value in content.items():
        if key not in fields:
            kind = f"key of [{prefix.rstrip('.')}]" if prefix else "key"
            raise UserError(f"{origin}: {UnknownName(kind, key, list(fields))}")
        tables = [t for t in (fields[key].annotation, *get_args(fields[key].annotation)) if t]
        for table in tables:
            if isinstance(table, type) and issubclass(table, _Table) and isinstance(value, dict):
                _refuse_unknown_keys(value, table, origin, f"{prefix}{key}.")


def _refuse_unknown_tracks(found: Mapping[str, Any], origin: str) -> None:
    """Recipes are those of a shipped track; a smaller one may be of a file, by its id."""
    named = [("recipes_of", found["recipes_of"])] if found["recipes_of"] else []
    named += [("smaller", name) for name in found["smaller"] if not TRACK_ID.fullmatch(name)]
    for key, name in named:
        if name not in shipped():
            raise UserError(f"{origin}: {key}: {UnknownName('track', name, shipped())}")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Data(_Table):
    name: str = Field(min_length=1)
    image_size: int = Field(ge=8, le=1024)
    store_size: int | None = Field(default=None, ge=8, le=1024)
    limit: int | None = Field(default=None, ge=1)
    sha256: str | None = None  # with test_sha256: of a data set that a path names, by `pin_data`
    test_sha256: str | None = None

    @model_validator(mode="after")
    def stored_no_smaller(self) -> _Data:
        if self.store_size is not None and self.store_size < self.image_size:
            raise ValueError(
                f"store_size {self.store_size} must not be below image_size {self.image_size}"
            )
        return self


class _Stem(_Table):
    kernel: int = Field(ge=1, le=7)
    stride: Literal[1, 2]
    max_pool: bool


class _Backbone(_Table):
    name: str = Field(min_length=1)
    args: dict[str, Any] = {}
    stem: _Stem | None = None

    @field_validator("stem", mode="before")
    @classmethod
    def false_is_none(cls, stem: Any) -> Any:
        """TOML has no null, by which a track could lack its base's stem."""
        return None if stem is False else stem


class _Budget(_Table):
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    images: int | None = Field(default=None, ge=1)
    flops: int | None = Field(default=None, ge=1)
    device_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def one_measure(self) -> _Budget:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        return self


def _headlines(protocol: str, overrides: Mapping[str, Any]) -> list[str]:
    """Return the metrics that may rank by a protocol with these settings; none where any may."""
    per_class, folds = overrides.get("labels_per_class"), overrides.get("folds", 5)
    if protocol == "few_labels" and isinstance(per_class, list) and isinstance(folds, int):
        chosen = [k for k in per_class if isinstance(k, int) and k >= folds]
        return [f"k{k}_top1" for k in per_class] + [f"k{k}_best_top1" for k in chosen]
    if protocol.removesuffix(BESIDE) == "generation":  # of few samples FD is mostly bias
        samples = overrides.get("samples", 0)
        many = isinstance(samples, int) and samples >= FD_SAMPLES
        return ["kid", "fd"] if many else ["kid"]
    shown = (*METRICS.get(protocol, ()), *WHERE_NAMED.get(protocol, ()))
    return [metric for metric, _ in shown]


def _usual_headline(evaluations: Mapping[str, Any]) -> str:
    """Return the metric that ranks where a track names none: of its first evaluation."""
    first, overrides = next(iter(evaluations.items()))
    known, usual = _headlines(first, overrides), USUAL_METRICS.get(first)
    return f"{first}.{usual if usual in known else next(iter(known), 'top1')}"


class _Content(_Table):
    title: str = Field(min_length=1)
    description: str = Field(min_length=1)
    smoke: bool = False
    seeds: list[int] = Field(min_length=1)
    recipe: str = Field(min_length=1)
    batch_size: int = Field(ge=2)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = Field(default=1, ge=1)
    jobs: int | None = Field(default=None, ge=1)
    floors: list[str] = []
    reference: str | None = None
    data: _Data
    backbone: _Backbone
    budget: _Budget
    evaluations: dict[str, dict[str, Any]] = Field(min_length=1)
    trials: int = Field(default=8, ge=0, le=64)
    headline: str = ""
    parity: bool = False
    division: Literal["closed", "open"] = "closed"
    max_parameters: int | None = Field(default=None, ge=1)
    recipes_of: str | None = None
    smaller: list[str] = []
    chunk: int | None = Field(default=None, ge=2)
    checkpointing: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def what_is_compiled_is_kept(self) -> _Content:
        if self.compile and self.checkpointing:
            raise ValueError("compile and checkpointing exclude each other; leave one out")
        return self

    @model_validator(mode="after")
    def chunk_divides_the_batch(self) -> _Content:
        if self.chunk is not None and self.batch_size % self.chunk:
            raise ValueError(
                f"chunk must divide the batch of {self.batch_size} images, got {self.chunk}"
            )
        return self

    @model_validator(mode="after")
    def open_to_a_ceiling(self) -> _Content:
        if self.division == "open" and self.budget.flops is None:
            raise ValueError("an open track has a budget of flops, its ceiling")
        if self.division == "closed" and self.max_parameters is not None:
            raise ValueError("max_parameters is an open track's; a closed one has one backbone")
        return self

    @model_validator(mode="after")
    def parity_selects_nothing(self) -> _Content:
        if not self.parity:
            return self
        if self.trials:
            raise ValueError(f"a parity track selects nothing: trials must be 0, got {self.trials}")
        for name, overrides in self.evaluations.items():
            chosen = chooses(name, overrides)
            if chosen:
                raise ValueError(
                    f"a parity track selects nothing, and has no validation images; {name} "
                    f"chooses {chosen}"
                )
        return self

    @model_validator(mode="after")
    def beside_something(self) -> _Content:
        for name in self.evaluations:
            first = name.removesuffix(BESIDE)
            if first not in self.evaluations:
                raise ValueError(
                    f"{name} stands beside {first}, which this track has not; add "
                    f"[evaluations.{first}]"
                )
        return self

    @model_validator(mode="after")
    def calibrated_as_measured(self) -> _Content:
        for beside in ("", BESIDE):
            measured, known = (
                self.evaluations.get(name + beside) for name in ("generation", "calibration")
            )
            for key in ("extractor", "samples"):
                if measured is None or known is None or measured.get(key) == known.get(key):
                    continue
                raise ValueError(
                    f"calibration{beside}.{key} is {known.get(key, 'the default')!r} and "
                    f"generation{beside}.{key} {measured.get(key, 'the default')!r}; what is known "
                    "to be good and bad is measured as samples are: give both the same"
                )
        return self

    @model_validator(mode="after")
    def headline_of_an_evaluation(self) -> _Content:
        self.headline = self.headline or _usual_headline(self.evaluations)
        protocol, dot, metric = self.headline.partition(".")
        if not (dot and metric) or protocol not in self.evaluations:
            raise ValueError(
                f"headline must be PROTOCOL.METRIC of one of {', '.join(self.evaluations)}, "
                f"got {self.headline!r}"
            )
        known = _headlines(protocol, self.evaluations[protocol])
        if known and metric not in known:
            raise ValueError(f"headline: {UnknownName(f'metric of {protocol}', metric, known)}")
        return self

    @model_validator(mode="after")
    def distinct_seeds(self) -> _Content:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return self
