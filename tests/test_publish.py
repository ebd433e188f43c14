"""Boards on disk: rendering, checking, publishing, and that a refusal writes nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_results import LINEAR, NUM_IMAGES, board, result, track

from bench import ledger
from bench.errors import UserError
from bench.identity import digest
from bench.packing import pack_bits, pack_counts, pack_predictions
from bench.page_files import write_track
from bench.publish import check, kept_back, publish, render_all
from bench.results import Result, read, write


def runs_folder(tmp_path: Path, results: list[Result] | None = None) -> Path:
    """Return a runs folder with a track's results."""
    runs = tmp_path / "runs"
    folder = runs / "results" / "clothes"
    write_track(folder, track())
    for run in board() if results is None else results:
        write(folder / f"{run.run_id}.json", run)
    return runs


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def published(tmp_path: Path, results: list[Result] | None = None) -> Path:
    boards = tmp_path / "leaderboards"
    publish(runs_folder(tmp_path, results), boards)
    return boards


def test_published_boards_are_current(tmp_path):
    boards = published(tmp_path)
    assert check(boards) == []
    files = tree(boards)
    assert {"README.md", "clothes.md", "clothes.svg", "results/clothes/track.json"} <= set(files)
    assert sum(name.startswith("results/clothes/contrast_net-s") for name in files) == 5
    assert b"![Accuracy against training time](clothes.svg)" in files["clothes.md"]


def test_publishing_again_changes_nothing(tmp_path):
    boards = published(tmp_path)
    before = tree(boards)
    publish(tmp_path / "runs", boards)
    assert tree(boards) == before


def test_published_results_are_those_of_the_runs(tmp_path):
    boards = published(tmp_path)
    for run in board():
        assert read(boards / "results" / "clothes" / f"{run.run_id}.json").document() == (
            run.document()
        )


def test_results_published_earlier_stay_on_the_board(tmp_path):
    early = [run for run in board() if run.method != "turn_net"]
    boards = published(tmp_path, early)
    late = [run for run in board() if run.method == "turn_net"]
    publish(runs_folder(tmp_path / "other", late), boards)
    assert check(boards) == []
    assert (boards / "clothes.md").read_text().count("TurnNet") == 1
    assert "ContrastNet" in (boards / "clothes.md").read_text()


def edit_page(boards: Path) -> str:
    path = boards / "clothes.md"
    path.write_text(path.read_text().replace("92", "99"))
    return "clothes.md: differs from its results"


def lose_page(boards: Path) -> str:
    (boards / "clothes.md").unlink()
    return "clothes.md: missing"


def lose_index(boards: Path) -> str:
    (boards / "README.md").unlink()
    return "README.md: missing"


def add_page(boards: Path) -> str:
    (boards / "extra.md").write_text("# mine")
    return "extra.md: has no results"


def lose_picture(boards: Path) -> str:
    (boards / "clothes.svg").unlink()
    return "clothes.svg: missing"


def another_picture(boards: Path) -> str:
    path = boards / "clothes.svg"
    path.write_text(path.read_text().replace("rows sha256: ", "rows sha256: 0"))
    return "clothes.svg: shows other rows than its page"


def lose_a_test_read(boards: Path) -> str:
    path = boards / ledger.FILE
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines))  # a chain without its end is a chain
    return f"{json.loads(last)['run_id']}.json: no line of ledger.jsonl has its test read"


@pytest.mark.parametrize(
    "change",
    [edit_page, lose_page, lose_index, add_page, lose_picture, another_picture, lose_a_test_read],
)
def test_check_names_what_differs(tmp_path, change):
    boards = published(tmp_path)
    expected = change(boards)
    assert check(boards) == [expected]


def test_check_notices_a_result_that_was_removed_or_damaged(tmp_path):
    boards = published(tmp_path)
    (path,) = boards.glob("results/clothes/turn_net-s0-*.json")
    text = path.read_text()
    path.write_text(text[:50])
    assert check(boards)[0].startswith(f"clothes/{path.name}: not a result file")
    path.unlink()
    assert "clothes.md: differs from its results" in check(boards)
    path.write_text(text)
    assert check(boards) == []


def test_check_notices_a_metric_that_its_answers_contradict(tmp_path):
    """Written by the library's own means: its content hash is made anew, and the page with it."""
    boards = published(tmp_path)
    (path,) = boards.glob("results/clothes/turn_net-s0-*.json")
    write(path, wrong_accuracy(read(path)))
    render_all(boards / "results", boards)
    (line,) = check(boards)
    assert line.startswith(f"clothes/{path.name}: linear_probe ")
    assert "its answers give" in line


