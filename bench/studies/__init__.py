"""Studies: the harness's own measurements for claims that no board's row answers.

A study is a module with ID, VERSION, SETTINGS, HOLDS (what its numbers hold for, in words),
READS_RUNS and a function `observe`: one observation per seed, from nothing but the seed, or from
what a run left.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench import ledger
from bench.errors import UnknownName
from bench.identity import protocol_hash

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

NAMES = ("infonce_tight", "head_why", "gan_losses", "cost", "cost_time")


@dataclass(frozen=True)
class Run:
    """What a study sees of a finished run.

    Attributes:
        folder: where its artifacts lie. artifacts: {file: sha256}, as its result records them.
        spec, code, track: as in its result. input: what the backbone is fed.
        dataset: what `bench.data.load` takes. ledger: the file of test reads.
    """

    folder: Path
    spec: dict[str, Any]
    code: dict[str, Any]
    track: str
    dataset: str
    input: str
    artifacts: dict[str, str]
    ledger: str

    def note_test_read(self, test_sha256: str, protocol: str) -> None:
        """Write the look at the test split down, before it is taken."""
        ledger.append(
            self.ledger,
            ledger.of_run(
                track=self.track,
                spec=self.spec,
                run_id=self.folder.name,
                code=self.code,
                protocols=[protocol],
                test_sha256=test_sha256,
            ),
        )


@dataclass(frozen=True)
class Observation:
    """What a study found at one seed.

    Attributes:
        values: the quantities that claims are about.
        shown: numbers that belong to them and are shown beside.
        correct: name -> bool (N,), right or wrong for each test image.
        parts: quantity -> {name in `correct`: weight}, where the quantity is the weighted sum of
            their means in percent.
        stamps: remarks that travel with the numbers.
    """

    values: dict[str, float]
    shown: dict[str, float] = field(default_factory=dict)
    correct: dict[str, np.ndarray] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study with its settings; `hash` covers them, its id and its version."""

    name: str
    version: int
    settings: dict[str, Any]
    hash: str
    holds: str
    reads_runs: bool

    def observe(self, seed: int, run: Run | None) -> Observation:
        """Return what is found at a seed; `run` is that seed's, if the study reads runs."""
        module = _module(self.name)
        if self.reads_runs:
            return module.observe(seed, self.settings, run)
        return module.observe(seed, self.settings)


def study(name: str) -> Study:
    """Return a study by its name; importing one loads torch.

    Raises:
        UnknownName: no study has it.
    """
    if name not in NAMES:
        raise UnknownName("study", name, NAMES)
    module = _module(name)
    settings = dict(module.SETTINGS)
    hashed = protocol_hash(module.ID, module.VERSION, settings)
    return Study(name, module.VERSION, settings, hashed, module.HOLDS, module.READS_RUNS)


def _module(name: str) -> Any:
    return importlib.import_module(f"bench.studies.{name}")
