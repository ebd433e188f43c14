"""One observation of a study, one JSON file: written atomically, refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, first_fault
from bench.packing import unpack_bits
from bench.results import Machine, content_sha256, write_text

SCHEMA = 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=200)]


class Observed(BaseModel):
    """What a study found at one seed.

    Attributes:
        study, version, settings, hash: of the study. holds: what the numbers hold for.
        run_id: the run that was read, or "". artifacts: {file: sha256} of what was read of it.
        values, shown, parts, stamps: as in `bench.studies.Observation`.
        correct: packed, `num_images` each; see `bench.results.pack_bits`.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    study: Name
    version: int
    settings: dict[str, Any]
    hash: str
    holds: str
    seed: int
    run_id: str = ""
    artifacts: dict[str, str] = {}
    values: dict[str, float]
    shown: dict[str, float] = {}
    correct: dict[str, str] = {}
    num_images: int = 0
    parts: dict[str, dict[str, float]] = {}
    stamps: list[str] = []
    machine: Machine = Machine()
    seconds: float = 0.0
    content_sha256: str = ""

    def images(self, quantity: str) -> np.ndarray | None:
        """Return each image's share of a quantity, (N,) in points; None if it has no images."""
        parts = self.parts.get(quantity)
        if not parts:
            return None
        bits = {name: unpack_bits(self.correct[name], self.num_images) for name in parts}
        return sum(100.0 * weight * bits[name] for name, weight in parts.items())


def file_name(study: str, seed: int, run_id: str = "") -> str:
    """Return the file name of an observation: the study, the seed, the run that was read."""
    tail = f"-{run_id}" if run_id else ""
    return f"{study}-s{seed}{tail}.json"


def write(path: Path, observed: Observed) -> None:
    """Write an observation, whole or not at all; its content hash is computed anew."""
    document = observed.model_dump(mode="json", by_alias=True)
    document["content_sha256"] = content_sha256(document)
    write_text(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def read(path: Path) -> Observed:
    """Return the observation in a file.

    Raises:
        UserError: the file is missing, damaged, altered, or contradicts itself.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"expected an object of schema {SCHEMA}")
        if document.get("content_sha256") != content_sha256(document):
            raise ValueError("altered since it was written; remove it and run the study again")
        observed = Observed.model_validate(document)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not an observation: {first_fault(error)}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not an observation: {error}") from None
    if path.name != file_name(observed.study, observed.seed, observed.run_id):
        raise UserError(f"{path}: holds an observation of another name")
    if fault := contradiction(observed):
        raise UserError(f"{path}: {fault}")
    return observed


def contradiction(observed: Observed) -> str:
    """Return the first quantity that is not what its images say, or ""."""
    for quantity, parts in observed.parts.items():
        if quantity not in observed.values or not set(parts) <= set(observed.correct):
            return f"{quantity} has parts that are not there"
        images = observed.images(quantity)
        mean = float(images.mean()) if images is not None and len(images) else 0.0
        if abs(mean - observed.values[quantity]) > 1e-3:
            return f"{quantity} is {observed.values[quantity]!r}, its images give {mean!r}"
    return ""
