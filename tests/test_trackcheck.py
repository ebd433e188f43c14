"""Whether a track may rank, from its floors and its label reference."""

from __future__ import annotations

import math

import pytest
import small_runs
from synthetic_results import LINEAR, board, result, track

from bench import cli, page_files, results
from bench.columns import Column
from bench.leaderboard import render_index, render_track
from bench.ranking import check_track
from bench.rows import build
from bench.track import load_track, pin_data
from bench.trackcheck import check, check_distance, pooled_sd

FLOORS = {"pixels": [60.0, 61.0, 60.5, 59.5, 60.0], "untrained": [40.0, 44.0, 42.0, 43.0, 41.0]}
REFERENCE = [88.0, 88.5, 87.5, 88.2, 87.8]


def test_a_track_with_room_between_pixels_and_labels_may_rank():
    assert check(FLOORS, REFERENCE, 10_000).passed


@pytest.mark.parametrize(
    ("floors", "reference", "images", "fails"),
    [
        (FLOORS | {"pixels": [70.0] * 5}, REFERENCE, 10_000, 0),
        (FLOORS | {"untrained": [20.0, 60.0, 42.0, 30.0, 50.0]}, REFERENCE, 10_000, 1),
        (FLOORS, REFERENCE, 4_268, 2),
    ],
)
def test_each_condition_fails_alone(floors, reference, images, fails):
    found = check(floors, reference, images)
    assert [c.holds for c in found.conditions] == [index != fails for index in range(3)]
    assert found.failed
    assert not found.passed


def test_the_least_test_set_is_that_of_the_binomial():
    """1.96 sqrt(p q / N) <= 1.5 points at p = 1/2."""
    least = math.ceil((1.96 * 50 / 1.5) ** 2)
    assert check(FLOORS, REFERENCE, least).passed
    assert not check(FLOORS, REFERENCE, least - 1).passed


def test_too_few_seeds_are_not_a_verdict():
    found = check(FLOORS, REFERENCE[:4], 10_000)
    assert [c.holds for c in found.conditions] == [None, None, True]
    assert not found.passed
    assert not found.failed
    assert not check({}, REFERENCE, 10_000).passed


def test_a_floor_without_seeds_of_its_own_needs_one_value():
    floors = FLOORS | {"pixels": [60.0]}
    assert check(floors, REFERENCE, 10_000, untrained={"pixels"}).passed
    assert not check(floors, REFERENCE, 10_000).passed


def test_a_listed_floor_that_did_not_run_leaves_the_gap_open():
    found = check(FLOORS | {"pixels": []}, REFERENCE, 10_000, untrained={"pixels"})
    assert [c.holds for c in found.conditions] == [None, None, True]
    assert found.conditions[0].met == "no pixels"
    without = [run for run in board() if run.method != "untrained"]
    assert "| rank" not in render_track(track(), without)
    assert "no untrained" in render_track(track(), without)


def test_a_floor_without_seeds_lends_the_seeds_no_steadiness():
    noisy = [44.0, 49.0, 38.0, 46.0, 42.0]  # deviation 4.1; the five equal values would halve it
    floors = {"pixels": [60.0] * 5, "untrained": noisy}
    met = [check(floors, REFERENCE, 10_000, untrained=still) for still in ({"pixels"}, ())]
    assert [found.conditions[1].holds for found in met] == [False, True]


def test_one_unstable_generator_does_not_close_a_track():
    good, bad = [5.0, 6.0, 4.0], [850.0, 840.0, 860.0]
    steady = [[700.0, 710.0, 690.0], [900.0, 920.0, 880.0]]
    wild = [[3000.0, 6000.0, 9000.0]]
    assert check_distance(good, bad, steady + wild, 2000).passed
    rough = [[700.0, 900.0, 500.0]] * 2
    assert check_distance(good, bad, rough, 2000).conditions[0].holds is False


def test_the_pooled_sd_weighs_by_degrees_of_freedom():
    assert pooled_sd([[1.0, 3.0], [5.0], [2.0, 4.0, 6.0]]) == pytest.approx(math.sqrt(10 / 3))
    assert pooled_sd([[1.0]]) == 0.0


