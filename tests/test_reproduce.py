"""A published run is trained again to the same bytes, or judged by its row, or refused."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import HOSTILE, NARROW, TRACK, write_data
from synthetic_results import KNN, LINEAR, board, result, track
from test_generated import GENERATION, SETTINGS, page

from bench import cli, page_files, publish, session, verdict
from bench.draw import choose
from bench.errors import UnknownName, UserError
from bench.ledger import read as read_ledger
from bench.packing import pack_bits
from bench.reproductions import FILE, read
from bench.results import Result, parse, write
from bench.results import read as read_result
from bench.runner import Options


def altered(run: Result, **changes: Any) -> Result:
    """Return a result with other content, hashed anew, as a forger would."""
    return parse(Result.model_validate(run.document() | changes).document())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, a local plugin, and boards published from eight-step runs."""
    folder = tmp_path_factory.mktemp("published")
    write_data(folder / "small.npz")
    text = TRACK.format(data=folder / "small.npz", backbone="resnet18", args=NARROW, steps=8)
    (folder / "tiny.toml").write_text(text.replace("floors = []", 'floors = ["raw_pixels"]'))
    shutil.copy(HOSTILE / "good.py", folder)
    prepared = session.prepare(
        f"rotnet,{folder / 'good.py'}",
        track=str(folder / "tiny.toml"),
        seeds="1",
        runs_dir=folder / "runs",
        leaderboards_dir=folder / "leaderboards",
    )
    options = Options(folder / "runs", leaderboards_dir=folder / "leaderboards")
    assert session.execute(prepared, options, say=lambda line: None, live=False) == 0
    publish.publish(folder / "runs", folder / "leaderboards", include_local=True)
    return folder


def published(place: Path, method: str) -> Path:
    (path,) = (place / "leaderboards" / "results").glob(f"*/{method}-s0-*.json")
    return path


