"""Equal tuning: one sequence for all, validation alone, and a recipe that runs can trust."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench import beside, cli, data, recipes, results, session, tuning
from bench.errors import UserError
from bench.runner import Options, kept_result, result_path
from bench.track import load_track

TRACK = """
title = "Tiny"
description = "Trials of a second."
seeds = [0]
recipe = "small"
batch_size = 60
precision = "fp32"
trials = 3
data = {{ name = "npz:{data}", image_size = 16 }}
backbone = {{ name = "test_resnet" }}
budget = {{ steps = 4 }}
evaluations = {{ knn = {{}} }}
"""
SEARCH = {"lr": ["log_uniform", 1e-4, 1e-2], "head": ["choice", "none", "linear", "mlp"]}
STANDARD = {"lr": 2e-3, "head": "mlp", "other": 1}


def test_trial_0_is_the_methods_own_recipe():
    assert tuning.changes(SEARCH, STANDARD, 8)[0] == {}


def test_every_method_gets_the_same_points():
    """Two methods with one dimension in common try the same values of it, in the same trials."""
    alone = tuning.changes({"lr": SEARCH["lr"]}, STANDARD, 8)
    beside = tuning.changes(SEARCH, STANDARD, 8)
    assert [t.get("lr") for t in alone] == [t.get("lr") for t in beside]


def test_the_points_are_sobols():
    """Seven points and the origin put one value in each eighth of every dimension."""
    drawn = np.array(tuning.points(8))
    assert drawn.shape == (7, 6)
    for dimension in drawn.T:
        assert sorted(np.floor(dimension * 8).astype(int)) == list(range(1, 8))
    assert (drawn[0] == 0.5).all()
    assert tuning.points(4) == tuning.points(8)[:3]


def test_values_lie_in_their_dimension():
    for changed in tuning.changes(SEARCH, STANDARD, 16)[1:]:
        assert 1e-4 < changed["lr"] < 1e-2
        assert changed["head"] in ("none", "linear", "mlp")
    middle = tuning.changes(SEARCH, STANDARD, 2)[1]
    assert middle == {"lr": pytest.approx(math.sqrt(1e-4 * 1e-2)), "head": "linear"}


def test_a_field_that_the_recipe_leaves_out_is_not_tuned():
    search = {"lr": ["log_uniform", 1e-4, 1e-2], "base_lr": ["log_uniform", 0.1, 1.0]}
    for changed in tuning.changes(search, {"lr": None, "base_lr": 0.3}, 8)[1:]:
        assert set(changed) == {"base_lr"}


def test_expected_best_is_the_mean_of_the_maximum():
    scores = [70.0, 50.0, 65.0, 80.0, 20.0]
    generator = random.Random(0)
    for count, expected in enumerate(recipes.expected_best(scores), start=1):
        drawn = [max(generator.choices(scores, k=count)) for _ in range(20_000)]
        assert sum(drawn) / len(drawn) == pytest.approx(expected, abs=0.5)


def recipe(**changed):
    trial = recipes.Trial(0, 1000, {"lr": 2e-3}, 91.5, "done", 3.2, "m-s1000-0123456789")
    failed = recipes.Trial(1, 1001, {"lr": 1e-1}, None, "diverged", 0.1, "m-s1001-0123456789")
    whole = recipes.Recipe(
        track="tiny",
        track_sha256="t",
        method="m",
        base="small",
        search=SEARCH,
        standard=STANDARD | {"missing": None, "a key": [1, [2.5, None]]},
        config=STANDARD | {"text": 'quotes " and \\ and \u2028'},
        headline={"id": "knn", "version": 1, "hash": "h", "metric": "top1"},
        code={"plugin_sha256": "s", "engine": 1},
        winner=0,
        trials=(trial, failed),
    )
    return dataclasses.replace(whole, **changed)


def test_a_recipe_comes_back_as_it_was_written(tmp_path):
    file = tmp_path / "tiny" / "m.toml"
    recipes.write(file, recipe())
    assert recipes.read(file) == recipe()
    assert recipes.find([tmp_path / "none", tmp_path], "tiny", "m") == recipe()


@pytest.mark.parametrize("edit", [("lr = 0.002", "lr = 0.003"), ("score = 91.5", "score = 99.5")])
def test_an_edited_recipe_is_refused(tmp_path, edit):
    file = tmp_path / "m.toml"
    recipes.write(file, recipe())
    file.write_text(file.read_text().replace(*edit))
    with pytest.raises(UserError, match="was edited"):
        recipes.read(file)


@pytest.mark.parametrize("text", ["", "sha256 = ", 'sha256 = "x"', 'sha256 = "x"\ntrials = [1]'])
def test_a_damaged_recipe_is_one_line(tmp_path, text):
    file = tmp_path / "m.toml"
    file.write_text(text)
    with pytest.raises(UserError, match="damaged"):
        recipes.read(file)


def test_a_recipe_fits_only_what_it_was_tuned_for():
    given = {"track_sha256": "t", "trials": 2, "search": SEARCH, "headline": "h"}
    given["standard"] = recipe().standard
    assert recipes.fits(recipe(), **given) == ""
    for change in (
        {"track_sha256": "u"},
        {"trials": 8},
        {"search": {}},
        {"standard": STANDARD},
        {"headline": "g"},
    ):
        assert recipes.fits(recipe(), **(given | change))


def sentinel(data):
    """Return a data set's file whose test images raise when anything reads them."""
    with zipfile.ZipFile(data) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    kept["x_test.npy"] = b"whoever reads this fails"
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    return data


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Return a folder in which two methods were tuned through the command line."""
    from small_runs import write_data

    folder = tmp_path_factory.mktemp("tuned")
    track = folder / "tiny.toml"
    track.write_text(TRACK.format(data=sentinel(write_data(folder / "small.npz"))))
    command = ["tune", str(track), "rotnet", "supervised", "--jobs", "2"]
    command += ["--runs-dir", str(folder / "runs")]
    command += ["--leaderboards-dir", str(folder / "leaderboards")]
    assert cli.main(command) == 0
    return folder, track, command


def test_tuning_reads_no_test_array_and_writes_no_ledger(tuned):
    """The trials finished although the test images cannot be read."""
    folder, track, _ = tuned
    with pytest.raises(UserError, match="x_test"):
        data.load(load_track(str(track)).data["name"], image_size=16)
    found = sorted((folder / "runs" / "tuning").rglob("*.json"))
    assert len(found) == 6
    for result in map(results.read, found):
        (entry,) = result.evaluations.values()
        assert entry.metrics == {}
        assert entry.test_reads == 0
        assert result.data.test_images == 0
        assert result.seed >= tuning.FIRST_SEED
    assert not (folder / "leaderboards" / "ledger.jsonl").exists()


def test_the_recipe_is_the_best_trial(tuned):
    folder, _, _ = tuned
    (file,) = (folder / "leaderboards" / "recipes").rglob("rotnet.toml")
    found = recipes.read(file)
    assert len(found.trials) == 3
    best = max(found.trials, key=lambda trial: (trial.score, -trial.number))
    assert found.winner == best.number
    assert {key: found.config[key] for key in best.changed} == best.changed


def test_runs_of_the_track_use_the_recipe_and_variants_start_from_it(tuned):
    folder, track, _ = tuned
    given = {"runs_dir": folder / "runs", "leaderboards_dir": folder / "leaderboards"}
    (file,) = (folder / "leaderboards" / "recipes").rglob("rotnet.toml")
    config = recipes.read(file).config
    plain = session.prepare("rotnet", track=str(track), dev=True, **given).specs[-1]
    assert plain.spec["config"] == config
    assert (plain.row["tuning"], plain.row["variant"]) == ("3", "")
    changed = session.prepare(
        "rotnet", track=str(track), dev=True, settings=("rotnet.weight_decay=0.5",), **given
    ).specs[-1]
    assert changed.spec["config"] == config | {"weight_decay": 0.5}
    assert changed.row["variant"] == "weight_decay=0.5"
    longer = session.prepare("rotnet", track=str(track), overrides={"epochs": 2}, dev=True, **given)
    assert longer.specs[-1].row["tuning"] == "0"  # another track; nothing was tuned for it


def test_a_recipe_is_found_where_the_data_lie_elsewhere_and_is_of_their_content(tuned, tmp_path):
    folder, track, _ = tuned
    here = load_track(str(track)).data["name"].removeprefix("npz:")
    given = {"runs_dir": folder / "runs", "leaderboards_dir": folder / "leaderboards"}
    with np.load(here) as stored:
        arrays = {name: stored[name] for name in stored if name != "x_test"}
    arrays["x_test"] = arrays["x_train"][: len(arrays["y_test"])]
    moved = tmp_path / Path(here).name
    elsewhere = tmp_path / track.name
    elsewhere.write_text(track.read_text().replace(here, str(moved)))
    for dev in (True, False):  # tuning never saw a test image
        np.savez(moved, **arrays)
        session_ = session.prepare("rotnet", track=str(elsewhere), dev=dev, **given)
        assert session_.specs[-1].row["tuning"] == "3"
        kept = beside.read(folder / "leaderboards").recipes_of(session_.page)
        assert "rotnet" in {recipe.method for recipe in kept}
        changed = arrays["x_train"].copy()
        changed[0, 0, 0] ^= 1
        np.savez(moved, **arrays | {"x_train": changed})
        other = session.prepare("rotnet", track=str(elsewhere), dev=dev, **given).specs[-1]
        assert other.row["tuning"] == "0"
        assert other.row["notes"] == ["its tuned recipe was not used: the track has changed since"]


@pytest.fixture
def copied(tuned, tmp_path):
    """What a trial's result was, its changing in a copy with what tuning then says, the boards."""
    folder, track, _ = tuned
    given = tuning.prepare(["rotnet"], track=str(track), runs_dir=folder / "runs")
    shutil.copytree(tuning.trials_folder(folder / "runs"), tmp_path / "tuning")
    options = Options(folder / "runs", results_dir=tmp_path / "tuning")
    path = result_path(given.specs["rotnet"][1], options)

    def change(**changes):
        results.write(path, results.read(path).model_copy(update=changes))
        return tuning.write_recipes(given, options, tmp_path / "boards")

    return results.read(path), change, tmp_path / "boards"


