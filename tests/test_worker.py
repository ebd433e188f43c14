"""The worker: whatever a plugin does, a row says so, and nothing else is touched or left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs

from bench import checkpoints, confine, results, runner, worker
from bench.errors import UserError
from bench.external import evaluate_run
from bench.identity import file_sha256
from bench.meters import read_progress
from bench.plan import RunSpec
from bench.probe import fork_server
from bench.worker import Watch

MARK = "BENCH_TEST_MARK"
TWELVE = (
    "raises",
    "exits",
    "exits_at_once",
    "segfault",
    "hangs",
    "forks",
    "eats_memory",
    "nan_loss",
    "nan_features",
    "prints",
    "changes_globals",
    "writes_elsewhere",
)


class Planner:
    """`planner.py` as a subprocess; all that comes of it carries a mark in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("planner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {MARK: self.mark},
            text=True,
        )

    def ask(self, runs_dir: str, plugins: list[str], *, steps: int, **options: Any) -> None:
        """Have the runs carried out; do not wait."""
        asked = {
            "plugins": plugins,
            "runs_dir": str(self.folder / runs_dir),
            "data_dir": str(self.folder),
            "steps": steps,
            "options": options,
        }
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def rows(self) -> tuple[dict[str, results.Result], dict[str, Any]]:
        """Return the results by method, and the planner's last word."""
        found = {}
        for line in self.process.stdout:
            said = json.loads(line)
            if "status" in said:
                return found, said
            result = results.read(said["result"])
            found[result.method] = result
        raise AssertionError("the planner died")

    def alive(self) -> list[int]:
        """Return the processes that carry the mark."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planner]:
    planner = Planner(tmp_path_factory.mktemp("planner"))
    yield planner
    planner.process.kill()
    planner.process.wait()


@pytest.fixture(scope="module")
def rows(planner: Planner) -> dict[str, results.Result]:
    """The twelve and a good plugin in one run, two at a time."""
    plugins = small_runs.hostile("good", *TWELVE)
    planner.ask("together", plugins, steps=5, jobs=2, stall=6.0, memory_gib=1.0)
    found, last = planner.rows()
    assert last == {"status": 1, "torch": False}
    wait_for(lambda: len(planner.alive()) <= 3)  # planner, resource tracker, fork server
    return found


def log(planner: Planner, row: results.Result) -> str:
    return (planner.folder / "together" / row.run_id / "child.log").read_text()


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        ("good", "done", ""),
        ("raises", "failed", "RuntimeError: the core [31m melted at dawn (raises.py, line 38)"),
        ("exits", "failed", "the plugin called sys.exit(3) (exits.py, line 36)"),
        ("exits_at_once", "failed", "the plugin's process ended by itself with exit status 7"),
        ("segfault", "failed", "the plugin's process was killed by SIGSEGV"),
        ("hangs", "timeout", "no step for 6 s (--stall)"),
        ("forks", "done", ""),
        ("eats_memory", "out_of_memory", "the limit is 1.0 GiB"),
        ("nan_loss", "diverged", "diverged at step 2"),
        ("nan_features", "invalid", "the weights hold non-finite numbers"),
        ("prints", "done", ""),
        ("changes_globals", "done", ""),
    ],
)
def test_row_says_what_a_hostile_plugin_did(
    rows: dict[str, results.Result], method: str, status: str, reason: str
) -> None:
    row = rows[method]
    assert row.status == status, row.reason
    assert row.reason.endswith(reason) if reason else row.reason == ""
    assert bool(row.evaluations) == (status == "done")


def test_every_hostile_plugin_has_a_row(rows: dict[str, results.Result]) -> None:
    files = {path.stem for path in small_runs.HOSTILE.glob("*.py")}
    assert set(rows) == files == {"good", *TWELVE}


def test_processes_left_behind_are_killed_and_noted(rows: dict[str, results.Result]) -> None:
    assert rows["forks"].row.notes == ["left 2 processes behind; they were killed"]


def test_output_is_capped_and_clean(planner: Planner, rows: dict[str, results.Result]) -> None:
    text = log(planner, rows["prints"])
    assert rows["prints"].row.notes == ["printed 95 MiB; the log keeps its two ends"]
    assert len(text.encode()) < 1.2 * 2**20
    assert text.startswith("first words ?[2J?]0;owned? ?31m\nover\n?[1mzz")
    assert text.endswith("last words\n")
    assert all(c == "\n" or c.isprintable() for c in text)


def test_changed_globals_are_noted(rows: dict[str, results.Result]) -> None:
    (note,) = rows["changes_globals"].row.notes
    assert note == "changed global state: default dtype, threads, working directory"


@pytest.mark.skipif(not confine.landlock_version(), reason="the kernel has no Landlock")
def test_other_runs_cannot_be_written_to(planner: Planner, rows: dict[str, results.Result]) -> None:
    row = rows["writes_elsewhere"]
    assert row.status == "failed"
    assert row.reason.startswith("PermissionError")
    assert "\n0 files harmed\n" in "\n" + log(planner, row)
    assert not (planner.folder / "together" / "mine").exists()


def test_good_plugin_beside_the_twelve_is_byte_equal_to_itself_alone(
    planner: Planner, rows: dict[str, results.Result]
) -> None:
    planner.ask("alone", small_runs.hostile("good"), steps=5, jobs=1)
    alone, last = planner.rows()
    assert last["status"] == 0
    assert alone["good"].artifacts == rows["good"].artifacts
    file = planner.folder / "together" / rows["good"].run_id / "backbone.safetensors"
    assert file_sha256(file) == alone["good"].artifacts["backbone.safetensors"].sha256
    skips = [e.metrics for e in alone["good"].evaluations.values()]
    assert skips == [e.metrics for e in rows["good"].evaluations.values()]


def test_killing_the_planner_leaves_no_process(
    planner: Planner, rows: dict[str, results.Result]
) -> None:
    planner.ask("killed", small_runs.hostile("good", "forks"), steps=10**6, jobs=2)
    folder = planner.folder / "killed"
    wait_for(lambda: len([f for f in folder.glob("*-s0-*") if read_progress(f)]) == 2)
    assert len(planner.alive()) == 9  # three of the planner's, two workers, children, left behind
    planner.process.kill()
    planner.process.wait()
    wait_for(lambda: not planner.alive())
    assert not list(folder.glob("results/*/*.json"))
    assert len(list(folder.glob("*/checkpoint-*.pt"))) >= 2


# One worker, from this process


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSpec, str]:
    """A run of some seconds: where its data lie, its spec, the hash of what it leaves."""
    folder = tmp_path_factory.mktemp("worker")
    (spec,) = small_runs.specs(small_runs.hostile("good"), folder, steps=150)
    place, process = start(spec, folder / "whole")
    process.join()
    assert process.exitcode == 0
    return folder, spec, file_sha256(place / "backbone.safetensors")


def start(spec: RunSpec, runs_dir: Path) -> tuple[Path, Any]:
    place = runner.lay_out(spec, runner.Options(runs_dir, leaderboards_dir=runs_dir))
    process = fork_server().Process(target=worker.entry, args=(str(place),))
    process.start()
    return place, process


def trains(place: Path) -> bool:
    progress = read_progress(place)
    return progress is not None and progress.step > 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_at_the_next_step_and_resumes_to_the_same_bytes(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path, signum: signal.Signals
) -> None:
    _, spec, whole = long_run
    place, process = start(spec, tmp_path)
    wait_for(lambda: trains(place))
    os.kill(process.pid, signum)
    process.join()
    assert process.exitcode == 128 + signum
    result = runner.result_path(spec, runner.Options(tmp_path))
    assert not result.exists()
    assert not (place / "backbone.safetensors").exists()
    stopped_at = checkpoints.found(place)[0][0]
    assert stopped_at == read_progress(place).step < 150

    _, process = start(spec, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert file_sha256(place / "backbone.safetensors") == whole
    assert results.read(result).attempts == 2


def test_second_worker_on_a_folder_is_refused(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path
) -> None:
    _, spec, _ = long_run
    place, process = start(spec, tmp_path)
    wait_for(lambda: trains(place))
    second = fork_server().Process(target=worker.entry, args=(str(place),))
    second.start()
    second.join()
    assert second.exitcode == 2
    with pytest.raises(UserError, match="is being worked on by another process"):
        runner.carry_out(
            [spec],
            runner.Options(tmp_path, force=True, leaderboards_dir=tmp_path),
            finished=lambda spec, result, skipped: None,
            watching=lambda active, waiting: None,
        )
    assert process.is_alive()
    process.terminate()
    process.join()
    assert not worker.is_leased(place)


def test_a_run_that_another_process_finishes_meanwhile_is_taken_as_it_is(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path
) -> None:
    """Two boards in one working folder share floors and reference."""
    folder, shared, _ = long_run
    (own,) = small_runs.specs(small_runs.hostile("raises"), folder, steps=150)
    there = runner.result_path(shared, runner.Options(folder / "whole")).read_bytes()
    options = runner.Options(tmp_path, jobs=1, leaderboards_dir=tmp_path)
    target = runner.result_path(shared, options)
    ended: list[tuple[str, bool]] = []
    seen: list[tuple[int, int]] = []
    with contextlib.ExitStack() as other:

        def watching(active: list[runner.Active], waiting: int) -> None:
            seen.append((len(active), waiting))
            if len(seen) == 1:
                (tmp_path / shared.run_id).mkdir()
                other.enter_context(worker._lease(tmp_path / shared.run_id))
            elif seen[-3:] == [(0, 1)] * 3:
                target.write_bytes(there)
                other.close()

        runner.carry_out(
            [own, shared],
            options,
            finished=lambda spec, result, skipped: ended.append((spec.run_id, skipped)),
            watching=watching,
        )

    assert ended == [(own.run_id, False), (shared.run_id, True)]
    assert target.read_bytes() == there


@contextlib.contextmanager
def changed(archive: Path, name: str) -> Iterator[None]:
    """One number of the archive's array is another for a while."""
    before = archive.read_bytes()
    with np.load(archive) as stored:
        arrays = dict(stored)
    arrays[name].flat[0] = (int(arrays[name].flat[0]) + 1) % small_runs.CLASSES
    np.savez(archive, **arrays)
    try:
        yield
    finally:
        archive.write_bytes(before)


