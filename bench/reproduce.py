"""Train a published run again, from its result's spec alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ENGINE, manager
from bench.columns import is_validation
from bench.errors import UserError
from bench.probe import probe
from bench.results import TRACK_FILE, EvaluationEntry, Result, read
from bench.verify import verify

if TYPE_CHECKING:
    from bench.plan import RunSpec
    from bench.runner import Options
    from bench.verdict import Row

TRAINED_HERE = ("installed", "local", "floor")


def check_published(run: Result) -> None:
    """Refuse a result that no training can reproduce.

    Raises:
        UserError: it is unfinished, from elsewhere, or contradicts itself.
    """
    if run.row.origin not in TRAINED_HERE:
        raise UserError(
            f"{run.run_id} is a checkpoint from elsewhere; nothing was trained here, `bench eval` "
            "evaluates it again"
        )
    if run.status != "done":
        raise UserError(f"{run.run_id} ended as {run.status}; only finished runs are reproduced")
    if fault := verify(run, run.track):
        raise UserError(f"{run.run_id} contradicts itself: {fault}; `bench run` makes it anew")


def rebuild(
    run: Result,
    row: Row,
    *,
    plugin: str | None = None,
    dataset: str | None = None,
    stale_ok: bool = False,
    runs_dir: Path,
) -> RunSpec:
    """Return the run that a result's spec asks for, to be evaluated by the page's protocols.

    Args:
        plugin: the file of a method that is not installed.
        dataset: where the data lie, for data that a path names; the spec has no folders.
        stale_ok: go on although plugin or engine are not the ones that trained the result.

    Raises:
        UserError: method, code, data or a protocol are not here as the result had them.
    """
    from bench.plan import RunSpec
    from bench.session import with_source

    spec = run.spec
    source = dataset or str(spec["data"]["name"])
    if dataset is None and ":" in source:
        kind = source.partition(":")[0]
        raise UserError(
            f"{run.run_id} ran on {source}, whose folder no result says; give --dataset {kind}:PATH"
        )
    request, sha256 = _plugin(run, plugin)
    if not stale_ok and (changed := stale(run, sha256)):
        raise UserError(f"{run.run_id} is stale: {changed}; --stale-ok trains it by today's code")
    asked = {entry.id: entry.settings for entry in _entries(run, row).values()}
    answer = probe(
        [request] if request else [],
        recipe="",
        overrides={},
        data={
            "name": source,
            "image_size": spec["image_size"],
            "store_size": spec["data"].get("store_size"),
            "parity": spec["data"].get("parity", False),
            "on_bad_image": on_bad_image(run),
            "test": False,
            "backbone": spec["backbone"],
        },
        seeds=[run.seed],
        runs_dir=runs_dir,
        evaluations=asked,
    )
    if request and (error := answer["methods"][request]["error"]):
        raise UserError(error)
    _same_data(run, source, answer["data"])
    _same_protocols(run, row, answer["protocols"])
    again = RunSpec(
        run_id=run.run_id,
        spec=spec,
        track=run.track,
        plugin=request,
        dataset=source,
        row=run.row.model_dump() | {"notes": []},
        code=run.code.model_dump() | {"plugin_sha256": sha256, "engine": ENGINE},
        evaluations=[{"name": name, "overrides": given} for name, given in asked.items()],
    )
    return with_source(again, source)


def on_bad_image(run: Result) -> str:
    """Return what became of broken images in a run."""
    return "skip" if run.data.skipped else "error"


def validation_only(run: Result) -> bool:
    """Return whether a run never opened the test split."""
    return bool(run.evaluations) and all(map(is_validation, run.evaluations.values()))


def _entries(run: Result, row: Row) -> dict[str, EvaluationEntry]:
    """Return the run's evaluations that its page shows, by protocol hash."""
    shown = {column.hash for column in row.columns(run)}
    return {key: entry for key, entry in run.evaluations.items() if key in shown}