def reproduce(
    place: Path, path: Path, *more: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Return the exit status and all that the command said; the data are at hand."""
    where = ("--runs-dir", str(place / "again"), "--leaderboards-dir", str(place / "leaderboards"))
    data = () if "--dataset" in more else ("--dataset", f"npz:{place / 'small.npz'}")
    status = cli.main(["reproduce", str(path), *data, *where, *more])
    said = capsys.readouterr()
    return status, said.out + said.err


def beside(place: Path, tmp_path: Path, run: Result) -> Path:
    """Write an altered result into a results folder of its own, with its track."""
    folder = tmp_path / run.track
    folder.mkdir()
    shutil.copy(published(place, run.method).parent / "track.json", folder)
    write(folder / f"{run.run_id}.json", run)
    return folder / f"{run.run_id}.json"


def test_published_run_comes_out_with_the_same_bytes_and_is_recorded(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, boards = published(place, "rotnet"), place / "leaderboards"
    run, before = read_result(path), len(read_ledger(boards / "ledger.jsonl"))
    status, said = reproduce(place, path, "--record", capsys=capsys)
    sha256 = run.artifacts["backbone.safetensors"].sha256
    assert (status, f"same bytes: backbone {sha256[:12]}" in said) == (0, True), said
    (record,) = read(boards)
    assert (record.run_id, record.track, record.verdict) == (run.run_id, run.track, "bytes")
    assert record.published == record.backbone == sha256
    assert record.machine.torch
    assert len(read_ledger(boards / "ledger.jsonl")) == before + 1
    again = place / "again" / run.run_id
    assert (again / "backbone.safetensors").is_file()
    publish.render_all(boards / "results", boards)
    assert f"{record.date}, bytes" in (boards / f"{run.track}.md").read_text()
    (boards / FILE).unlink()


def test_a_finished_reproduction_is_trained_anew(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published(place, "good")
    folder = place / "again" / path.stem
    stamps = []
    for _ in range(2):
        plugin = ("--plugin", str(place / "good.py"))
        status, said = reproduce(place, path, *plugin, capsys=capsys)
        assert (status, "same bytes: backbone" in said) == (0, True), said
        assert "finished before" not in said
        stamps.append((folder / "backbone.safetensors").stat().st_mtime_ns)
    assert stamps[0] < stamps[1]


def test_other_bytes_with_fitting_numbers_lie_inside_the_interval(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_result(published(place, "rotnet"))
    artifact = {"sha256": "e" * 64, "bytes": 1}
    forged = altered(run, artifacts={"backbone.safetensors": artifact})
    status, said = reproduce(place, beside(place, tmp_path, forged), capsys=capsys)
    assert (status, "inside the published interval: kNN" in said) == (0, True), said
    assert f"not {'e' * 12}" in said


@pytest.mark.parametrize("method", ["rotnet", "raw_pixels"])
def test_a_changed_metric_is_told_by_how_much(
    place: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_result(published(place, method))
    document = run.document()
    for entry in document["evaluations"].values():
        entry["metrics"] = dict.fromkeys(entry["metrics"], 0.0)
        entry["correct"] = dict.fromkeys(entry["correct"], pack_bits(np.zeros(40, dtype=bool)))
    forged = altered(run, evaluations=document["evaluations"])
    status, said = reproduce(place, beside(place, tmp_path, forged), capsys=capsys)
    assert status == 1
    (line,) = [line for line in said.splitlines() if line.startswith("not reproduced: kNN")]
    assert "above 0.00 to" in line
    assert "the same backbone" in line or method == "raw_pixels"


def test_raw_pixels_are_evaluated_again_and_compared_exactly(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = reproduce(place, published(place, "raw_pixels"), capsys=capsys)
    assert (status, "same bytes: nothing trains, and all numbers are equal" in said) == (0, True)


def test_stale_run_is_refused_until_that_is_fine(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_result(published(place, "rotnet"))
    forged = altered(run, code=run.code.model_dump() | {"plugin_sha256": "f" * 64, "engine": 0})
    path = beside(place, tmp_path, forged)
    status, said = reproduce(place, path, capsys=capsys)
    assert status == 2
    assert f"is stale: its plugin was {'f' * 12} and is" in said
    assert "its engine was 0 and is" in said
    status, said = reproduce(place, path, "--stale-ok", capsys=capsys)
    assert (status, "same bytes" in said, "stale: its plugin was" in said) == (0, True, True)


def spec_with(run: Result, **changes: Any) -> Result:
    """Return a run of another spec under the id that this spec has."""
    from bench.identity import run_id

    spec = run.spec | changes
    return altered(run, spec=spec, run_id=run_id(spec))


REFUSED = {
    "other data": (
        lambda run: spec_with(run, data=run.spec["data"] | {"sha256": "0" * 64}),
        (),
        "the data set hashes to",
    ),
    "other split": (
        lambda run: spec_with(run, data=run.spec["data"] | {"split": "0" * 64}),
        (),
        "the validation split hashes to",
    ),
    "not installed": (
        lambda run: spec_with(run, method="unheard_of"),
        (),
        "unheard_of is not installed; install pretrain-bench",
    ),
    "unfinished": (
        lambda run: altered(run, status="diverged", reason="at step 3", evaluations={}),
        (),
        "ended as diverged; only finished runs are reproduced",
    ),
    "external": (
        lambda run: altered(run, row=run.row.model_dump() | {"origin": "external"}),
        (),
        "is a checkpoint from elsewhere",
    ),
    "other spec than its name": (
        lambda run: altered(run, spec=run.spec | {"batch_size": 12}),
        (),
        "contradicts itself: its spec gives the run id",
    ),
    "plugin of an installed method": (lambda run: run, ("--plugin", "x.py"), "leave --plugin out"),
    "record of what is not published": (lambda run: run, ("--record",), "publish it first"),
    "record of other code": (lambda run: run, ("--record", "--stale-ok"), "not recorded"),
    "a day without a draw": (lambda run: run, ("--date", "2026-01-01"), "--date is for --random"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_reproduced_is_refused(
    place: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, options, reason = REFUSED[case]
    run = change(read_result(published(place, "rotnet")))
    folder = tmp_path / run.track
    folder.mkdir()
    write(folder / f"{run.run_id}.json", run)
    status, said = reproduce(place, folder / f"{run.run_id}.json", *options, capsys=capsys)
    assert (status, said.count("\n")) == (2, 1), said
    assert reason in said
    if run.run_id != published(place, "rotnet").stem:
        assert not (place / "again" / run.run_id).exists()


def test_data_and_files_that_no_result_names_are_asked_for(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(["reproduce", str(published(place, "rotnet")), "--runs-dir", str(tmp_path)])
    assert (status, "give --dataset npz:PATH" in capsys.readouterr().err) == (2, True)
    status, said = reproduce(place, published(place, "good"), capsys=capsys)
    assert (status, "give it with --plugin FILE" in said) == (2, True)
    (tmp_path / "good.py").write_text((place / "good.py").read_text() + "\n")
    changed = ("--plugin", str(tmp_path / "good.py"))
    status, said = reproduce(place, published(place, "good"), *changed, capsys=capsys)
    assert (status, "give the file as it was" in said) == (2, True)


def test_the_folder_of_bench_run_is_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published(place, "rotnet")
    kept = (place / "runs" / path.stem / "backbone.safetensors").stat().st_mtime_ns
    status, said = reproduce(place, path, "--runs-dir", str(place / "runs"), capsys=capsys)
    assert (status, "is the working folder of `bench run`" in said) == (2, True)
    assert (place / "runs" / path.stem / "backbone.safetensors").stat().st_mtime_ns == kept


def test_a_run_that_a_study_made_is_not_taken_for_its_reproduction(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its results lie elsewhere, so nothing else tells the folder from a new one."""
    path = published(place, "rotnet")
    shutil.copytree(place / "runs" / path.stem, tmp_path / path.stem)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / path.stem).iterdir()}
    for _ in range(2):
        status, said = reproduce(place, path, "--runs-dir", str(tmp_path), capsys=capsys)
        assert (status, "is the run itself" in said) == (2, True)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / path.stem).iterdir()} == before


