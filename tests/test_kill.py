"""Killed at random moments and restarted until done, every method leaves the same bytes.

Each attempt is a fork of a process that has imported everything and computed nothing, as in
`bench run`; it writes a checkpoint after every step.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import small_runs

from bench import checkpoints, child, confine, manager, runner, worker
from bench.identity import file_sha256
from bench.probe import fork_server

METHODS = sorted(manager.installed())
KILLS = 7  # of each method: over a hundred together
STEPS = 12
REACH = 0.5  # of an undisturbed run's duration: the latest moment of a kill


def lay_out(name: str, folder: Path) -> Path:
    """Return the folder of a run of the method with all that a child needs."""
    found = small_runs.specs([name], folder, steps=STEPS, backbone="test_resnet", args="")
    if not found:
        pytest.skip(f"{name} cannot be loaded")
    options = runner.Options(folder / "whole", checkpoint_seconds=0.0, leaderboards_dir=folder)
    run = runner.lay_out(found[0], options)
    worker._write_arrays(worker.read_orders(run))
    return run


def attempt(run: Path, seconds: float | None) -> tuple[bool, float]:
    """Train in a fork; kill it after `seconds`. Return whether it was killed and its duration."""
    begun, parent = time.monotonic(), os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            confine.die_with_parent(signal.SIGKILL, parent)
            status = child.confined(run, 0, 1, None)
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{run.name}: exit status {status}")
    return status != 0, time.monotonic() - begun


def kill_until_done(whole: Path, kills: int, report: Path) -> None:
    """Finish `whole` undisturbed, then copies of it, one after the other, until all kills are done.

    Runs in a process that was forked from the fork server: it computes nothing itself.
    """
    moments = random.Random(whole.name)
    orders = (whole / "run.json").read_bytes()
    _, duration = attempt(whole, None)
    outcome = json.loads((whole / "outcome-0.json").read_text())
    if outcome["status"] == "unsupported":  # of images of 16 pixels
        report.write_text(json.dumps({"unsupported": outcome["reason"]}))
        return
    told = {"kills": 0, "resumed": 0, "hashes": []}
    while told["kills"] < kills:
        run = whole.with_name(f"killed-{len(told['hashes'])}") / whole.name
        run.mkdir(parents=True)
        (run / "run.json").write_bytes(orders)
        killed, newest, reach = True, 0, REACH
        while killed:
            killed, _ = attempt(run, moments.uniform(0.02, reach) * duration)
            told["kills"] += killed
            step = max((step for step, _ in checkpoints.found(run)), default=0)
            told["resumed"] += killed and step > 0
            reach = REACH if step > newest else 1.5 * reach  # a busy machine still gets there
            newest = step
        told["hashes"].append(file_sha256(run / "backbone.safetensors"))
    report.write_text(json.dumps(told))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_random_moments_leaves_the_same_bytes(name: str, tmp_path: Path) -> None:
    whole, report = lay_out(name, tmp_path), tmp_path / "report.json"
    process = fork_server().Process(target=kill_until_done, args=(whole, KILLS, report))
    process.start()
    process.join(240)
    process.kill()
    process.join()
    assert process.exitcode == 0
    told = json.loads(report.read_text())
    if "unsupported" in told:
        pytest.skip(f"{name}: {told['unsupported']}")
    assert told["kills"] >= KILLS
    assert told["resumed"] >= KILLS // 3 or not checkpoints.found(whole)
    assert set(told["hashes"]) == {file_sha256(whole / "backbone.safetensors")}
