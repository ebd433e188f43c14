"""From options to a board: floors come along, variants stay apart, observers are told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_track

from bench import cli
from bench.runner import Options
from bench.session import execute, prepare

CODE = {"plugin_sha256": "today", "engine": 1}

OBSERVER = """
import json
from pathlib import Path
from bench import hookimpl

@hookimpl
def run_finished(spec, result):
    Path(r"{seen}").open("a").write(json.dumps([spec["method"], result["status"]]) + "\\n")
    print("seen", spec["method"])
    if spec["method"] == "raw_pixels":
        raise ValueError("an observer's own trouble")
"""
TRACK = ("--track", "digits.toml")  # of small_track
QUICK = (*TRACK, "--seeds", "1", "--limit", "160", "--epochs", "1", "--batch-size", "80")


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    place = tmp_path_factory.mktemp("board")
    (place / "watch.py").write_text(OBSERVER.format(seen=place / "seen"))
    small_track.write(place / "digits.toml")
    run = ("run", "--plugins", "simclr", "--set", "simclr.temperature=0.5", *QUICK)
    return place, bench(*run, "--observers", "./watch.py", cwd=place)


def test_floors_and_reference_come_along(board: tuple) -> None:
    place, run = board
    assert run.returncode == 0, run.stderr
    (page,) = (place / "runs" / "leaderboards").glob("digits~*.md")
    text = page.read_text()
    for title in ("Raw pixels", "Random initialisation", "Supervised", "SimCLR"):
        assert title in text
    assert "temperature=0.5" in text.split("## Variants")[1]
    assert "SimCLR" not in text.split("## Variants")[0].split("\n| ", 1)[1]


def test_changed_track_says_what_was_changed_and_nothing_else(board: tuple) -> None:
    place, _ = board
    (page,) = (place / "runs" / "leaderboards").glob("digits~*.md")
    text = page.read_text()
    assert re.search(r"Ad-hoc track: digits\S+ with batch size 80, epochs 1, limit 160\.", text)
    assert "Gray images: views of hue and saturation have no effect." in text
    assert "24 epochs" not in text
    assert "batch 128" not in text


def test_observers_are_told_and_their_trouble_changes_nothing(board: tuple) -> None:
    place, run = board
    seen = sorted(json.loads(line) for line in (place / "seen").read_text().splitlines())
    assert seen == [
        [name, "done"] for name in ("random_init", "raw_pixels", "simclr", "supervised")
    ]
    assert "watch.py: ValueError: an observer's own trouble (watch.py, line 11)" in run.stdout
    assert run.stderr.count("seen raw_pixels") == 1  # stdout may be a document
    assert "Traceback" not in run.stderr


Told = Callable[..., tuple[int, str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """Carry out a command in this process and a folder; return its exit status and stdout."""

    def carry_out(*arguments: str, cwd: Path) -> tuple[int, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "200")
        return cli.main(list(arguments)), capsys.readouterr().out

    return carry_out


def test_finished_runs_are_skipped(board: tuple, told: Told) -> None:
    place, _ = board
    command = ("run", "--plugins", "simclr", "--set", "simclr.temperature=0.5", *QUICK)
    assert told(*command, cwd=place)[1].count("(finished before)") == 4


def test_dev_opens_no_test_split(tmp_path: Path, told: Told) -> None:
    small_track.write(tmp_path / "digits.toml")
    status, said = told("run", "--plugins", "random_init", "--dev", *QUICK, cwd=tmp_path)
    assert status == 0, said
    (result,) = tmp_path.glob("runs/results-dev/*/random_init-*.json")
    entries = json.loads(result.read_text())["evaluations"].values()
    assert all(e["metrics"] == {} and e["test_reads"] == 0 and e["validation"] for e in entries)
    assert not list(tmp_path.glob("runs/results/*/*.json"))


def test_a_finished_run_is_evaluated_further(board: tuple, told: Told) -> None:
    place, _ = board
    folder = next((place / "runs").glob("simclr-s0-*"))
    status, said = told("eval", folder.name, "--evaluations", "knn", cwd=place)
    assert (status, "knn" in said) == (0, True), said
    weights = str(folder / "backbone.safetensors")
    external = ("eval", "--track", "digits", "--weights", weights, "--evaluations", "knn")
    status, said = told(*external, cwd=place)
    assert (status, "external: training data unknown" in said) == (0, True), said


def test_unknown_backbone_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "--plugins", "random_init", "--backbone", "resnet81"]) == 2
    assert capsys.readouterr().err.startswith("Error: no timm model 'resnet81'; did you mean")
    assert not (tmp_path / "runs" / "results").exists()


def test_ad_hoc_track_is_the_same_wherever_its_files_lie(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 4
    pages = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "set.npz"
        np.savez(file, x_train=images, y_train=labels, x_test=images[::-1], y_test=labels[::-1])
        overrides = {"dataset": f"npz:{file}", "batch_size": 8}
        session = prepare("random_init", overrides=overrides, seeds="1")
        assert {spec.track for spec in session.specs} == {session.page["id"]}
        pages.append(session.page)
    assert pages[0] == pages[1]
    assert "with batch size 8, dataset npz:set.npz." in pages[0]["description"]


@pytest.mark.parametrize(
    ("statuses", "ended"),
    [
        (["done", "unsupported"], 0),
        (["done", "diverged"], 1),
        (["invalid"], 1),
        ([None], 1),
    ],
)
def test_a_board_of_runs_that_broke_down_ends_with_1(
    statuses: list[str | None], ended: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when they broke down before, and are not run again."""

    def carry_out(specs, options, *, finished, watching):
        for status in statuses:
            finished(specs[0], status and ended_as(status), status is not None)
        return int(None in statuses)

    monkeypatch.setattr("bench.runner.carry_out", carry_out)
    lines: list[str] = []
    assert execute(one_run(), Options(tmp_path), say=lines.append, live=False) == ended
    assert not any("--stale" in line for line in lines)


def test_a_finished_run_of_other_code_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(specs, options, *, finished, watching):
        finished(specs[0], ended_as("diverged", plugin_sha256="older"), True)
        return 0

    monkeypatch.setattr("bench.runner.carry_out", carry_out)
    lines: list[str] = []
    execute(one_run(), Options(tmp_path), say=lines.append, live=False)
    assert lines[-1] == "a-s0-0: other code ran it; --stale runs today's"


def one_run() -> SimpleNamespace:
    """A session of one run, as far as `execute` looks at it."""
    spec = SimpleNamespace(run_id="a-s0-0", spec={"method": "a", "seed": 0}, code=CODE)
    page = {"id": "t", "protocols": []}
    return SimpleNamespace(specs=[spec], track=SimpleNamespace(id="t"), page=page)


def ended_as(status: str, **code: str) -> SimpleNamespace:
    cost = SimpleNamespace(wall_seconds=1.0)
    run = SimpleNamespace(status=status, reason="", evaluations={}, cost=cost)
    run.code = SimpleNamespace(**CODE | code)
    return run