def row_of(runs: list[Result], run: Result, tmp_path: Path) -> verdict.Row:
    folder = tmp_path / "clothes"
    for one in runs:
        write(folder / f"{one.run_id}.json", one)
    page_files.write_track(folder, track())
    return verdict.published_row(folder / f"{run.run_id}.json", run)


def trained(run: Result, sha256: str) -> Result:
    return altered(run, artifacts={"backbone.safetensors": {"sha256": sha256, "bytes": 1}})


def with_metric(run: Result, key: str, metric: str, value: float) -> Result:
    document = run.document()
    document["evaluations"][key]["metrics"][metric] = value
    return altered(run, evaluations=document["evaluations"])


def test_every_shown_metric_has_to_fit(tmp_path: Path) -> None:
    runs = [trained(run, "a" * 64) for run in board()]
    run = next(run for run in runs if run.method == "turn_net")
    row = row_of(runs, run, tmp_path)
    assert verdict.compare(run, run, row).kind == "bytes"
    assert verdict.compare(run, trained(run, "b" * 64), row).kind == "interval"
    for key, metric in ((LINEAR, "best_top1"), (LINEAR, "last_top1"), (KNN, "top1")):
        for sha256 in ("a" * 64, "b" * 64):  # the same backbone has the same numbers
            far = with_metric(trained(run, sha256), key, metric, 20.0)
            found = verdict.compare(run, far, row)
            assert (found.kind, found.holds) == ("outside", False)
            assert "20.00 is" in found.said
            assert "points below" in found.said
    unseen = with_metric(trained(run, "b" * 64), LINEAR, "best_top5", 20.0)  # not on the page
    assert verdict.compare(run, unseen, row).kind == "interval"


def with_distance(run: Result, value: float) -> Result:
    """Return a run with another protocol, whose metric is no accuracy."""
    entry = {"id": "distances", "version": 1, "metrics": {"fid": value}}
    return altered(run, evaluations=run.document()["evaluations"] | {"f" * 12: entry})


def test_a_metric_without_an_interval_binds_the_same_backbone_alone(tmp_path: Path) -> None:
    runs = [with_distance(trained(run, "a" * 64), 3.0) for run in board()]
    for one in runs:
        write(tmp_path / "clothes" / f"{one.run_id}.json", one)
    run = runs[0]
    row = verdict.published_row(tmp_path / "clothes" / f"{run.run_id}.json", run)
    found = verdict.compare(run, with_distance(run, 4.0), row)
    assert (found.kind, "other numbers for distances: fid" in found.said) == ("outside", True)
    found = verdict.compare(run, with_distance(trained(run, "b" * 64), 4.0), row)
    assert (found.kind, "no interval to judge distances: fid" in found.said) == ("interval", True)


def with_kid(run: Result, value: float) -> Result:
    metrics = {"kid": value, "kid_low": value - 9, "kid_high": value + 9}
    entry = {"id": "generation", "version": 1, "settings": SETTINGS, "metrics": metrics}
    return altered(run, evaluations=run.document()["evaluations"] | {GENERATION: entry})


def test_a_distance_is_judged_by_its_seeds(tmp_path: Path) -> None:
    """Seeds at 100, 104, ...: one more lies near them or does not."""
    runs = [with_kid(trained(run, "a" * 64), 100.0 + 4 * run.seed) for run in board()]
    run = next(run for run in runs if run.method == "turn_net")
    row_of(runs, run, tmp_path)
    page_files.write_track(tmp_path / "clothes", page())
    row = verdict.published_row(tmp_path / "clothes" / f"{run.run_id}.json", run)
    for value, kind in ((95.0, "interval"), (115.0, "interval"), (160.0, "outside")):
        found = verdict.compare(run, with_kid(trained(run, "b" * 64), value), row)
        assert found.kind == kind, found.said
    assert "160.00 is" in found.said
    assert "points" not in found.said


def test_published_seeds_fit_their_own_rows(tmp_path: Path) -> None:
    runs = [trained(run, "a" * 64) for run in board()]
    row_of(runs, runs[0], tmp_path)
    for run in runs:
        row = verdict.published_row(tmp_path / "clothes" / f"{run.run_id}.json", run)
        assert verdict.compare(run, trained(run, "b" * 64), row).kind == "interval"


