"""Evaluations: locked protocols over frozen features. Each has an id, a version and settings."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.errors import UnknownName, UserError
from bench.identity import protocol_hash

if TYPE_CHECKING:
    import numpy as np

    from bench.features import Features

NAMES = ("linear_probe", "knn")


class NonFinite(Exception):
    """Features with a NaN or an infinity: the row is invalid, whatever argmax would say of it."""


@dataclass(frozen=True)
class Evaluation:
    """What a protocol found.

    Attributes:
        metrics: on the test split, accuracies in percent; empty if it was not opened.
        validation: the same on validation, and what choices were made by.
        chosen: what was chosen on validation.
        predictions: class index per test image and column, int64 (N,).
        stamps: remarks that travel with the numbers.
    """

    metrics: dict[str, float]
    validation: dict[str, float]
    chosen: dict[str, Any]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """An evaluation with its settings resolved; two hashes never share a column."""

    name: str
    id: str
    version: int
    settings: dict[str, Any]
    hash: str

    def evaluate(self, features: Features, seed: int) -> Evaluation:
        """Evaluate.

        Raises:
            NonFinite: the features hold a NaN or an infinity.
        """
        refuse_non_finite(features)
        return _module(self.name).evaluate(features, self.settings, seed)


def protocol(name: str, overrides: dict[str, Any] | None = None) -> Protocol:
    """Return a protocol with its settings, `overrides` taken over its own.

    Raises:
        UnknownName: no such protocol or setting.
        UserError: a setting of another type.
    """
    if name not in NAMES:
        raise UnknownName("evaluation", name, NAMES)
    module = _module(name)
    settings = dict(module.SETTINGS)
    for key, value in (overrides or {}).items():
        if key not in settings:
            raise UnknownName(f"setting of {name}", key, list(settings))
        if type(value) is not type(settings[key]):
            kind = type(settings[key]).__name__
            raise UserError(f"{name}.{key} is {value!r}; expected a value of type {kind}")
        settings[key] = value
    hashed = protocol_hash(module.ID, module.VERSION, settings)
    return Protocol(name, module.ID, module.VERSION, settings, hashed)


def refuse_non_finite(features: Features) -> None:
    """Raise NonFinite if a feature of any split and stage is NaN or infinite."""
    for split in ("train", "validation", "test"):
        for stage, values in (getattr(features, split) or {}).items():
            bad = int((~values.isfinite()).any(1).sum())
            if bad:
                raise NonFinite(f"{bad} of {len(values)} {split} images have non-finite {stage}")


def _module(name: str) -> Any:
    return importlib.import_module(f"bench.evaluations.{name}")
