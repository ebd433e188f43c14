"""What planned runs will take: by runs alike, in images and in evaluations."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import synthetic_results

from bench import results
from bench.console import Console
from bench.expected import Remaining, expected
from bench.identity import run_id
from bench.plan import RunSpec

OTHER = {"processor": "Another", "device": "cpu"}


def earlier(folder: Path, method: str, seed: int = 0, *, training: float, **changes: Any) -> None:
    """Write a run of 216 steps of 128 images: `training`, 10 s of each evaluation, 5 s besides."""
    machine = changes.pop("machine", {"processor": "Mine", "device": "cpu"})
    made = synthetic_results.result(
        method,
        seed,
        cost={"train_seconds": training, "wall_seconds": training + 25.0},
        config={"training": training},
    )
    made = made.model_copy(
        update={
            "machine": made.machine.model_copy(update=machine),
            "evaluations": {
                key: entry.model_copy(update={"seconds": 10.0})
                for key, entry in made.evaluations.items()
            },
        }
    )
    results.write(folder / "clothes" / f"{made.run_id}.json", made)


def planned(method: str, *evaluations: str, **spec: Any) -> RunSpec:
    alike = synthetic_results.result(method, 0).spec
    return RunSpec(
        run_id="r",
        spec=alike | spec,
        track="clothes",
        plugin=method,
        dataset="d",
        row={},
        code={},
        evaluations=[{"name": name, "overrides": {}} for name in evaluations],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a board: three runs of a method, which took 20, 30 and 100 s to train."""
    for seed, seconds in enumerate((30.0, 20.0, 100.0)):
        earlier(tmp_path / "results", "simclr", seed, training=seconds)
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (planned("simclr", "linear_probe", "knn"), 30 + 25),  # the median
        (planned("simclr", "knn"), 30 + 15),
        (planned("simclr", "knn", budget={"steps": 432}), 60 + 15),
        (planned("simclr", "knn", budget={"steps": 432}, batch_size=64), 30 + 15),
        (planned("simclr", "knn", data={"name": "letters"}), 30 + 15),
    ],
)
def test_a_run_takes_what_its_images_and_its_evaluations_took(folder, asked, seconds):
    found = expected([asked], [folder], "Mine")
    assert found.core_seconds == pytest.approx(seconds)
    assert (found.unknown, found.earlier) == ({}, 3)
    assert found.seconds == {"r": pytest.approx(seconds)}


@pytest.mark.parametrize("spec", [{"image_size": 64}, {"precision": "bf16"}, {"threads": 2}])
def test_nothing_is_known_of_another_kind_of_run(folder, spec):
    found = expected([planned("simclr", "knn", **spec)], [folder], "Mine")
    assert (found.core_seconds, found.unknown, found.earlier) == (0, {"simclr": 1}, 0)


def test_threads_count_as_cores(tmp_path):
    made = synthetic_results.result("simclr", 0, cost={"train_seconds": 30.0, "wall_seconds": 40.0})
    made = made.model_copy(update={"spec": made.spec | {"threads": 2}})
    made = made.model_copy(update={"run_id": run_id(made.spec)})
    results.write(tmp_path / "results" / "clothes" / f"{made.run_id}.json", made)
    asked = planned("simclr", "linear_probe", "knn", threads=2)
    assert expected([asked], [tmp_path]).core_seconds == pytest.approx(2 * 40)


def test_runs_of_this_machine_say_it_before_those_of_another(folder):
    asked = planned("simclr", "knn", data={"name": "letters"})
    earlier(folder / "studies" / "trials", "simclr", 7, training=400.0, machine=OTHER)
    assert expected([asked], [folder], "Mine").core_seconds == pytest.approx(30 + 15)
    assert expected([asked], [folder], "Another").core_seconds == pytest.approx(400 + 15)


@pytest.mark.parametrize("place", ["results", "studies/trials", "studies/results", "tuning"])
def test_runs_of_boards_studies_and_tunings_are_found_once(tmp_path, monkeypatch, place):
    earlier(tmp_path / place, "simclr", training=30.0)
    monkeypatch.chdir(tmp_path.parent)
    reads = []
    read = results.read
    monkeypatch.setattr(results, "read", lambda file: reads.append(file) or read(file))
    asked = [planned("simclr", "knn")]
    assert expected(asked, [Path(tmp_path.name), tmp_path]).earlier == 1
    assert len(reads) == 1


