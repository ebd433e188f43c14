"""Budgets of device-seconds: measured in turns, once, and said in the row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from synthetic_results import result
from test_plan import data, method

from bench import calibration, plan, pricing, training_flops
from bench.errors import UserError
from bench.results import Machine
from bench.training_flops import Count, Training
from bench.turns import Cell, Place

PLACE = Place(Machine(processor="a processor", torch="2", timm="1"))


def training(name: str, **changes: Any) -> Training:
    spec = result(name, 0).spec | {"backbone": {"name": "r", "args": {}, "stem": None}} | changes
    return Training(name, spec, "c0de", 900, 10, False)


class Measured:
    """Stands for `turns.measure`: known speeds, and the calls that were made."""

    def __init__(self, **speeds: float) -> None:
        self.speeds, self.calls, self.notes = speeds, [], []
        self.warm, self.busy_cores = True, 0.01

    def __call__(
        self, cells: Sequence[Cell], place: Place, protocol: Any, stall: float
    ) -> Iterator[tuple[Cell, Any]]:
        self.calls.append(([cell.spec.method for cell in cells], protocol.settings))
        self.cells = list(cells)
        for cell in cells:
            speed = self.speeds.get(cell.spec.method)
            mode = speed and SimpleNamespace(
                images_per_second=speed, low=speed - 1, high=speed + 1, warm=self.warm
            )
            status = "done" if mode else "out_of_memory"
            found = SimpleNamespace(status=status, reason="no room", modes={"pipeline": mode})
            found.notes, found.others, found.busy_cores = self.notes, [], self.busy_cores
            yield cell, found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    found = Measured(one=100.0, two=50.0)
    monkeypatch.setattr(calibration, "measure", found)
    monkeypatch.setattr(calibration, "here", lambda device, threads: PLACE)
    return found


def test_methods_are_measured_together_and_once(measured: Measured, tmp_path: Path) -> None:
    wanted = {name: training(name) for name in ("one", "two")}
    found, fresh = calibration.rates(wanted, device="cpu", folder=tmp_path)
    assert fresh
    assert {name: rate.images_per_second for name, rate in found.items()} == {"one": 100, "two": 50}
    again, fresh = calibration.rates(wanted, device="cpu", folder=tmp_path)
    assert again == found
    assert not fresh
    ((names, settings),) = measured.calls
    assert names == ["one", "two"]  # in one call, which takes turns
    assert (settings["num_images"], settings["num_classes"]) == (900, 10)


@pytest.mark.parametrize(
    "change", [{"batch_size": 64}, {"precision": "bf16"}, {"threads": 2}, {"config": {"t": 1}}]
)
def test_another_step_is_measured_anew_and_beside_the_others(
    change: dict[str, Any], measured: Measured, tmp_path: Path
) -> None:
    calibration.rates({"one": training("one")}, device="cpu", folder=tmp_path)
    calibration.rates({"one": training("one", seed=3)}, device="cpu", folder=tmp_path)
    assert len(measured.calls) == 1
    both = {"one": training("one", **change), "two": training("two")}
    calibration.rates(both, device="cpu", folder=tmp_path)
    assert measured.calls[1][0] == ["one", "two"]


def test_what_is_timed_is_the_step_and_the_images_of_the_run(
    measured: Measured, tmp_path: Path
) -> None:
    plain = training("one")
    saving = {"chunk": 64, "checkpointing": True, "compile": True}
    larger = {"data": plain.spec["data"] | {"store_size": 48}}
    gray = dataclasses.replace(plain, gray=True)
    for number, each in enumerate(
        (plain, training("one", **saving), training("one", **larger), gray)
    ):
        calibration.rates({"one": each}, device="cpu", folder=tmp_path)
        assert len(measured.calls) == number + 1
        (cell,) = measured.cells
        way = (cell.spec.chunk, cell.spec.checkpointing, cell.spec.compile)
        assert way == ((64, True, True) if number == 1 else (None, False, False))
        assert cell.stored_side == (48 if number == 2 else 32)
        assert cell.channels == (1 if number == 3 else 3)


def test_a_speed_of_a_busy_or_unsettled_machine_says_so_for_good(
    measured: Measured, tmp_path: Path
) -> None:
    track = plan.override(plan.load_track("digits"), budget={"device_seconds": 20.0})
    known, methods = data(classes=10, channels=1), {"one": method() | {"plugin": "one"}}
    measured.warm, measured.busy_cores = False, 0.7
    boards: list[Path] = []
    notes = []
    for _ in range(2):  # the second time it is not measured again
        prices = pricing.prices(track, methods, known, seed=0, runs_dir=tmp_path, boards=boards)
        (run,) = plan.plan(track, methods, known, seeds=[0], prices=prices)
        notes += run.row["notes"]
    assert len(measured.calls) == 1
    assert notes[0] == notes[1]
    assert notes[0].endswith("; its windows had not settled; others kept 0.7 cores busy")


def test_edited_code_is_timed_anew(measured: Measured, tmp_path: Path) -> None:
    calibration.rates({"one": training("one")}, device="cpu", folder=tmp_path)
    edited = dataclasses.replace(training("one"), code="other")
    calibration.rates({"one": edited}, device="cpu", folder=tmp_path)
    assert len(measured.calls) == 2


def test_a_speed_that_was_known_stays_when_a_method_joins(
    measured: Measured, tmp_path: Path
) -> None:
    """The steps of finished runs hang on it."""
    first, _ = calibration.rates({"one": training("one")}, device="cpu", folder=tmp_path)
    measured.speeds = {"one": 101.0, "two": 50.0}
    both = {name: training(name) for name in ("one", "two")}
    found, fresh = calibration.rates(both, device="cpu", folder=tmp_path)
    assert fresh
    assert found["one"] == first["one"]
    assert found["two"].images_per_second == 50.0
    assert calibration.rates(both, device="cpu", folder=tmp_path) == (found, False)


def test_stages_of_which_one_was_timed_give_no_steps(measured: Measured, tmp_path: Path) -> None:
    measured.notes = ["trains in stages; its last one was measured"]
    with pytest.raises(UserError, match="one trains in stages; its last one was measured; it has"):
        calibration.rates({"one": training("one")}, device="cpu", folder=tmp_path)


def test_another_machine_is_measured_anew(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration.rates({"one": training("one")}, device="cpu", folder=tmp_path)
    other = Place(Machine(processor="another", torch="2", timm="1"))
    monkeypatch.setattr(calibration, "here", lambda device, threads: other)
    found, fresh = calibration.rates({"one": training("one")}, device="cpu", folder=tmp_path)
    assert fresh
    assert found["one"].machine == "another"


def test_a_method_that_cannot_be_measured_and_a_damaged_file_are_one_line(
    measured: Measured, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"three has no steps .* out_of_memory: no room"):
        calibration.rates({"three": training("three")}, device="cpu", folder=tmp_path)
    assert not (tmp_path / calibration.FILE).exists()
    (tmp_path / calibration.FILE).write_text('{"a": {"method": "b"}}')
    with pytest.raises(UserError, match=r"rates\.json is damaged .* made again") as refused:
        calibration.rates({"one": training("one")}, device="cpu", folder=tmp_path)
    assert "\n" not in str(refused.value)


def test_seconds_become_steps_that_the_row_explains(measured: Measured, tmp_path: Path) -> None:
    track = plan.override(plan.load_track("digits"), budget={"device_seconds": 20.0})
    known = data(classes=10, channels=1)
    methods = {
        name: method(card=method()["card"] | {"title": name}) | {"plugin": name}
        for name in ("one", "two")
    }
    boards: list[Path] = []
    prices = pricing.prices(
        track, methods, known, seed=0, runs_dir=tmp_path, boards=boards, device="cpu"
    )
    runs = plan.plan(track, methods, known, seeds=[0, 1], prices=prices)
    steps = {(run.spec["method"], run.spec["seed"]): run.spec["budget"]["steps"] for run in runs}
    size = track.batch_size
    assert steps == {
        (name, seed): int(20 * speed / size)
        for name, speed in (("one", 100), ("two", 50))
        for seed in (0, 1)
    }
    (note,) = runs[0].row["notes"]
    assert note.startswith("20 device-seconds at 100 images/s (quartiles 99 to 101)")
    assert "a processor" in note


@pytest.mark.parametrize(("seconds", "refused"), [(20.0, False), (2000.0, True)])
def test_seconds_on_an_open_track_are_seconds_and_stay_below_its_flops(
    seconds: float, refused: bool, measured: Measured, tmp_path: Path, monkeypatch: Any
) -> None:
    def count(wanted: Any, known: Any) -> Any:
        return {training_flops.key(t.spec): Count("one", 1e9, 7, t.code) for t in wanted}, {}

    monkeypatch.setattr(training_flops, "count", count)
    whole = plan.load_track("fashion-mnist-open")  # 4.1 TFLOP: 4,100 images here
    track = plan.override(whole, budget={"device_seconds": seconds})
    known = data(train=18_000, classes=10, channels=1)
    methods = {"one": method() | {"plugin": "one"}}
    boards: list[Path] = []
    prices = pricing.prices(track, methods, known, seed=0, runs_dir=tmp_path, boards=boards)
    if refused:
        with pytest.raises(UserError, match=r"allows 4\.1 TFLOP"):
            plan.plan(track, methods, known, seeds=[0], prices=prices)
        return
    (run,) = plan.plan(track, methods, known, seeds=[0], prices=prices)
    assert run.spec["budget"]["steps"] == int(20 * 100 / track.batch_size)
    assert run.track == whole.id
    assert "20 device-seconds" in run.row["notes"][0]
