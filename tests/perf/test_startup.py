"""What commands wait for: imports that they cannot do without, and little else.

Fresh processes take turns. The first step of a run is read from its progress record.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.meters import read_progress

ROUNDS, LONGEST = 7, 300.0
IMPORTS = "import torch, timm, torchvision"
RUN = ("--plugins", "simclr", "--seeds", "1", "--limit", "256", "--epochs", "1", "--dev")


def test_the_first_step_comes_within_one_and_a_half_times_the_imports(
    benchmark: Any, tmp_path: Path
) -> None:
    def bare() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        return time.perf_counter() - begun

    _first_step(tmp_path / "warm"), bare()  # which read the files from disk
    ours, theirs = [], []
    for number in range(ROUNDS):
        ours.append(_first_step(tmp_path / str(number)))
        theirs.append(bare())
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    found = statistics.median(ratios)
    benchmark.extra_info.update(ratio=found, first_step=ours, imports=theirs)
    benchmark.pedantic(bare, rounds=1)
    seconds = f"{statistics.median(ours):.1f} s / {statistics.median(theirs):.1f} s"
    print(f"\n{found:.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f}; medians {seconds})")
    assert found <= 1.5


@pytest.mark.parametrize(("args", "most"), [(("--help",), 2.0), (("list",), 3.5)])
def test_help_and_list_take_little_more_than_the_libraries_that_print_them(
    benchmark: Any, args: tuple[str, ...], most: float
) -> None:
    """Processor seconds of fresh processes, the least of several turns of each."""
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(_processor_seconds("-m", "bench", *args))
        theirs.append(_processor_seconds("-c", "import click, rich.console, rich.table"))
    found = min(ours) / min(theirs)
    benchmark.extra_info.update(ratio=found, command=ours, libraries=theirs)
    benchmark.pedantic(_processor_seconds, ("-m", "bench", *args), rounds=1)
    print(f"\n{args[0]}: {found:.2f} ({min(ours):.2f} s / {min(theirs):.2f} s)")
    assert found <= most


def _processor_seconds(*arguments: str) -> float:
    """Return the user and system seconds that a Python process with `arguments` took."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def _first_step(folder: Path) -> float:
    """Return the seconds from the command to the first step; the run is then stopped."""
    command = [sys.executable, "-m", "bench", "run", *RUN, "--runs-dir", str(folder)]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as planner:
        while time.perf_counter() - begun < LONGEST and planner.poll() is None:
            for run in folder.glob("simclr-*"):
                progress = read_progress(run)
                if progress is not None and progress.step >= 1:
                    seconds = time.perf_counter() - begun
                    planner.terminate()
                    return seconds
            time.sleep(0.005)
        planner.kill()
    raise AssertionError("the run ended or stalled before its first step")
