"""Training FLOPs of methods, counted without training them and kept beside the boards.

A method's step is traced on fake tensors (`bench.memory`), with the configuration, backbone, batch
and training set that its runs have. What was found lies in `flops.json` by a hash of those: each
page's FLOPs come from there, and so do the steps that a budget of FLOPs buys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import kept
from bench.budgets import Price
from bench.errors import UserError
from bench.identity import digest

if TYPE_CHECKING:
    from bench.memory import Step
    from bench.rows import TableRow

FILE = "flops.json"
COUNTED = ("method", "config", "backbone", "image_size", "batch_size", "chunk", "checkpointing")


@dataclass(frozen=True)
class Count:
    """What one method's training step takes.

    Attributes:
        flops_per_image: of each source image, forward and backward.
        parameters: of the backbone.
        code: the sha256 of the plugin's source that was traced.
    """

    method: str
    flops_per_image: float
    parameters: int
    code: str

    @property
    def price(self) -> Price:
        """What a budget of FLOPs buys."""
        return Price(1 / self.flops_per_image, self.flops_per_image, self.parameters)


Counts = Mapping[str, Count]
"""By `key`."""


@dataclass(frozen=True)
class Training:
    """A run whose FLOPs are asked for.

    Attributes:
        plugin: what loads the method, a name or a file.
        spec: of the run; the seed, the split and the budget do not matter.
        code: sha256 of the plugin's source.
        images, classes: of the training set that the method is told of.
        gray: whether its images have one channel.
    """

    plugin: str
    spec: Mapping[str, Any]
    code: str
    images: int
    classes: int
    gray: bool


def key(spec: Mapping[str, Any]) -> str:
    """Return 12 hex digits over what a run's FLOPs per image depend on."""
    named = {name: spec[name] for name in COUNTED if name in spec}
    data = spec.get("data")
    if isinstance(data, dict):
        named["data"] = {name: value for name, value in data.items() if name != "split"}
    return digest(named)[:12]


def of_run(counts: Counts, spec: Mapping[str, Any]) -> float | None:
    """Return the training FLOPs of a whole run; None if its step was never counted."""
    found = counts.get(key(spec))
    if found is None:
        return None
    return found.price.flops(spec["budget"]["steps"] * spec["batch_size"])


def spent(rows: Iterable[TableRow], counts: Counts | None) -> dict[str, float]:
    """Return a row's key -> training FLOPs of one of its runs, where they were counted."""
    found = ((row.key, of_run(counts or {}, row.first.spec)) for row in rows)
    return {name: amount for name, amount in found if amount}


def read(folder: Path) -> dict[str, Count]:
    """Return the counts in a folder of boards, none if it has no file of them.

    Raises:
        UserError: the file is damaged.
    """
    return kept.read(folder / FILE, Count, positive="flops_per_image")


def write(folder: Path, counts: Counts) -> None:
    """Write counts, a line each, whole or not at all."""
    kept.write(folder / FILE, counts)


def count(wanted: Iterable[Training], known: Counts) -> tuple[dict[str, Count], dict[str, str]]:
    """Return what is not yet known of `wanted`, by key, and why the rest cannot be counted.

    A count of other code than asked for is made anew.
    """
    open_ = {}
    for training in wanted:
        name = key(training.spec)
        if name not in known or known[name].code != training.code:
            open_[name] = training
    if not open_:
        return {}, {}
    from bench import memory

    found: dict[str, Count] = {}
    problems: dict[str, str] = {}
    with memory.estimator() as ask:
        for name, training in sorted(open_.items()):
            method = training.spec["method"]
            try:
                traced = ask(_step(training))
            except UserError as error:
                problems[name] = str(error)
                continue
            if not traced.flops_per_image > 0:
                problems[name] = f"{method}: its step has no FLOPs that are counted"
                continue
            found[name] = Count(method, traced.flops_per_image, traced.weights, training.code)
    return found, problems


def _step(training: Training) -> Step:
    from bench.memory import Step

    spec, backbone = training.spec, training.spec["backbone"]
    return Step(
        training.plugin,
        backbone=backbone["name"],
        args=backbone["args"],
        stem=backbone["stem"],
        image_size=spec["image_size"],
        batch_size=spec["batch_size"],
        config=spec["config"],
        images=training.images,
        classes=training.classes,
        gray=training.gray,
        chunk=spec.get("chunk"),
        checkpointing=bool(spec.get("checkpointing")),
    )