def test_a_run_that_did_not_finish_is_not_reproduced(tmp_path: Path) -> None:
    runs = board()
    row = row_of(runs, runs[0], tmp_path)
    failed = altered(runs[0], status="failed", reason="out of luck", evaluations={})
    found = verdict.compare(runs[0], failed, row)
    assert (found.kind, found.said) == ("outside", "not reproduced: failed: out of luck")


def test_other_machines_and_versions_are_named() -> None:
    run = result("turn_net", 0)
    other = altered(run, machine=run.machine.model_dump() | {"torch": "3.0", "processor": "Z80"})
    assert verdict.differences(run, run) == []
    assert verdict.differences(run, other) == [
        "processor: Xeon then, Z80 now",
        "torch: 2.14.1 then, 3.0 now",
    ]


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    """Return boards with six rows that can be drawn, and rows that cannot."""
    local = {"origin": "local", "title": "mine"}
    cuda = {"device": "NVIDIA H100", "torch": "2.14.1"}
    runs = [
        *board(),
        result("mine", 0, row=local),
        result("fast_net", 0, machine=cuda),
        result("old_net", 0, code={"plugin_sha256": "0" * 64, "engine": 1}),
        result("lost_net", 0),
        result("turn_net", 7, status="diverged"),
    ]
    for run in runs:
        write(tmp_path / "results" / "clothes" / f"{run.run_id}.json", run)
    page_files.write_track(tmp_path / "results" / "clothes", track())
    return tmp_path


CURRENT = dict.fromkeys(
    ("untrained", "labels", "contrast_net", "queue_net", "turn_net", "fast_net", "old_net"),
    "a" * 64,
)
DAYS = [date(2026, 1, 1) + timedelta(days=day) for day in range(200)]


def test_a_day_draws_one_run_and_days_draw_all_that_can_be_reproduced(boards: Path) -> None:
    drawn = [choose(boards, day, current=CURRENT) for day in DAYS]
    other_order = dict(reversed(CURRENT.items()))
    assert drawn[:9] == [choose(boards, day, current=other_order) for day in DAYS[:9]]
    runs = [read_result(path) for path, _ in drawn]
    wanted = {(run.method, run.seed) for run in board()}
    assert {(run.method, run.seed) for run in runs} == wanted
    rows = [sum(run.method == name for run in runs) for name in {run.method for run in runs}]
    assert min(rows) > 15  # of 33 on average: raw pixels' one seed as often as five of a method
    assert drawn[0][1].startswith("2026-01-01: ")
    assert "one of 6 rows; 4 more are stale, not installed" in drawn[0][1]


def test_a_draw_can_be_of_one_track_or_of_cuda(boards: Path) -> None:
    path, _ = choose(boards, DAYS[0], cuda=True, current=CURRENT)
    assert path.name.startswith("fast_net-s0-")
    path, _ = choose(boards, DAYS[0], track="clothes", current=CURRENT)
    assert path.parent.name == "clothes"
    with pytest.raises(UnknownName, match="no published track 'cloths'; did you mean clothes"):
        choose(boards, DAYS[0], track="cloths", current=CURRENT)
    with pytest.raises(UserError, match="no published run of today's code"):
        choose(boards / "nothing", DAYS[0], current=CURRENT)


def test_random_reproduction_draws_by_its_date(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named data need no folder; drawn is what `choose` says, and it is said."""
    where = ("--leaderboards-dir", str(tmp_path), "--runs-dir", str(tmp_path / "again"))
    assert cli.main(["reproduce", "--random", *where, "--date", "last week"]) == 2
    assert "expected a day as YYYY-MM-DD" in capsys.readouterr().err
    shutil.copytree(place / "leaderboards" / "results", tmp_path / "results")
    assert cli.main(["reproduce", "--random", *where]) == 2  # its data have no name
    assert "no published run of today's code" in capsys.readouterr().err
    digits = Path(__file__).parents[1] / "leaderboards" / "results" / "digits"
    (tmp_path / "results" / "digits").mkdir()
    shutil.copy(digits / "track.json", tmp_path / "results" / "digits")
    (floor,) = digits.glob("raw_pixels-s0-*.json")
    shutil.copy(floor, tmp_path / "results" / "digits")
    status = cli.main(["reproduce", "--random", *where, "--date", "2026-01-01", "--json"])
    said = capsys.readouterr()
    assert status == 0
    assert said.err.startswith("2026-01-01: raw_pixels seed 0 of digits, one of 1 rows")
    assert json.loads(said.out)["run_id"] == floor.stem