def test_no_recipe_is_made_of_trials_of_two_codes(copied):
    trial, change, boards = copied
    older = trial.code.model_copy(update={"plugin_sha256": "0" * 64})
    (line,) = change(code=older)
    assert line == "rotnet: other code than today's ran 1 of 3 trials; --stale runs them again"
    assert not boards.exists()
    (line,) = change(code=trial.code)
    assert "-> " in line


def test_a_trial_that_fails_twice_has_no_score_and_blocks_no_recipe(copied):
    _, change, boards = copied
    broken = {"status": "out_of_memory", "reason": "used 9 GiB", "evaluations": {}}
    count, why = change(**broken, attempts=1)
    assert count == "rotnet: 2 of 3 trials finished; run the command again"
    assert "out_of_memory: used 9 GiB" in why
    assert not boards.exists()
    change(**broken, attempts=2)
    (file,) = boards.rglob("rotnet.toml")
    assert [trial.score is None for trial in recipes.read(file).trials] == [False, True, False]


def test_a_trial_that_another_protocol_judged_is_judged_again(tuned):
    folder, track, _ = tuned
    given = tuning.prepare(["rotnet"], track=str(track), runs_dir=folder / "runs")
    place = tuning.trials_folder(folder / "runs")
    for needed, kept in (({given.protocol["hash"]}, True), ({"0" * 12}, False)):
        options = Options(folder / "runs", results_dir=place, needed=frozenset(needed))
        assert (kept_result(given.specs["rotnet"][1], options) is not None) == kept


def test_a_second_tuning_runs_nothing_again(tuned, capsys):
    _, _, command = tuned
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.count("(finished before)") == 6


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["raw_pixels"], "no parameters"),
        (["nothing_here"], "no method"),
        (["simclr", "./simclr.py"], "METHODS names simclr twice; name each method once"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(tuned, capsys, methods, expected):
    _, track, _ = tuned
    assert cli.main(["tune", str(track), *methods]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