@pytest.mark.parametrize("name", ["x_train", "y_train"])
def test_data_that_changed_since_the_plan_train_nothing(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path, name: str
) -> None:
    folder, spec, _ = long_run
    with changed(folder / "small.npz", name):
        place, process = start(spec, tmp_path)
        process.join()
    assert process.exitcode == 2
    assert not runner.result_path(spec, runner.Options(tmp_path)).exists()
    assert not (place / "metrics.jsonl").exists()


def test_a_finished_run_is_not_judged_again_on_other_test_images(
    long_run: tuple[Path, RunSpec, str],
) -> None:
    folder, spec, _ = long_run
    path = runner.result_path(spec, runner.Options(folder / "whole"))
    before, ledger = path.read_bytes(), folder / "whole" / "ledger.jsonl"
    with changed(folder / "small.npz", "x_test"), pytest.raises(UserError, match="test images"):
        evaluate_run(spec.run_id, ["linear_probe"], folder / "whole", ledger_file=ledger)
    assert path.read_bytes() == before


def test_artifact_with_changed_bytes_is_trained_again(
    long_run: tuple[Path, RunSpec, str],
) -> None:
    folder, spec, whole = long_run
    place = folder / "whole" / spec.run_id
    artifact = place / "backbone.safetensors"
    content = bytearray(artifact.read_bytes())
    content[-1] ^= 1
    artifact.write_bytes(content)
    _, process = start(spec, folder / "whole")
    process.join()
    result = results.read(runner.result_path(spec, runner.Options(folder / "whole")))
    assert result.status == "done"
    assert result.artifacts["backbone.safetensors"].sha256 == file_sha256(artifact) == whole