def test_a_processor_says_nothing_of_a_card(folder):
    asked = planned("simclr", "knn")
    assert expected([asked], [folder], "Mine", "cuda").unknown == {"simclr": 1}
    card = {"processor": "Mine", "device": "NVIDIA H100 80GB HBM3"}
    earlier(folder / "results", "simclr", 8, training=2.0, machine=card)
    assert expected([asked], [folder], "Mine", "cuda").core_seconds == pytest.approx(2 + 15)
    assert expected([asked], [folder], "Mine").core_seconds == pytest.approx(30 + 15)


def test_damaged_and_failed_runs_are_passed_over(folder):
    damaged = folder / "results" / "clothes" / "simclr-s9-0123456789.json"
    damaged.write_text("{")
    failed = synthetic_results.result("simclr", 6, status="failed", reason="no room")
    results.write(folder / "results" / "clothes" / f"{failed.run_id}.json", failed)
    assert expected([planned("simclr", "knn")], [folder], "Mine").earlier == 3


def test_it_is_said_in_a_line(folder):
    asked = [planned("simclr", "knn")] * 4 + [planned("mine", "knn")] * 2
    found = str(expected(asked, [folder], "Mine"))
    assert found == "about 3 core-minutes, as 3 earlier runs took; 2 runs of mine: unknown"
    many = [planned("simclr", "knn")] * 320
    assert str(expected(many, [folder], "Mine")) == "about 4.0 core-hours, as 3 earlier runs took"
    assert str(expected([], [folder], "Mine")) == "nothing"


def test_what_is_left_follows_the_pace_of_the_runs_that_ended():
    """Four runs of 10 s each, two at a time: the first took 20 s, so that the others will too."""
    remaining = Remaining(dict.fromkeys("abcd", 10.0))
    assert remaining.left({"a": 0.0, "b": 0.0}, 2) == pytest.approx(20)
    assert remaining.left({"a": 5.0, "b": 5.0}, 2) == pytest.approx(15)
    remaining.ended("a", 20.0)
    assert remaining.left({"b": 20.0, "c": 0.0}, 1) == pytest.approx((0 + 20 + 20) / 2)
    remaining.ended("b", None)  # diverged at once, which says nothing of the others
    remaining.ended("c", 20.0)
    assert remaining.left({"d": 5.0}, 0) == pytest.approx(15)
    assert remaining.left({"d": 50.0}, 0) == 0


def test_nothing_is_promised_where_a_run_is_unknown():
    remaining = Remaining({"a": 10.0})
    assert remaining.left({"a": 0.0}, 1) is None
    assert remaining.left({}, 1) is None


def test_the_longest_run_under_way_is_waited_for():
    remaining = Remaining({"a": 100.0, "b": 1.0})
    assert remaining.left({"a": 0.0, "b": 0.0}, 0) == pytest.approx(100)


def test_a_terminal_shows_what_is_left_in_all(monkeypatch):
    """Of a board whose runs are known; those that were finished before take nothing."""
    shown = []
    console = Console(3, lambda line: None, live=False, seconds={"a": 60.0, "b": 60.0, "c": 60.0})
    monkeypatch.setattr(console, "_live", SimpleNamespace(update=shown.append))
    monkeypatch.setattr("bench.console.read_progress", lambda folder: None)
    runs = {name: replace(planned("simclr", "knn"), run_id=name) for name in "abc"}
    monkeypatch.setattr(console, "print", lambda line: None)
    console.finished(runs["a"], synthetic_results.result("simclr", 0), True)
    active = SimpleNamespace(spec=runs["b"], folder=Path(), begun=time.monotonic())
    console.watching([active], 1)
    last = [list(column.cells)[-1] for column in shown[-1].columns]
    assert last[0] == "1 waiting"
    assert last[2] == "about 2 min 00 s left in all"