def test_a_page_that_fails_a_condition_shows_no_ranks():
    weak = [run for run in board() if run.method != "labels"]
    card = {"role": "ceiling", "uses_labels": True, "title": "Supervised"}
    weak += [result("labels", seed, 0.80, row=card) for seed in range(5)]
    page = render_track(track(), weak)
    assert "**Smoke track: not for ranking.**" in page
    assert "| rank" not in page
    assert "points above the best floor: **no**" in page
    assert "smoke track: not for ranking" in render_index([(track(), weak)])
    good = render_track(track(), board())
    assert "points above the best floor: yes" in good
    assert "| rank" in good


def test_methods_without_a_distance_are_no_reason_to_stop():
    """A page whose only generator is a variant has no row that the track could be judged by."""
    good, bad = [0.1, 0.2, 0.3], [90.0, 91.0, 92.0]
    found = check_distance(good, bad, [], 2000)
    assert [c.holds for c in found.conditions] == [None, None, True]


def test_pixels_are_no_floor_of_a_protocol_that_needs_a_backbone():
    runs = board()
    for run in runs:
        entry = run.evaluations[LINEAR].model_copy(update={"id": "finetune"})
        run.evaluations["f" * 12] = entry
    harness = {"role": "floor", "origin": "floor", "title": "Raw pixels"}
    runs += [result("raw_pixels", 0, 0.5, row=harness)]
    finetuned = {"id": "finetune", "version": 1, "hash": "f" * 12, "headline": "best_top1"}
    made = build(track(protocols=[finetuned], floors=["raw_pixels", "untrained"]), runs)
    asked = Column("finetune", 1, "f" * 12, "best_top1", "finetuned")
    for floors, said in ((["raw_pixels", "untrained"], False), (["absent", "untrained"], True)):
        gap = check_track(made.rows, asked, floors).conditions[0]
        assert ("no absent" in gap.met) == said
        assert (gap.holds is None) == said


FACTS = {"name": "npz:small.npz", "sha256": "d" * 64, "test_sha256": "cd" * 32}


def checked(folder, floors: str) -> int:
    """Return how `bench track check` ends on a track whose data a path names, where its floors and
    its reference ran on data of this content."""
    text = small_runs.TRACK.replace("floors = []", f"floors = {floors}")
    text = text.replace("seeds = [0]", "seeds = [0, 1, 2, 3, 4]")
    text = text.format(data=folder / "small.npz", backbone="resnet18", args="", steps=5)
    file = folder / "small.toml"
    file.write_text(text.replace("[evaluations.knn]", "[evaluations.linear_probe]"))
    pinned = pin_data(load_track(str(file)), FACTS)
    assert pinned.id != load_track(str(file)).id
    place = folder / "runs" / "results" / pinned.id
    for run in board():
        if run.row.role != "method":
            moved = run.model_copy(update={"track": pinned.id})
            results.write(place / f"{run.run_id}.json", moved)
    page_files.write_track(place, track(id=pinned.id, data_sha256="d" * 64, test_sha256="cd" * 32))
    where = ["--runs-dir", str(folder / "runs"), "--leaderboards-dir", str(folder / "none")]
    return cli.main(["track", "check", str(file), *where])


def test_results_are_found_where_the_data_are_known_by_their_content(tmp_path, capsys):
    assert checked(tmp_path, "[]") == 0
    shown = capsys.readouterr().out
    assert "linear_probe.best_top1 (headline)" in shown
    assert "label reference at least 20 points above the best floor" in shown
    file = tmp_path / "small.toml"
    file.write_text(file.read_text().replace("batch_size = 24", "batch_size = 12"))
    where = ["--runs-dir", str(tmp_path / "runs"), "--leaderboards-dir", str(tmp_path / "none")]
    assert cli.main(["track", "check", str(file), *where]) == 2
    assert "no results of floors or reference" in capsys.readouterr().err


def test_a_listed_floor_that_did_not_run_leaves_the_command_open(tmp_path, capsys):
    assert checked(tmp_path, '["untrained", "absent"]') == 1
    assert "?: no absent" in capsys.readouterr().out
