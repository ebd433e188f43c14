"""Training FLOPs beside the boards: what they hang on, where they are kept, what pages show."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_results import board, result, track
from test_leaderboard import row

from bench import cli, memory, pictures, training_flops
from bench.beside import Beside
from bench.errors import UserError
from bench.leaderboard import render_track
from bench.memory import CATEGORIES, Estimate
from bench.page_files import Page
from bench.training_flops import Count, Training


def training(**changes: Any) -> Training:
    spec = result("mine", 0).spec | {"backbone": {"name": "r", "args": {}, "stem": None}} | changes
    return Training("mine", spec, "c0de", 900, 10, True)


def counts(*specs: dict[str, Any], per_image: float = 1e9) -> dict[str, Count]:
    return {training_flops.key(s): Count(s["method"], per_image, 7, "c0de") for s in specs}


def test_flops_hang_on_the_step_and_not_on_seed_split_or_budget() -> None:
    spec = training().spec
    same = [
        {"seed": 3},
        {"budget": {"steps": 1}},
        {"threads": 2},
        {"data": spec["data"] | {"split": "other"}},
    ]
    others = [
        {"config": {"temperature": 0.3}},
        {"batch_size": 64},
        {"chunk": 32},
        {"data": spec["data"] | {"limit": 100}},
        {"backbone": {"name": "r", "args": {"layers": [1]}, "stem": None}},
    ]
    known = training_flops.key(spec)
    assert all(training_flops.key(spec | change) == known for change in same)
    found = {training_flops.key(spec | change) for change in others}
    assert len(found) == len(others)
    assert known not in found


def test_counts_are_kept_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    assert training_flops.read(tmp_path) == {}
    known = counts(training().spec, training(batch_size=64).spec)
    training_flops.write(tmp_path, known)
    assert training_flops.read(tmp_path) == known
    before = (tmp_path / training_flops.FILE).read_bytes()
    training_flops.write(tmp_path, dict(reversed(known.items())))
    assert (tmp_path / training_flops.FILE).read_bytes() == before
    document = json.loads(before)
    for damage in (b"{", b"[]", before.replace(b"1000000000.0", b"0.0"), b'{"a": {"method": "b"}}'):
        (tmp_path / training_flops.FILE).write_bytes(damage)
        with pytest.raises(UserError, match=r"flops\.json is damaged .* made again") as refused:
            training_flops.read(tmp_path)
        assert "\n" not in str(refused.value)
    assert len(document) == 2


def test_only_what_is_unknown_or_of_other_code_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[memory.Step] = []

    @contextlib.contextmanager
    def estimator() -> Iterator[memory.Ask]:
        def ask(step: memory.Step) -> Estimate:
            asked.append(step)
            if step.batch_size == 32:
                raise UserError("mine: its step needs values")
            nothing = dict.fromkeys((*CATEGORIES, "total"), 0)
            return Estimate(**nothing, flops_per_image=5.0 * step.batch_size, weights=3)

        yield ask

    monkeypatch.setattr(memory, "estimator", estimator)
    known, new, refused = training(), training(batch_size=64), training(batch_size=32)
    found, problems = training_flops.count([known, new, refused], counts(known.spec))
    assert found == {training_flops.key(new.spec): Count("mine", 320.0, 3, "c0de")}
    assert problems == {training_flops.key(refused.spec): "mine: its step needs values"}
    assert sorted(step.batch_size for step in asked) == [32, 64]
    step = asked[-1]
    assert (step.images, step.classes, step.gray, step.config) == (
        900,
        10,
        True,
        {"temperature": 0.2},
    )
    older = {name: Count("mine", 1.0, 3, "older") for name in counts(known.spec)}
    again, _ = training_flops.count([known], older)
    assert next(iter(again.values())).code == "c0de"


def test_a_run_s_flops_are_its_images_times_those_of_one() -> None:
    spec = training().spec
    assert training_flops.of_run(counts(spec), spec) == 216 * 128 * 1e9
    assert training_flops.of_run({}, spec) is None


def test_a_page_shows_gflop_of_the_rows_that_were_counted() -> None:
    runs = board()
    one = next(run for run in runs if run.method == "contrast_net")
    page = render_track(track(), runs, flops=counts(one.spec))
    assert (
        row(page, "ContrastNet")["GFLOP"] == "27600"
    )  # 216 steps of 128 images at a thousand million
    assert row(page, "QueueNet")["GFLOP"] == ""
    assert "GFLOP: of a run's training" in page
    assert "GFLOP" not in render_track(track(), runs)


def test_an_open_page_says_what_rows_chose_and_which_exceed_its_ceilings() -> None:
    runs = [
        run.model_copy(update={"spec": run.spec | {"backbone": {"name": "resnet18"}}})
        for run in board()
    ]
    spec = next(run.spec for run in runs if run.method == "contrast_net")
    low, high = (
        render_track(track(division="open", ceilings={"flops": flops}), runs, flops=counts(spec))
        for flops in (216 * 128 * 1e9 - 1, 216 * 128 * 1e9)
    )
    found = row(low, "ContrastNet")
    assert (found["backbone"], found["batch"]) == ("resnet18", "128")
    assert "**over the track's flops**" in found["status"]
    assert "over the track" not in high
    assert "Division open" in high
    assert "batch" not in row(render_track(track(), runs), "ContrastNet")


def test_the_picture_joins_complete_runs_of_smaller_tracks() -> None:
    whole, half = board(), board()
    half = [
        run.model_copy(update={"track": "half", "spec": run.spec | {"budget": {"steps": 108}}})
        for run in half
    ]
    known = counts(*(run.spec for run in whole if run.method in ("contrast_net", "queue_net")))
    page = Page(track(smaller=["half"]), whole, [])
    pages = [page, Page(track(id="half"), half, [])]
    sweeps = pictures.flops_curves(page, pages, Beside(flops=known))
    assert [sweep.label for sweep in sweeps] == ["ContrastNet", "QueueNet v2"]
    assert [[x for x, *_ in sweep.points] for sweep in sweeps] == [[13824.0, 27648.0]] * 2
    assert all(low < mean < high for sweep in sweeps for _, mean, low, high in sweep.points)
    drawn = pictures.of_page(page, pages, Beside(flops=known))
    shown, draw = drawn["clothes-flops.svg"]
    assert "13824" not in draw(shown)  # two digits: 14000
    assert "14000" in draw(shown)
    assert "clothes-flops.svg" not in pictures.of_page(page, [page], Beside(flops=known))
    assert "clothes-flops.svg" not in pictures.of_page(pages[1], pages, Beside(flops=known))


def test_a_budget_of_flops_is_planned_from_the_real_step(tmp_path: Path, capsys) -> None:
    """Twice the FLOPs, twice the steps; and what was counted once is read the second time."""
    planned = ["plan", "--plugins", "moco_v2", "--backbone", "test_resnet", "--seeds", "1"]
    planned += ["--runs-dir", str(tmp_path), "--json"]
    found = {}
    for flops in (10**11, 2 * 10**11):
        assert cli.main([*planned, "--budget", f"flops={flops}"]) == 0
        specs = json.loads(capsys.readouterr().out)
        (found[flops],) = [s["spec"] for s in specs if s["spec"]["method"] == "moco_v2"]
    few, many = (spec["budget"]["steps"] for spec in found.values())
    (count,) = [c for c in training_flops.read(tmp_path).values() if c.method == "moco_v2"]
    per_step = count.flops_per_image * found[10**11]["batch_size"]
    assert few == int(10**11 / per_step) > 5
    assert many == int(2 * 10**11 / per_step)
