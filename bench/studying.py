"""Carry out a claim's study: register it, tune its cells, run what is missing, observe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import claim as claims
from bench import (
    judge,
    ledger,
    observations,
    observing,
    records,
    results,
    runner,
    studies,
    study,
)
from bench.claim import Claim
from bench.errors import UserError
from bench.exits import OK, SOME_FAILED
from bench.expected import expected
from bench.plan import RunSpec
from bench.records import Record
from bench.runner import Options

Say = Callable[[str], None]


@dataclass
class Work:
    """A claim under way: what was planned, what the record says so far."""

    claim: Claim
    options: Options
    record: Record
    say: Say
    live: bool

    @property
    def folder(self) -> Path:
        return records.studies_folder(self.options.runs_dir)

    def save(self) -> None:
        """Write the record; runs that it does not know yet start after this."""
        records.write(records.path(self.folder, self.claim.id), self.record)


def why_not(claim: Claim) -> str:
    """Return why a claim cannot be run by this version, or ""."""
    if claim.scale == "out of reach":
        return f"out of reach: {claim.reason}"
    here = [c for c in claim.contrasts if c.study is None or c.study in studies.NAMES]
    if here:
        return ""
    names = ", ".join(dict.fromkeys(str(c.study) for c in claim.contrasts))
    return f"its study ({names}) is not part of this version"


def carry_out(
    claim: Claim,
    options: Options,
    *,
    say: Say,
    live: bool = False,
) -> int:
    """Run what the claim's study lacks; return 0, 1 if some runs failed, or 130 or 143 if stopped.

    The record is written before anything starts. What was finished is kept.

    Raises:
        UserError: the claim cannot be run here, or its settings do not fit the methods.
    """
    if reason := why_not(claim):
        raise UserError(f"claim {claim.id}: {reason}")
    file = claims.SHIPPED / f"{claim.id}.toml"
    folder = records.studies_folder(options.runs_dir)
    record = records.open_record(folder, claim, file)
    work = Work(claim, options, record, say, live)
    plans: dict[str, RunSpec] = {}
    status = OK
    if any(contrast.sides for contrast in claim.contrasts):
        prepared = _prepared(claim, options)
        for name in dict.fromkeys(cell.name for cell in prepared.cells if cell.method is None):
            say(f"{claim.id}: {name} is not installed; it is left out")
        if all(cell.method is None for cell in prepared.cells):
            raise UserError(f"claim {claim.id}: none of its methods is installed")
        status, plans = _runs(work, prepared)
    else:
        seeds = list(range(claim.seeds))
        work.record = record.model_copy(update={"seeds": seeds, "cells": []})
        work.save()
    if status in (OK, SOME_FAILED):
        status = max(status, _observations(work, plans))
    return status


def _prepared(claim: Claim, options: Options) -> study.Prepared:
    return study.prepare(
        claim,
        device=options.device,
        runs_dir=options.runs_dir,
        leaderboards_dir=options.leaderboards_dir,
    )


def plan_lines(claim: Claim, options: Options) -> list[str]:
    """Return which runs a claim's study has, a line per cell; nothing is run or written.

    Raises:
        UserError: the claim cannot be run here, or its settings do not fit the methods.
    """
    if reason := why_not(claim):
        raise UserError(f"claim {claim.id}: {reason}")
    if not any(contrast.sides for contrast in claim.contrasts):
        return [f"{claim.id}: {claim.seeds} observations, no runs"]
    prepared, lines, trials, runs = _prepared(claim, options), [], set(), set()
    for cell in prepared.cells:
        where = f"{claim.id}, {claim.contrasts[cell.contrast].name}: {cell.name}"
        if cell.method is None:
            lines.append(f"{where}: not installed, left out")
            continue
        tried = [s for specs in study.trial_specs(prepared, cell).values() for s in specs]
        plain = study.specs(prepared, cell, prepared.seeds, {}, prepared.protocols)
        trials |= {spec.run_id for spec in tried}
        runs |= {(spec.run_id, cell.wanted.tune is not None) for spec in plain}
        tuned = f"{len(tried)} trials of {cell.wanted.tune.field}, " if cell.wanted.tune else ""
        lacking = study.missing(plain, options, prepared.protocols.values())
        there = "" if tried else f", {len(plain) - len(lacking)} there already"
        steps = plain[0].spec["budget"]["steps"]
        variant = plain[0].row["variant"]
        lines.append(
            f"{where}{f' ({variant})' if variant else ''}: {tuned}{len(plain)} runs of {steps} "
            f"steps at batch {cell.track.batch_size}{there}"
        )
    lines.append(f"{claim.id}: {len(trials)} trials and {len(runs)} runs in all")
    return [*lines, _to_come(claim, prepared, options)]


def _to_come(claim: Claim, prepared: study.Prepared, options: Options) -> str:
    """Return what is still to be run, and what it will take, in a line."""
    tried, runs = study.to_do(prepared, options)
    if not tried and not runs:
        return f"{claim.id}: all trials and runs are there"
    folders = [options.runs_dir, options.leaderboards_dir]
    takes = expected([*tried, *runs], folders, judge.processor(), options.device)
    return f"{claim.id}: {len(tried)} trials and {len(runs)} runs to come: {takes}"


def verdict_lines(claim: Claim, runs_dir: Path) -> list[str]:
    """Return what a claim's results say so far, a line per contrast."""
    from bench.claims import interval, state
    from bench.findings import find

    lines = []
    for finding in find(claim, records.studies_folder(runs_dir))[1]:
        numbers = f", {interval(finding.estimate)} {claim.unit}" if finding.estimate else ""
        reason = finding.verdict.note if finding.verdict else finding.reason
        said = f"{claim.id}, {finding.contrast.name}: {state(claim, finding)}{numbers}"
        lines.append(said + (f" ({reason})" if reason else ""))
    return lines