def test_check_writes_nothing(tmp_path):
    boards = published(tmp_path)
    edit_page(boards)
    before = tree(boards)
    check(boards)
    assert tree(boards) == before


def test_check_does_not_depend_on_the_order_or_age_of_files(tmp_path):
    boards = published(tmp_path)
    paths = sorted((boards / "results" / "clothes").glob("*-s*.json"))
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    for path, content in reversed(list(zip(paths, contents, strict=True))):
        path.write_bytes(content)
        os.utime(path, (0, 0))
    assert check(boards) == []


def test_render_all_writes_pages_for_results_in_place(tmp_path):
    runs = runs_folder(tmp_path)
    written = render_all(runs / "results", runs / "leaderboards")
    names = sorted(path.name for path in written)
    assert names == ["README.md", "clothes.md", "clothes.svg"]
    assert all(path.is_file() for path in written)


def test_render_all_shows_published_rows_beside_ones_own(tmp_path):
    runs = runs_folder(tmp_path, [result("mine", seed) for seed in range(5)])
    render_all(runs / "results", tmp_path / "out", published={"clothes": board()})
    page = (tmp_path / "out" / "clothes.md").read_text()
    assert "published" in page
    assert "| mine" in page


def test_a_damaged_result_does_not_stop_the_rest_from_rendering(tmp_path):
    runs = runs_folder(tmp_path)
    (path,) = (runs / "results" / "clothes").glob("turn_net-s0-*.json")
    path.write_text("{")
    render_all(runs / "results", tmp_path / "out")
    page = (tmp_path / "out" / "clothes.md").read_text()
    assert f"- {path.name}: not a result file" in page
    assert "TurnNet: 0 missing" in page


def test_results_without_a_track_render_unranked(tmp_path):
    runs = runs_folder(tmp_path)
    (runs / "results" / "clothes" / "track.json").unlink()
    render_all(runs / "results", tmp_path / "out")
    page = (tmp_path / "out" / "clothes.md").read_text()
    assert "not for ranking" in page
    assert "No track says" in page
    assert "ContrastNet" in page
    render_all(runs / "results", tmp_path / "out", [track()])
    assert "not for ranking" not in (tmp_path / "out" / "clothes.md").read_text()


def test_a_track_file_of_another_track_is_refused(tmp_path):
    runs = runs_folder(tmp_path)
    write_track(runs / "results" / "clothes", track(id="digits"))
    with pytest.raises(UserError, match="expected a JSON object with id 'clothes'"):
        render_all(runs / "results", tmp_path / "out")


def with_linear(run: Result, **changes: object) -> Result:
    """Return a run with another linear probe entry, under a correct content hash."""
    document = run.document()
    document["evaluations"][LINEAR] |= changes
    return Result.model_validate(document)


def wrong_accuracy(run: Result) -> Result:
    metrics = run.evaluations[LINEAR].metrics
    return with_linear(run, metrics=metrics | {"best_top1": metrics["best_top1"] + 0.2})


def short_answers(run: Result) -> Result:
    entry = run.evaluations[LINEAR]
    return with_linear(run, correct=entry.correct | {"best": pack_bits(np.ones(8, bool))})


def no_predictions(run: Result) -> Result:
    return with_linear(run, predictions={})


def unknown_class(run: Result) -> Result:
    packed = pack_predictions(np.full(NUM_IMAGES, 10))
    entry = run.evaluations[LINEAR]
    return with_linear(run, predictions=entry.predictions | {"best": packed})


def one_class_too_often(run: Result) -> Result:
    packed = pack_predictions(np.zeros(NUM_IMAGES, int))
    entry = run.evaluations[LINEAR]
    return with_linear(run, predictions=entry.predictions | {"best": packed})


def with_shares(run: Result, **changes: object) -> Result:
    counts = np.arange(NUM_IMAGES) % 11
    entry = {
        "id": "few_labels",
        "version": 1,
        "metrics": {"k5_top1": 100 * float(counts.mean()) / 10},
        "shares": {"k5_top1": pack_counts(counts)},
        "draws": {"k5_top1": 10},
    }
    document = run.document()
    document["evaluations"]["f" * 12] = entry | changes
    return Result.model_validate(document)