def test_a_method_that_is_shown_gray_images_has_its_plain_numbers_too(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path
) -> None:
    folder, spec, _ = long_run
    gray = dataclasses.replace(spec, row=spec.row | {"input": "gray3"})
    shutil.copytree(folder / "whole" / spec.run_id, tmp_path / spec.run_id)
    _, process = start(gray, tmp_path)
    process.join()
    plain = results.read(runner.result_path(spec, runner.Options(folder / "whole")))
    judged = results.read(runner.result_path(spec, runner.Options(tmp_path)))
    for key, entry in judged.evaluations.items():
        assert entry.chosen["input"] == "gray3"
        assert entry.chosen["rgb"]["metrics"] == plain.evaluations[key].metrics
        assert "rgb" not in plain.evaluations[key].chosen


def test_what_was_added_to_a_result_survives_its_being_judged_again(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path
) -> None:
    """As after a new version of one of the track's protocols; other code's is not carried over."""
    folder, spec, _ = long_run
    shutil.copytree(folder / "whole", tmp_path / "runs")
    options = runner.Options(tmp_path / "runs", leaderboards_dir=tmp_path / "runs")
    path = runner.result_path(spec, options)
    kept = results.read(path)
    (knn,) = kept.evaluations.values()
    added = knn.model_copy(update={"id": "linear_raw", "metrics": {"best_top1": 12.5}})
    older = knn.model_copy(update={"version": 0})
    more = {"a" * 12: added, "b" * 12: older} | dict(kept.evaluations)

    for code, carried in ((kept.code, True), (kept.code.model_copy(update={"engine": 0}), False)):
        results.write(path, kept.model_copy(update={"evaluations": more, "code": code}))
        _, process = start(spec, tmp_path / "runs")
        process.join()
        again = results.read(path)
        assert ("a" * 12 in again.evaluations) == carried
        assert "b" * 12 not in again.evaluations
        assert not results.replaced(path).exists()


