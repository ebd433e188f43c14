"""Publish a claim's study: check what it rests on, copy that beside the published boards."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bench import observations, records, results
from bench.claim import Claim, load_claim
from bench.errors import UserError
from bench.findings import find
from bench.records import Record
from bench.verify import verify

TRAINED = "backbone.safetensors"


@dataclass
class Copies:
    """The files of some studies, each with where it goes."""

    files: dict[Path, Path] = field(default_factory=dict)

    def add(self, source: Path, target: Path, *, force: bool) -> None:
        """Note a file.

        Raises:
            UserError: another one is published in its place.
        """
        if target.exists() and not force and target.read_bytes() != source.read_bytes():
            raise UserError(
                f"nothing published: {target.name} is already published with other content; "
                "--force replaces it"
            )
        self.files[target] = source


def publish_studies(
    runs_dir: Path, leaderboards_dir: Path, names: Iterable[str], *, force: bool = False
) -> list[Path]:
    """Copy the records, results, trials and observations of claims; return the files written.

    A board's published result is not copied a second time, unless the claim has evaluations of the
    same training that the board has not, as of other samples. All is checked before the first byte
    is written.

    Raises:
        UserError: a claim has no verdict yet, or a file it rests on is damaged, contradicts itself,
            or another is published in its place.
    """
    source, target = records.studies_folder(runs_dir), leaderboards_dir / "studies"
    copies = Copies()
    for name in names:
        claim = load_claim(name)
        record, findings = find(claim, source)
        if record is None:
            raise UserError(f"claim {name} has no study in {source}; `bench study {name}` runs it")
        judged = [finding for finding in findings if finding.state == "judged"]
        if not judged:
            raise UserError(f"nothing published: claim {name}: {findings[0].reason}")
        _results(claim, record, source, target, copies, force=force)
        for number, files in record.observations.items():
            study = str(claim.contrasts[int(number)].study)
            for file in files:
                observed = source / "observations" / study / file
                observations.read(observed)
                copies.add(observed, target / "observations" / study / file, force=force)
        # The record says what was run last; it may replace an older one of the same claim.
        copies.add(records.path(source, name), records.path(target, name), force=True)
    for place, file in copies.files.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return list(copies.files)


def _results(
    claim: Claim, record: Record, source: Path, target: Path, copies: Copies, *, force: bool
) -> None:
    for cell in record.cells:
        wanted = [(run_id, "results") for run_id in cell.runs.values()]
        wanted += [(run_id, "trials") for run_id in cell.trials]
        for run_id, kind in wanted:
            if kind == "trials":
                file: Path | None = source / kind / cell.track / f"{run_id}.json"
            else:
                file = records.find_result(source, cell.track, run_id, record.protocols.values())
            if file is None or not file.is_file():
                raise UserError(f"nothing published: claim {claim.id}: {run_id} has no result")
            result = results.read(file)
            if fault := verify(result, cell.track):
                raise UserError(f"nothing published: {run_id}: {fault}")
            board = target.parent / "results" / cell.track / file.name
            if kind == "results" and board.is_file():
                shown = results.read(board)
                if shown.artifacts.get(TRAINED) != result.artifacts.get(TRAINED):
                    raise UserError(
                        f"nothing published: the board has another run as {run_id}; publish the "
                        f"board of {cell.track} first"
                    )
                if shown.evaluations.keys() >= set(record.protocols.values()):
                    continue
            copies.add(file, target / kind / cell.track / file.name, force=force)