def _runs(work: Work, prepared: study.Prepared) -> tuple[int, dict[str, RunSpec]]:
    """Tune and run the cells; return the status, and the runs by id."""
    cells = [cell for cell in prepared.cells if cell.method is not None]
    trials = {id(cell): study.trial_specs(prepared, cell) for cell in cells}
    update = {"seeds": prepared.seeds, "protocols": prepared.protocols, "holds": prepared.holds}
    every = [spec for of in trials.values() for specs in of.values() for spec in specs]
    _register(work, every, update)
    work.say(_to_come(work.claim, prepared, work.options))
    options = replace(
        work.options, dev=True, stale=True, results_dir=work.folder / "trials", force=False
    )
    status = _carry(work, every, options)
    if status not in (OK, SOME_FAILED):
        return status, {}

    entries, plans = [], {}
    for cell in prepared.cells:
        specs, tuned = [], None
        if cell.method is not None:
            settings = {}
            if cell.wanted.tune is not None:
                tuned = study.chosen(prepared, cell, trials[id(cell)], work.folder / "trials")
                settings = {tuned.field: tuned.value}
            specs = study.specs(prepared, cell, prepared.seeds, settings, prepared.asked)
        tried = [spec for runs in trials.get(id(cell), {}).values() for spec in runs]
        entries.append(study.cell_record(cell, specs, tried, tuned))
        plans |= {spec.run_id: spec for spec in specs}
    _register(work, list(plans.values()), update | {"cells": entries})
    needed = set(prepared.protocols.values())
    lacking = study.missing(plans.values(), work.options, needed)
    # What older code made must not be found before what will do. What only lacks protocols stays:
    # another claim may read it, and what is made anew takes its numbers along.
    for spec in plans.values():
        own, _ = records.result_files(work.folder, spec.track, spec.run_id)
        if not study.will_do(own, spec, set()):
            own.unlink(missing_ok=True)
    options = replace(
        work.options, stale=True, results_dir=work.folder / "results", needed=frozenset(needed)
    )
    return max(status, _carry(work, lacking, options)), plans


def _register(work: Work, specs: Sequence[RunSpec], update: dict) -> None:
    """Note in the record, before they start, which runs are to come and which are there."""
    places = {}
    for spec in specs:
        files = records.result_files(work.folder, spec.track, spec.run_id)
        trial = work.folder / "trials" / spec.track / f"{spec.run_id}.json"
        folder = work.options.runs_dir / spec.run_id
        places[spec.run_id] = [p for p in (*files, trial, folder) if p.exists()]
    lines = ledger.read(work.options.leaderboards_dir / ledger.FILE)
    protocols = update.get("protocols", work.record.protocols).values()
    reads = records.first_reads(lines, protocols)
    work.record = records.noted(work.record, places, reads).model_copy(update=update)
    work.save()


def _carry(work: Work, specs: Sequence[RunSpec], options: Options) -> int:
    from bench.console import Console

    once = list({(spec.run_id, spec.track): spec for spec in specs}.values())
    if not once:
        return OK
    folders = [options.runs_dir, options.leaderboards_dir]
    seconds = expected(once, folders, judge.processor(), options.device).seconds
    with Console(len(once), work.say, live=work.live, seconds=seconds) as console:
        return runner.carry_out(once, options, finished=console.finished, watching=console.watching)


def _observations(work: Work, plans: dict[str, RunSpec]) -> int:
    """Make the observations that are missing; note which files the claim rests on."""
    jobs: dict[Path, observing.Job] = {}
    files: dict[str, list[str]] = {}
    for number, contrast in enumerate(work.claim.contrasts):
        name = contrast.study
        if name is None or name not in studies.NAMES:
            continue
        runs = dict.fromkeys(work.record.seeds)
        if contrast.sides:
            runs = _runs_read(work, number, plans)
        for seed, run in runs.items():
            file_name = observations.file_name(name, seed, run.folder.name if run else "")
            file = work.folder / "observations" / name / file_name
            files.setdefault(str(number), []).append(file_name)
            jobs[file] = observing.Job(name, seed, run, file)
    if not files:
        return OK
    places = {file.stem: [file] if file.exists() else [] for file in jobs}
    update = {"observations": files}
    work.record = records.noted(work.record, places).model_copy(update=update)
    work.save()
    lacking = [job for job in jobs.values() if work.options.force or not _is_current(job)]
    count = work.options.jobs or runner.default_jobs("cpu")
    return observing.carry_out(lacking, count, work.say)


def _is_current(job: observing.Job) -> bool:
    try:
        found = observations.read(job.file)
    except UserError:
        return False
    if found.hash != studies.study(job.study).hash:
        return False  # another version of the study, or of its settings, made it
    return job.run is None or found.artifacts == job.run.artifacts


def _runs_read(work: Work, number: int, plans: dict[str, RunSpec]) -> dict[int, studies.Run]:
    """Return what a study sees of the finished runs of a contrast, by seed."""
    found = {}
    for cell in work.record.cells:
        if cell.contrast != number:
            continue
        for seed, run_id in cell.runs.items():
            file = records.find_result(work.folder, cell.track, run_id)
            if file is None or (kept := results.read(file)).status != "done":
                work.say(f"{run_id} is not there to be read")
                continue
            found[int(seed)] = studies.Run(
                folder=(work.options.runs_dir / run_id).resolve(),
                spec=kept.spec,
                code=kept.code.model_dump(),
                track=kept.track,
                dataset=plans[run_id].dataset,
                input=kept.row.input,
                artifacts={name: a.sha256 for name, a in kept.artifacts.items()},
                ledger=str((work.options.leaderboards_dir / "ledger.jsonl").resolve()),
            )
    return found