@pytest.mark.parametrize("boards", [("one",), ("one", "two"), ()])
def test_more_is_evaluated_of_the_result_on_the_board(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path, boards: tuple[str, ...]
) -> None:
    """The last orders of a shared folder were of a run without the test split."""
    folder, spec, _ = long_run
    place = tmp_path / spec.run_id
    shutil.copytree(folder / "whole" / spec.run_id, place)
    whole = results.read(runner.result_path(spec, runner.Options(folder / "whole")))
    for board in boards:
        results.write(tmp_path / "results" / board / f"{spec.run_id}.json", whole)
    orders = json.loads((place / "run.json").read_text())
    orders |= {"dev": True, "results": str(tmp_path / "results-dev" / "one")}
    results.write(tmp_path / "results-dev" / "one" / f"{spec.run_id}.json", whole)
    (place / "run.json").write_text(json.dumps(orders))

    if len(boards) == 1:
        path = results.path_of_run(orders, spec.run_id, tmp_path)
        assert path == tmp_path / "results" / "one" / f"{spec.run_id}.json"
        return
    said = "stands on several boards; name one of" if boards else "whose test split stays closed"
    with pytest.raises(UserError, match=said):
        evaluate_run(spec.run_id, ["linear_probe"], tmp_path, ledger_file=tmp_path / "ledger.jsonl")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_unchanged_artifact_is_not_trained_again(long_run: tuple[Path, RunSpec, str]) -> None:
    folder, spec, _ = long_run
    place = folder / "whole" / spec.run_id
    before = (place / "backbone.safetensors").stat().st_mtime_ns
    _, process = start(spec, folder / "whole")
    process.join()
    assert process.exitcode == 0
    assert (place / "backbone.safetensors").stat().st_mtime_ns == before


def test_artifact_that_does_not_hash_to_what_the_child_said_is_refused(tmp_path: Path) -> None:
    (tmp_path / "backbone.safetensors").write_bytes(b"other bytes")
    told = {"artifacts": {"backbone.safetensors": {"sha256": "0" * 64, "bytes": 11}}}
    watch = worker._verified(tmp_path, Watch("done", outcome=told))
    assert (watch.status, watch.reason) == (
        "failed",
        "backbone.safetensors was changed after the run wrote it",
    )


def test_killed_worker_takes_its_child_along(
    long_run: tuple[Path, RunSpec, str], tmp_path: Path
) -> None:
    _, spec, _ = long_run
    place, process = start(spec, tmp_path)
    wait_for(lambda: trains(place))
    (child,) = confine.descendants(process.pid)
    process.kill()
    process.join()
    wait_for(lambda: not worker.is_leased(place))
    wait_for(lambda: has_ended(child))


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_error_of_the_judge_becomes_a_row(long_run: tuple[Path, RunSpec, str]) -> None:
    folder, spec, _ = long_run
    asked = dataclasses.replace(spec, evaluations=[{"name": "astrology", "overrides": {}}])
    _, process = start(asked, folder / "whole")
    process.join()
    assert process.exitcode == 0
    result = results.read(runner.result_path(spec, runner.Options(folder / "whole")))
    assert result.status == "failed"
    assert result.reason.startswith("judging failed: no evaluation 'astrology'")


@pytest.mark.parametrize("content", ["", "no number"])
def test_damaged_count_of_attempts_begins_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "attempts").write_text(content)
    assert [worker._count_attempt(tmp_path), worker._count_attempt(tmp_path)] == [1, 2]


def test_folder_without_orders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run folder: it has no run\.json"):
        worker.main(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "no document", '{"spec": {}, "results": ""}'])
def test_damaged_orders_are_refused_in_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(
        UserError, match=r"run\.json is damaged .*; remove the folder and"
    ) as caught:
        worker.main(tmp_path)
    assert "\n" not in str(caught.value)