def _plugin(run: Result, plugin: str | None) -> tuple[str | None, str]:
    """Return what the child loads and its sha256; None and "" where nothing trains."""
    if run.row.origin == "floor":
        return None, run.code.plugin_sha256
    local = run.spec.get("local")
    if local is None:
        if plugin is not None:
            raise UserError(f"{run.method} was an installed method; leave --plugin out")
        known = manager.installed()
        if run.method not in known:
            owner = f"{run.code.distribution} {run.code.version}".strip() or "its distribution"
            raise UserError(f"{run.method} is not installed; install {owner}")
        manager.find(run.method)
        file = known[run.method].file
        if file is None:
            raise UserError(f"{run.method} is installed without its source; install it anew")
        return run.method, manager.source_sha256(file)
    if plugin is None:
        raise UserError(
            f"{run.method} was a local file, sha256 {local[:12]}; give it with --plugin FILE"
        )
    found = manager.find(plugin)
    if not isinstance(found, Path) or found.stem != run.method:
        raise UserError(f"--plugin {plugin}: expected a file {run.method}.py")
    sha256 = manager.source_sha256(found)
    if sha256 != local:
        raise UserError(
            f"--plugin {plugin}: its sha256 is {sha256[:12]}, the run's was {local[:12]}; "
            "give the file as it was"
        )
    return str(found), sha256


def stale(run: Result, plugin_sha256: str) -> str:
    """Return in which way other code than today's trained a run, or ""."""
    changes: list[str] = []
    if run.row.origin == "floor":
        return ""  # nothing was trained
    if run.code.plugin_sha256 != plugin_sha256:
        changes.append(
            f"its plugin was {run.code.plugin_sha256[:12]} and is {plugin_sha256[:12]} now"
        )
    if run.code.engine != ENGINE:
        changes.append(f"its engine was {run.code.engine} and is {ENGINE} now")
    return ", ".join(changes)


def _same_data(run: Result, source: str, data: dict[str, Any]) -> None:
    facts, split = data["facts"], data["splits"]
    of_seed = split[run.seed] if run.seed in split else split[str(run.seed)]
    for name, then, now in (
        ("data set", run.spec["data"]["sha256"], facts["sha256"]),
        ("validation split", run.spec["data"]["split"], of_seed["sha256"]),
    ):
        if then != now:
            raise UserError(
                f"{source}: the {name} hashes to {now[:12]}, the run's to {then[:12]}; "
                "give the data as they were with --dataset"
            )


def _same_protocols(run: Result, row: Row, today: Sequence[dict[str, Any]]) -> None:
    hashes = {protocol["hash"] for protocol in today}
    for key, entry in _entries(run, row).items():
        if key not in hashes:
            now = next(protocol for protocol in today if protocol["id"] == entry.id)
            raise UserError(
                f"{run.run_id} was evaluated by {entry.id} {entry.version} ({key}), which is "
                f"{now['version']} ({now['hash']}) now; their numbers cannot be compared"
            )


def carry_out(
    spec: RunSpec, options: Options, *, say: Callable[[str], None], live: bool
) -> tuple[Result | None, int]:
    """Train and evaluate; return the new result, if the run ended, and the run's exit status."""
    from bench import runner, worker
    from bench.console import Console

    target = runner.result_path(spec, options)
    if (target.parent / TRACK_FILE).exists():
        raise UserError(
            f"{options.runs_dir} is the working folder of `bench run`; choose another --runs-dir"
        )
    folder = options.runs_dir / spec.run_id
    here = str(target.parent.resolve())
    if (folder / "run.json").exists() and worker.read_orders(folder)["results"] != here:
        raise UserError(
            f"{folder} is the run itself, as a board or a study made it; choose another --runs-dir"
        )
    # What an earlier reproduction finished is trained anew; what was interrupted goes on.
    options = replace(options, force=target.exists())
    with Console(1, say, live=live) as console:
        status = runner.carry_out(
            [spec], options, finished=console.finished, watching=console.watching
        )
    return (read(target) if target.exists() else None), status
