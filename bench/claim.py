"""A claim: one sentence of the lecture, and how it will be tested, written down before it is.

Claims are TOML files, `bench/claims/<id>.toml`. Their hash travels with the results, so that none
can be shaped after the fact.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from bench.errors import UnknownName, UserError, first_fault
from bench.identity import digest

SHIPPED = Path(__file__).parent / "claims"
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Unit = Literal["points", "percent", "nats", "ratio", "steps", "per unit of w"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Metric(_Table):
    """A number of a result: a protocol's metric, or `cost` with a field of the cost table.

    Attributes:
        settings: of the protocol, other than the track's. sampling: of a protocol over samples, how
            they are drawn other than by the method's card.
        below: the number becomes 100 where it is below this, and 0 where it is not, or where there
            is none because training diverged or its outcome was invalid.
    """

    protocol: Text
    name: Text
    settings: dict[str, bool | int | float | str] = {}
    sampling: dict[str, bool | int | float | str] = {}
    below: float | None = None

    @property
    def key(self) -> str:
        """Return what tells its protocol from others of the same claim."""
        changes = [*sorted(self.settings.items()), *sorted(self.sampling.items())]
        said = ", ".join(f"{name}={value}" for name, value in changes)
        return f"{self.protocol} ({said})" if said else self.protocol


class Tune(_Table):
    """What is chosen anew in a cell, on validation, before the reported runs.

    Each factor multiplies the recipe's value of a field; one full run per factor and seed, with
    seeds that never report and the test split closed. The best mean validation score wins (the
    lowest of a distance).
    """

    field: Text
    factors: list[Positive] = Field(min_length=2)
    seeds: list[Annotated[int, Field(ge=1000)]] = [1000]

    @model_validator(mode="after")
    def one_standard(self) -> Tune:
        if len(set(self.factors)) < len(self.factors):
            raise ValueError("factors must be distinct")
        return self


class Changes(_Table):
    """What a cell has other than the track."""

    batch_size: int | None = Field(default=None, ge=2)
    epochs_times: Positive = 1.0
    backbone: str | None = None


class Side(_Table):
    """One cell of a contrast: a method with settings, or the best of several on validation.

    Attributes:
        weight: of the cell's mean in the contrast, +1 or -1 mostly; 0 if it is only shown.
        methods: of several, the one with the highest mean on validation counts; those that are not
            installed are left out and named.
        settings: fields of the method's config, over the track's recipe for the method.
        metric: in place of the claim's. track: in place of the claim's.
        group, option: for regret: where the choice is made, and what is chosen there.
    """

    weight: float = 1.0
    methods: list[Text] = Field(min_length=1)
    track: str = ""
    group: str = ""
    option: str = ""
    settings: dict[str, bool | int | float | str] = {}
    changes: Changes = Changes()
    tune: Tune | None = None
    metric: Metric | None = None

    @model_validator(mode="after")
    def one_method_is_set(self) -> Side:
        if len(self.methods) > 1 and (self.settings or self.tune):
            raise ValueError("settings and tune belong to one method; list only that one")
        return self


class Contrast(_Table):
    """What is estimated, and from which size on it counts.

    Attributes:
        rule: superiority: the estimate should be above 0, by delta or more. non-inferiority: above
            -delta. within: inside `range`.
        measure: difference: the weighted sum of cell means. ratio: left mean / right mean.
            relative: 100 * (ratio - 1). regret: see `bench.contrasts.regret`; lower is better.
        sides: the cells. With a `study`: the runs that its code reads, if it reads any; what it
            returns as `quantity`, made as `procedure` says, is the estimate.
        select: the metric, on validation, by which the best of several methods is picked.
    """

    name: Text
    rule: Literal["superiority", "non-inferiority", "within"] = "superiority"
    measure: Literal["difference", "ratio", "relative", "regret"] = "difference"
    delta: float = Field(default=0.0, ge=0)
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    sides: list[Side] = []
    study: str | None = None
    quantity: str | None = None
    procedure: str | None = None
    select: Metric | None = None

    @model_validator(mode="after")
    def whole(self) -> Contrast:
        if not self.sides and not self.study:
            raise ValueError("give sides or a study")
        if self.study and not (self.quantity and self.procedure):
            raise ValueError("a study needs a quantity and a procedure")
        if (self.rule == "within") != (self.range is not None):
            raise ValueError("range belongs to the rule within, which needs it")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range goes from low to high")
        if self.rule == "non-inferiority" and not self.delta:
            raise ValueError("non-inferiority needs a delta above 0")
        if self.sides and not any(side.weight > 0 for side in self.sides):
            raise ValueError("one side needs a weight above 0")
        weights = sorted(side.weight for side in self.sides if side.weight)
        if self.measure in ("ratio", "relative") and not self.study and weights != [-1, 1]:
            raise ValueError("a ratio has two sides, of weight 1 and -1")
        if self.measure == "regret":
            places = {(side.group, side.option) for side in self.sides}
            groups, options = {g for g, _ in places}, {o for _, o in places}
            if not len(places) == len(self.sides) == len(groups) * len(options) or len(options) < 2:
                raise ValueError("regret has one side for each option in each group")
        return self


class Claim(_Table):
    """A claim, registered.

    Attributes:
        quote: the lecture's sentence, shortened. source: where it stands, and its paper.
        metric: what is measured, unless a side says otherwise; None for a study's quantities.
        metric_reason: why that one is faithful to the sentence.
        beside: metrics that are shown and decide nothing.
        unit: of delta and of the estimate.
        tuning: what is tuned in each cell, in words.
        scale: the machine that it takes; reason: why, and what a part here leaves out.
        issue: the work that runs it; None if nothing is planned.
    """

    id: Text
    quote: Text
    source: Text
    track: str = ""
    metric: Metric | None = None
    metric_reason: str = ""
    beside: list[Metric] = []
    unit: Unit
    seeds: int = Field(ge=1, le=100)
    tuning: Text
    scale: Literal["cpu", "gpu", "out of reach"]
    reason: Text
    issue: int | None = Field(default=None, ge=1)
    contrasts: list[Contrast] = Field(min_length=1)
    _sha256: str = PrivateAttr("")  # of the file, not of this model, which may grow new defaults

    @model_validator(mode="after")
    def measured(self) -> Claim:
        measured = [side for c in self.contrasts if not c.study for side in c.sides]
        if any(side.metric is None for side in measured) and self.metric is None:
            raise ValueError("metric is needed: a side has none of its own")
        if any(contrast.sides for contrast in self.contrasts) and not self.track:
            raise ValueError("track is needed: the sides are its runs")
        names = [contrast.name for contrast in self.contrasts]
        if len(set(names)) < len(names):
            raise ValueError("contrasts need names of their own")
        return self

    @property
    def sha256(self) -> str:
        """Return the hash of all that the file says; comments and order of keys do not count."""
        return self._sha256


def shipped() -> list[str]:
    """Return the ids of the registered claims."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_claim(name: str) -> Claim:
    """Return a registered claim by its id.

    Raises:
        UnknownName: no claim has the id.
        UserError: its file is damaged.
    """
    if name not in shipped():
        raise UnknownName("claim", name, shipped())
    return read_claim(SHIPPED / f"{name}.toml")


def read_claim(path: Path) -> Claim:
    """Return the claim in a file, which is named `<id>.toml`.

    Raises:
        UserError: the file is missing, no TOML, has an unknown key, or a value that does not fit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"claim file {str(path)!r}: {error.strerror}") from None
    return parse_claim(content, path)


def parse_claim(content: bytes, path: Path) -> Claim:
    """Return the claim that a file's bytes hold; `path` names it in errors, as in `read_claim`."""
    origin = f"claim file {str(path)!r}"
    try:
        document: dict[str, Any] = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{origin} is not TOML: {error}") from None
    try:
        claim = Claim.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{origin}: {first_fault(error, met=True)}") from None
    if claim.id != path.stem:
        raise UserError(f"{origin}: id is {claim.id!r}; expected the file's name, {path.stem!r}")
    try:
        claim._sha256 = digest(document)
    except (TypeError, ValueError) as error:  # dates, NaN
        raise UserError(f"{origin}: {error}") from None
    return claim