def wrong_mean_share(run: Result) -> Result:
    return with_shares(run, metrics={"k5_top1": 50.1})


def shares_without_draws(run: Result) -> Result:
    return with_shares(run, draws={})


def shares_above_the_draws(run: Result) -> Result:
    return with_shares(run, draws={"k5_top1": 9})


def short_shares(run: Result) -> Result:
    return with_shares(run, shares={"k5_top1": pack_counts(np.ones(8, int))})


def other_spec(run: Result) -> Result:
    return run.model_copy(update={"spec": run.spec | {"batch_size": 256}})


def unfinished(run: Result) -> Result:
    return run.model_copy(update={"status": "timeout", "evaluations": {}})


def other_track(run: Result) -> Result:
    return run.model_copy(update={"track": "digits"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_accuracy, "best_top1 is .*, its answers give"),
        (short_answers, "packed values hold"),
        (no_predictions, "no predictions"),
        (unknown_class, "do not fit 10 classes"),
        (one_class_too_often, "more images of a class are right"),
        (wrong_mean_share, "k5_top1: is 50.1, its answers give 50.0"),
        (shares_without_draws, "k5_top1: needs a metric, shares and a number of draws"),
        (shares_above_the_draws, "k5_top1: an image is right in 10 of 9 draws"),
        (short_shares, "k5_top1: packed values hold"),
        (other_spec, "its spec gives the run id"),
        (unfinished, "ended as timeout; run it again"),
        (other_track, "is of the track digits"),
    ],
)
def test_a_result_that_contradicts_itself_stops_the_publishing(tmp_path, change, message):
    boards = published(tmp_path)
    before = tree(boards)
    runs = [result("new", seed) for seed in range(3)]
    faulty = change(runs[1])
    with pytest.raises(UserError, match=message) as error:
        publish(runs_folder(tmp_path / "other", [runs[0], faulty, runs[2]]), boards)
    assert runs[1].run_id in str(error.value)
    assert "\n" not in str(error.value)
    assert tree(boards) == before


def test_a_number_of_trials_needs_the_recipe_that_they_found(tmp_path):
    """Rows are ranked for it: a text in a result is not enough."""
    tuned = [result("new", seed, row={"tuning": "8"}) for seed in range(2)]
    with pytest.raises(UserError, match=r"says 8 trials of tuning; no recipe of new lies beside"):
        published(tmp_path, tuned)
    assert not (tmp_path / "leaderboards").exists()
    boards = published(tmp_path / "other", [result("new", seed) for seed in range(2)])
    (path,) = boards.glob("results/clothes/new-s0-*.json")
    write(path, tuned[0])
    render_all(boards / "results", boards)
    (line,) = check(boards)
    assert line.startswith(f"clothes/{path.name}: says 8 trials")


def test_results_with_shares_are_published(tmp_path):
    boards = published(tmp_path, [with_shares(run) for run in board()])
    assert check(boards) == []


def test_an_altered_file_stops_the_publishing(tmp_path):
    runs = runs_folder(tmp_path)
    (path,) = (runs / "results" / "clothes").glob("turn_net-s0-*.json")
    document = json.loads(path.read_text())
    document["cost"]["train_seconds"] = 1.0
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="altered since it was written"):
        publish(runs, tmp_path / "leaderboards")
    assert not (tmp_path / "leaderboards").exists()


def test_a_track_is_published_by_what_is_before_its_hash(tmp_path):
    runs = runs_folder(tmp_path)
    for name in ("hats~012abc", "hats~345def"):
        for run in board(seeds=3):
            moved = run.model_copy(update={"track": name})
            write(runs / "results" / name / f"{run.run_id}.json", moved)
        write_track(runs / "results" / name, track(id=name))
    with pytest.raises(UserError, match="track hats may be hats~012abc or hats~345def; say which"):
        publish(runs, tmp_path / "boards", ["hats"])
    publish(runs, tmp_path / "boards", ["hats~345def"])
    shutil.rmtree(runs / "results" / "hats~345def")
    publish(runs, tmp_path / "boards", ["hats"])
    folders = sorted(path.name for path in (tmp_path / "boards" / "results").iterdir())
    assert folders == ["hats~012abc", "hats~345def"]


def local(name: str, sha256: str, seed: int, seeds_of: float = 0.8) -> Result:
    row = {"origin": "local"}
    code = {"plugin_sha256": sha256, "engine": 1, "distribution": ""}
    return result(name, seed, seeds_of, row=row, config={"file": sha256}, code=code)


def test_rows_of_plugin_files_are_left_out_aloud(tmp_path):
    runs = runs_folder(tmp_path, [*board(), *(local("mine", "a" * 64, s) for s in range(3))])
    publish(runs, tmp_path / "boards")
    assert "mine" not in (tmp_path / "boards" / "clothes.md").read_text()
    line = kept_back(runs / "results", None)
    assert line.startswith("left out: 3 runs of plugin files or checkpoints (mine);")
    assert kept_back(runs_folder(tmp_path / "plain") / "results", ["clothes"]) == ""


def test_runs_of_a_plugin_file_before_an_edit_are_no_rows(tmp_path):
    versions = [local("mine", sha, seed) for sha in ("a" * 64, "b" * 64) for seed in range(3)]
    others = [local("yours", "c" * 64, seed) for seed in range(3)]
    runs = runs_folder(tmp_path, [*board(), *versions, *others])
    render_all(runs / "results", tmp_path / "all")
    text = (tmp_path / "all" / "clothes.md").read_text()
    assert "`aaaaaaaa`" in text
    render_all(runs / "results", tmp_path / "out", local={"mine": "b" * 64})
    text = (tmp_path / "out" / "clothes.md").read_text()
    assert "`aaaaaaaa`" not in text
    assert "`bbbbbbbb`" in text
    assert "`cccccccc`" in text
    assert "mine: 3 runs of its file as it was before an edit" in text.split("## Left out")[1]


def test_other_content_of_a_published_run_needs_force(tmp_path):
    boards = published(tmp_path)
    other = result("turn_net", 0, 0.80, row={"title": "TurnNet"}, draw="again")
    runs = runs_folder(tmp_path / "other", [other])
    before = tree(boards)
    with pytest.raises(UserError, match="already published with other content; --force"):
        publish(runs, boards)
    assert tree(boards) == before
    publish(runs, boards, force=True)
    assert read(boards / "results" / "clothes" / f"{other.run_id}.json").document() == (
        other.document()
    )
    assert check(boards) == []


def test_force_replaces_a_damaged_published_file(tmp_path):
    boards = published(tmp_path)
    (path,) = boards.glob("results/clothes/turn_net-s0-*.json")
    path.write_text("{")
    publish(tmp_path / "runs", boards, force=True)
    assert check(boards) == []
    assert digest(json.loads(path.read_text())["spec"])[:10] in path.name


def test_local_rows_are_published_only_when_asked(tmp_path):
    local = [result("mine", seed, row={"origin": "local"}) for seed in range(3)]
    external = result("weights", 0, row={"origin": "external"})
    boards = published(tmp_path, [*board(), *local, external])
    assert not list(boards.glob("results/clothes/mine-*"))
    assert not list(boards.glob("results/clothes/weights-*"))
    publish(tmp_path / "runs", boards, include_local=True)
    assert len(list(boards.glob("results/clothes/mine-*"))) == 3
    assert len(list(boards.glob("results/clothes/weights-*"))) == 1


def test_a_track_of_local_rows_alone_is_not_published(tmp_path):
    runs = runs_folder(tmp_path, [result("mine", 0, row={"origin": "local"})])
    with pytest.raises(UserError, match="only rows of local plugin files"):
        publish(runs, tmp_path / "leaderboards")
    assert not (tmp_path / "leaderboards").exists()


def test_terminal_rows_without_numbers_are_published(tmp_path):
    run = result("vit_only", 0, status="unsupported", reason="needs a ViT")
    boards = published(tmp_path, [*board(), run])
    assert "n/a: needs a ViT" in (boards / "clothes.md").read_text()


def test_only_the_wanted_tracks_are_published(tmp_path):
    runs = runs_folder(tmp_path)
    write_track(runs / "results" / "shoes", track(id="shoes"))
    run = result("contrast_net", 0, track_id="shoes")
    write(runs / "results" / "shoes" / f"{run.run_id}.json", run)
    boards = tmp_path / "leaderboards"
    publish(runs, boards, ["shoes"])
    assert (boards / "shoes.md").is_file()
    assert not (boards / "clothes.md").exists()
    with pytest.raises(UserError, match="no results of track hats"):
        publish(runs, boards, ["hats"])


def test_nothing_to_publish_is_said(tmp_path):
    with pytest.raises(UserError, match="no results of any track"):
        publish(tmp_path / "runs", tmp_path / "leaderboards")
