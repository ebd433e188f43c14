"""Studies of claims: runs shared with boards, verdicts that come only after their claim."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_runs
import synthetic_results

from bench import claim as claims_
from bench import (
    claims,
    cli,
    findings,
    ledger,
    publish,
    published_studies,
    records,
    results,
    study,
    studying,
)
from bench.claim import Claim, Tune, load_claim
from bench.errors import UserError
from bench.findings import find
from bench.runner import Options
from bench.verdicts import REPRODUCED

TRACK = small_runs.TRACK.replace("seeds = [0]", "seeds = [3, 4]").replace(
    "[budget]\nsteps = {steps}", "[budget]\nepochs = {steps}"
)
CLAIM = """
id = "heads"
quote = "A head | helps."
source = "A lecture"
track = "{track}"
metric = {{ protocol = "knn", name = "top1" }}
beside = [{{ protocol = "cost", name = "parameters" }}]
unit = "points"
seeds = 2
tuning = "The temperature."
scale = "cpu"
reason = "Small."

[[contrasts]]
name = "SimCLR - the better floor"
delta = 1.0

[[contrasts.sides]]
weight = 1
methods = ["simclr"]
settings = {{ head = "mlp" }}
changes = {{ batch_size = 12 }}
tune = {{ field = "temperature", factors = [0.5, 1.0] }}

[[contrasts.sides]]
weight = -1
methods = ["raw_pixels", "random_init", "not_there"]

[[contrasts]]
name = "h - z"
delta = 5.0
study = "head_why"
quantity = "rotation_h_minus_z"
procedure = "Probes of rotation."

[[contrasts.sides]]
weight = 1
methods = ["simclr"]
changes = {{ batch_size = 12 }}
tune = {{ field = "temperature", factors = [0.5, 1.0] }}

[[contrasts]]
name = "k - k20"

[[contrasts.sides]]
weight = 1
methods = ["simclr"]
changes = {{ batch_size = 12 }}
tune = {{ field = "temperature", factors = [0.5, 1.0] }}
metric = {{ protocol = "knn", name = "top1" }}

[[contrasts.sides]]
weight = -1
methods = ["simclr"]
changes = {{ batch_size = 12 }}
tune = {{ field = "temperature", factors = [0.5, 1.0] }}
metric = {{ protocol = "knn", name = "k20_top1" }}

[[contrasts]]
name = "of another version"
study = "guidance"
quantity = "slope"
procedure = "Later."
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of claims in a repository, its claim committed."""
    folder = tmp_path_factory.mktemp("claims")
    data = small_runs.write_data(folder / "small.npz", train=120, test=60)
    track = folder / "tiny.toml"
    track.write_text(TRACK.format(data=data, backbone="resnet18", args=small_runs.NARROW, steps=1))
    (folder / "shipped").mkdir()
    (folder / "shipped" / "heads.toml").write_text(CLAIM.format(track=track))
    commit(folder / "shipped", "2026-01-01T00:00:00+00:00")
    return folder / "shipped"


def commit(folder: Path, time: str) -> None:
    def git(*arguments: str) -> None:
        said = {"GIT_COMMITTER_DATE": time, "GIT_AUTHOR_DATE": time}
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(
            ["git", "-C", folder, *who, *arguments],
            check=True,
            capture_output=True,
            env=os.environ | said,
        )

    if not (folder / ".git").exists():
        git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "Register", "--allow-empty")


@pytest.fixture
def heads(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> Claim:
    monkeypatch.setattr(claims_, "SHIPPED", shipped)
    return load_claim("heads")


@pytest.fixture(scope="module")
def done(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Options, list[str]]:
    """The claim's study, run once: its options, and what was said."""
    folder = tmp_path_factory.mktemp("work")
    options = Options(folder / "runs", leaderboards_dir=folder / "boards", jobs=1)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims_, "SHIPPED", shipped)
        assert studying.carry_out(load_claim("heads"), options, say=said.append) == 0
    return options, said


def folder_of(options: Options) -> Path:
    return records.studies_folder(options.runs_dir)


def test_a_study_runs_what_its_claim_needs(done, heads):
    options, said = done
    assert "heads: not_there is not installed; it is left out" in said
    record = records.read(records.path(folder_of(options), "heads"))
    assert record.seeds == [3, 4]
    simclr, pixels, untrained, absent, *_ = record.cells
    assert [cell.method for cell in (pixels, untrained, absent)] == [
        "raw_pixels",
        "random_init",
        "not_there",
    ]
    assert absent.absent
    assert simclr.batch_size == 12
    assert simclr.track.startswith("tiny~")
    assert set(simclr.tuned.scores) == {"0.5", "1"}
    assert simclr.tuned.factor == max((1.0, 0.5), key=lambda f: simclr.tuned.scores[f"{f:g}"])
    assert len(simclr.trials) == 2
    trials = [
        results.read(folder_of(options) / "trials" / simclr.track / f"{run_id}.json")
        for run_id in simclr.trials
    ]
    assert {trial.seed for trial in trials} == {1000}
    assert not any(entry.metrics for trial in trials for entry in trial.evaluations.values())
    lines = ledger.read(options.leaderboards_dir / ledger.FILE)
    assert not {line["run_id"] for line in lines} & set(simclr.trials)


def test_verdicts_follow_from_the_files(done, heads):
    options, _ = done
    record, found = find(heads, folder_of(options))
    floor, why, stages, _ = found
    assert [finding.state for finding in found] == ["judged", "judged", "judged", "not run"]
    runs = {
        cell.method: [
            results.read(records.find_result(folder_of(options), cell.track, run_id))
            for run_id in cell.runs.values()
        ]
        for cell in record.cells[:3]
    }
    knn = record.protocols["knn"]

    def mean(method: str, part: str) -> float:
        values = [getattr(run.evaluations[knn], part)["top1"] for run in runs[method]]
        return float(np.mean(values))

    floors = ("raw_pixels", "random_init")
    best = max(floors, key=lambda method: mean(method, "validation"))
    assert floor.estimate.value == pytest.approx(mean("simclr", "metrics") - mean(best, "metrics"))
    assert floor.sides[1].cell.method == best
    assert floor.sides[1].absent == ("not_there",)
    assert floor.sides[0].beside["cost parameters"] > 0
    assert why.estimate.n == 2
    assert stages.estimate.n == 2
    per_seed = stages.sides[0].values - stages.sides[1].values
    assert stages.estimate.value == pytest.approx(per_seed.mean())
    assert stages.estimate.seed_variance == pytest.approx(per_seed.var(ddof=1))  # one cell


def test_running_again_runs_nothing(done, heads):
    options, _ = done
    record = records.path(folder_of(options), "heads").read_bytes()
    said: list[str] = []
    assert studying.carry_out(heads, options, say=said.append) == 0
    kept = ("finished before", "left out", "all trials and runs are there")
    assert all(any(words in line for words in kept) for line in said)
    assert records.path(folder_of(options), "heads").read_bytes() == record


def test_the_plan_counts_trials_and_runs(done, heads, tmp_path):
    lines = studying.plan_lines(heads, Options(tmp_path / "runs"))
    assert lines[-2] == "heads: 2 trials and 6 runs in all"
    assert lines[-1].startswith("heads: 2 trials and 6 runs to come: 2 runs of random_init: unk")
    assert "2 trials of temperature, 2 runs of 9 steps at batch 12" in lines[0]
    assert not (tmp_path / "runs" / "studies").exists()
    after = studying.plan_lines(heads, done[0])
    assert "2 there already" in "\n".join(after)
    assert after[-1] == "heads: all trials and runs are there"
    again = Options(tmp_path / "runs", leaderboards_dir=done[0].runs_dir)
    takes = r"2 trials and 6 runs to come: about \d+ core-minutes, as \d+ earlier runs took$"
    assert re.search(takes, studying.plan_lines(heads, again)[-1])


def test_a_boards_run_is_a_studys_run(done, heads):
    options, _ = done
    record = records.read(records.path(folder_of(options), "heads"))
    cell = record.cells[1]
    (run_id, *_) = cell.runs.values()
    own, board = records.result_files(folder_of(options), cell.track, run_id)
    board.parent.mkdir(parents=True)
    own.rename(board)
    said: list[str] = []
    try:
        assert studying.carry_out(heads, options, say=said.append) == 0
        assert not own.exists()
        assert find(heads, folder_of(options))[1][0].state == "judged"
    finally:
        board.rename(own)


# Registration


def test_git_says_since_when_a_claim_says_what_it_says(tmp_path, monkeypatch):
    file = tmp_path / "heads.toml"
    for time, text in (
        ("2026-01-01T00:00:00+00:00", CLAIM.replace("seeds = 2", "seeds = 3")),
        ("2026-01-02T00:00:00+00:00", CLAIM),
        ("2026-01-03T00:00:00+00:00", "# a remark\n" + CLAIM),
    ):
        file.write_text(text.format(track="tiny"))
        commit(tmp_path, time)
    claim = claims_.read_claim(file)
    assert records.registered(claim, file).time == "2026-01-02T00:00:00+00:00"
    file.write_text(CLAIM.format(track="other"))
    assert records.registered(claims_.read_claim(file), file) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert records.registered(claim, file) is None


def test_a_claim_that_was_worded_after_its_runs_has_no_verdict(done, heads, shipped):
    options, _ = done
    record = records.read(records.path(folder_of(options), "heads"))
    assert record.registered.time == "2026-01-01T00:00:00+00:00"
    assert records.fault(heads, record) == ""
    later = record.model_copy(
        update={"registered": records.Registered(commit="c", time="2999-01-01T00:00:00+00:00")}
    )
    assert "is younger than " in records.fault(heads, later)
    unregistered = record.model_copy(update={"registered": None})
    assert records.fault(heads, unregistered) == ""  # all its runs came after the record
    found = unregistered.model_copy(
        update={"traces": record.traces | {"board-run": "2025-12-31T00:00:00+00:00"}}
    )
    assert records.fault(heads, found).endswith("is younger than board-run")


def test_a_claim_that_says_something_else_has_no_verdict(done, heads, shipped):
    options, _ = done
    file = shipped / "heads.toml"
    text = file.read_text()
    try:
        file.write_text(text.replace("delta = 1.0", "delta = 0.5"))
        changed = load_claim("heads")
        _, found = find(changed, folder_of(options))
        assert {finding.state for finding in found} == {"refused"}
        assert found[0].reason == "the claim says something else than when its runs began"
        with pytest.raises(UserError, match="says something else"):
            published_studies.publish_studies(options.runs_dir, options.leaderboards_dir, ["heads"])
        # A new record for the new wording finds the old runs, which are older than it.
        fresh = records.open_record(folder_of(options), changed, file)
        record = records.read(records.path(folder_of(options), "heads"))
        run = record.cells[0].trials[0]
        place = options.runs_dir / run
        os.utime(next(place.glob("*.json")), (1.7e9, 1.7e9))
        assert "is younger than" in records.fault(changed, records.noted(fresh, {run: [place]}))
    finally:
        file.write_text(text)


def test_a_damaged_record_is_refused(done, heads, tmp_path):
    options, _ = done
    file = tmp_path / "heads.json"
    text = records.path(folder_of(options), "heads").read_text()
    for damage, complaint in (
        (text.replace('"claim": "heads"', '"claim": "hands"'), "altered since it was written"),
        ("{", "not a record of a study"),
        ('{"schema": 2}', "expected an object of schema 1"),
    ):
        file.write_text(damage)
        with pytest.raises(UserError, match=complaint):
            records.read(file)


# What cannot run


def test_what_cannot_run_is_refused_before_anything_starts(heads, shipped, tmp_path):
    options = Options(tmp_path / "runs")
    text = (shipped / "heads.toml").read_text()
    for said, instead, complaint in (
        ('scale = "cpu"', 'scale = "out of reach"', "out of reach: Small."),
        ('field = "temperature"', 'field = "base_lr"', "has base_lr = None; the claim multiplies"),
        ('field = "temperature"', 'field = "head"', "has head = 'mlp'; the claim multiplies"),
        ('head = "mlp"', 'haed = "mlp"', "head"),
        ('track = "', 'track = "nowhere', "track"),
    ):
        assert said in text
        claim = claims_.parse_claim(text.replace(said, instead).encode(), Path("heads.toml"))
        with pytest.raises(UserError, match=complaint):
            studying.carry_out(claim, options, say=lambda line: None)
    assert not (tmp_path / "runs" / "studies").exists()


def test_the_nearest_of_equal_factors_is_chosen(heads, tmp_path):
    cell = study.prepare(heads, runs_dir=tmp_path).cells[0]
    tune = Tune(field="temperature", factors=[0.25, 0.5, 1.0, 4.0])
    runs = {}
    for factor, score in ((0.25, 80.0), (0.5, 80.0), (1.0, 70.0), (4.0, None)):
        run = synthetic_results.result("simclr", 1000)
        entry = run.evaluations[synthetic_results.KNN]
        scores = {} if score is None else {"top1": score}
        entry = entry.model_copy(update={"validation": scores})
        runs[factor] = [run.model_copy(update={"evaluations": {synthetic_results.KNN: entry}})]
    tuned = study.choose(tune, cell, runs, heads.metric, synthetic_results.KNN)
    assert (tuned.factor, tuned.at_edge) == (0.5, False)
    assert tuned.scores == {"0.25": 80.0, "0.5": 80.0, "1": 70.0, "4": None}
    assert tuned.value == pytest.approx(0.5 * cell.method["config"]["temperature"])


# Publishing and the page


@pytest.fixture
def boards(done, heads, tmp_path) -> Path:
    """Published boards with the study."""
    options, _ = done
    target = tmp_path / "boards"
    published_studies.publish_studies(options.runs_dir, target, ["heads"])
    claims.write(target)
    return target


def test_a_published_study_has_the_verdicts_of_the_working_one(boards, done, heads):
    working, published = (
        find(heads, folder)[1] for folder in (folder_of(done[0]), boards / "studies")
    )
    assert [f.verdict for f in published] == [f.verdict for f in working]
    assert published[0].estimate == working[0].estimate
    assert len(list((boards / "studies" / "trials").glob("*/*.json"))) == 2


def test_publishing_twice_changes_nothing_and_another_content_is_refused(boards, done):
    options, _ = done
    before = {f: f.read_bytes() for f in boards.rglob("*") if f.is_file()}
    published_studies.publish_studies(options.runs_dir, boards, ["heads"])
    assert {f: f.read_bytes() for f in boards.rglob("*") if f.is_file()} == before
    file = next((boards / "studies" / "results").glob("*/*.json"))
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"nothing published: .* other content; --force"):
        published_studies.publish_studies(options.runs_dir, boards, ["heads"])


def test_a_claim_without_a_study_is_not_published(heads, tmp_path):
    with pytest.raises(UserError, match=r"claim heads has no study in .*; `bench study heads`"):
        published_studies.publish_studies(tmp_path, tmp_path / "boards", ["heads"])


def test_the_page_says_every_contrast_and_where_it_holds(boards, heads):
    page = (boards / "claims.md").read_text()
    assert page == claims.render(boards)
    for finding in find(heads, boards / "studies")[1]:
        assert finding.contrast.name in page
    assert "A head &#124; helps." in page
    assert "it says nothing about ImageNet." in page
    assert "resnet18" in page
    assert "not part of this version, left out: not" in page
    for target in page.split("](")[1:]:
        link = target.partition(")")[0]
        assert link.startswith("#") or (boards / link.replace("%7E", "~")).is_file(), link


def test_the_ledger_says_when_a_run_was_first_judged_by_a_claims_protocols(tmp_path):
    """Wherever its files lie now: a fresh clone has none, or young ones."""
    lines = [
        {"run_id": "a", "protocols": ["other"], "time": "2026-01-01T00:00:00+00:00"},
        {"run_id": "a", "protocols": ["other", "own"], "time": "2026-01-02T00:00:00+00:00"},
        {"run_id": "a", "protocols": ["own"], "time": "2026-01-03T00:00:00+00:00"},
        {"run_id": "b", "protocols": ["other"], "time": "2026-01-01T00:00:00+00:00"},
    ]
    reads = records.first_reads(lines, ["own"])
    assert reads == {"a": "2026-01-02T00:00:00+00:00"}
    (tmp_path / "file").write_text("")
    record = records.Record(claim="c", claim_sha256="0", begun=records.now())
    noted = records.noted(record, {"a": [tmp_path / "file"], "b": []}, reads)
    assert noted.traces["a"] == reads["a"]
    assert noted.traces["b"] >= record.begun
    assert records.noted(noted, {"a": [], "b": []}).traces == noted.traces


def test_runs_that_were_replaced_are_counted_under_a_claim(heads):
    cell = records.CellRecord(contrast=0, side=0, method="m", runs={"0": "new"}, trials=["t"])
    record = records.Record(
        claim="c",
        claim_sha256="0",
        begun="then",
        cells=[cell],
        observations={"0": ["seen-s0.json"]},
        traces=dict.fromkeys(("new", "t", "seen-s0", "old", "older"), "then"),
    )
    (line,) = claims._provenance(heads, record)
    assert line.endswith("; 2 earlier runs and observations were made for it and do not count.")
    same = record.model_copy(update={"traces": {"new": "then"}})
    assert "do not count" not in claims._provenance(heads, same)[0]


def test_where_a_claim_holds_is_said_with_the_budgets_that_ran(heads):
    """Sides may change their track's budget."""
    ran = [("board~0a1b2c", "2 epochs"), ("board~0a1b2c", "8 epochs"), ("other", "5 epochs")]
    sides = [
        SimpleNamespace(cell=records.CellRecord(contrast=0, side=0, method="m", track=t, budget=b))
        for t, b in ran
    ]
    holds = "net (a=1), no pool, board, 4 epochs; net, other, 5 epochs; the loss itself"
    finding = findings.Finding(heads.contrasts[0], "judged", sides=tuple(sides), holds=holds)
    assert claims._footer(heads, [finding]) == (
        "This holds for net (a=1), no pool, board, 2 epochs and 8 epochs; net, other, 5 epochs; "
        "the loss itself; it says nothing about ImageNet."
    )


def test_a_page_that_is_not_its_results_is_found(boards):
    assert claims.check(boards) == []
    page = boards / "claims.md"
    text = page.read_text()
    page.write_text(text.replace("heads", "hands", 1))
    assert claims.check(boards) == ["claims.md: differs from its results"]
    page.unlink()
    assert claims.check(boards) == ["claims.md: missing"]
    page.write_text(text)
    found = {f: f.read_text() for f in (boards / "studies" / "observations").glob("*/*.json")}
    file, observed = next((f, t) for f, t in found.items() if '"seed": 3' in t)
    file.write_text(observed.replace('"seed": 3', '"seed": 5'))
    assert claims.check(boards) == ["claims.md: differs from its results"]
    assert "altered since it was written" in claims.render(boards)
    (boards / "studies" / "records" / "other.json").write_text("{}")
    assert "studies/records/other.json: no claim of this name" in claims.check(boards)


def test_boards_show_and_check_their_claims(boards):
    written = publish.render_all(boards / "results", boards)
    assert boards / "claims.md" in written
    assert "[Claims](claims.md)" in (boards / "README.md").read_text()
    assert publish.check(boards) == []
    (boards / "claims.md").unlink()
    assert publish.check(boards) == ["claims.md: missing"]


def test_boards_without_studies_have_no_page(tmp_path):
    assert claims.check(tmp_path) == []
    assert claims.write(tmp_path) == []


def test_every_registered_claim_stands_on_the_page_before_it_runs(tmp_path):
    (tmp_path / "studies").mkdir()
    page = claims.render(tmp_path)
    for name in claims_.shipped():
        claim = load_claim(name)
        assert f"## {name}\n" in page
        assert claim.sha256[:12] in page
    assert page.count("not run") >= 25
    assert page.count("**out of reach**") == 0
    assert "| out of reach |" in page or "out of reach" in page


# Sides


def test_sides_of_the_same_runs_are_one_cell():
    side = claims_.Side(weight=1, methods=["a"])
    other = claims_.Side(weight=-1, methods=["a"])
    third = claims_.Side(weight=-1, methods=["b"])
    cell = records.CellRecord(
        contrast=0, side=0, method="a", track="t", runs={"0": "a-s0", "1": "a-s1"}
    )
    apart = cell.model_copy(update={"method": "b", "runs": {"0": "b-s0", "1": "b-s1"}})

    def measured(side: claims_.Side, cell: records.CellRecord, *values: float):
        return findings.Measured(side, cell, {}, (), np.array(values), None, {})

    merged = findings._cells(
        [measured(side, cell, 90, 80), measured(other, cell, 85, 75), measured(third, apart, 1, 2)]
    )
    assert [(c.values.tolist(), c.weight) for c in merged] == [([5, 5], 1.0), ([1, 2], -1)]


def test_a_verdict_is_a_word_of_the_page():
    assert REPRODUCED in claims.LEGEND


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected the NAME of a claim, or all; --list names them"),
        (["head-linaer"], "no claim 'head-linaer'; did you mean head-linear"),
        (["head-linaer", "all"], "no claim 'head-linaer'; did you mean head-linear"),
        (["latent-easier"], "claim latent-easier: out of reach: The sentence is about high"),
        (["semi-sup"], "claim semi-sup: its study (semi_supervised) is not part of this version"),
    ],
)
def test_what_the_command_refuses(arguments, said, capsys, tmp_path):
    assert cli.main(["study", *arguments, "--device", "cpu", "--runs-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_command_lists_the_claims(capsys):
    assert cli.main(["study", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(claims_.shipped())


def test_the_command_says_the_verdicts(done, heads, capsys):
    arguments = ["study", "heads", "--device", "cpu", "--jobs", "1"]
    folders = ["--runs-dir", str(done[0].runs_dir), "--leaderboards-dir"]
    assert cli.main([*arguments, *folders, str(done[0].leaderboards_dir)]) == 0
    *_, floor, why, stages, later = capsys.readouterr().out.splitlines()
    assert floor.startswith("heads, SimCLR - the better floor: ")
    assert "points" in why
    assert stages.startswith("heads, k - k20: ")
    assert later == "heads, of another version: not run"


def test_a_claim_on_tracks_of_equal_flops_gives_every_method_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SimCLR's step made to cost twice MoCo's: half the steps, and the open tracks' own recipes."""
    from bench import training_flops
    from bench.training_flops import Count

    def count(wanted, known):
        made = {
            training_flops.key(t.spec): Count(t.spec["method"], cost[t.spec["method"]], 1, t.code)
            for t in wanted
        }
        return made, {}

    cost = {"simclr": 1e8, "moco_v2": 5e7}
    monkeypatch.setattr(training_flops, "count", count)
    monkeypatch.setattr("bench.session.published_folder", lambda: tmp_path / "none" / "results")
    known = load_claim("pixels-unnecessary")
    sides = tuple(
        side.model_copy(update={"methods": (name,), "track": "fashion-mnist-open"})
        for side, name in zip(known.contrasts[0].sides, cost, strict=True)
    )
    contrast = known.contrasts[0].model_copy(update={"sides": sides})
    claim = known.model_copy(update={"contrasts": (contrast,), "seeds": 1})
    boards = Path(__file__).parents[1] / "leaderboards"
    prepared = study.prepare(claim, runs_dir=tmp_path, leaderboards_dir=boards)
    steps, tuned = {}, {}
    for cell in prepared.cells:
        (spec,) = study.specs(prepared, cell, prepared.seeds, {}, [])
        steps[cell.name], tuned[cell.name] = spec.spec["budget"]["steps"], spec.row["tuning"]
    assert steps == {"simclr": 320, "moco_v2": 640}  # 4.1e12 / (128 images of 1e8 or 5e7)
    assert tuned == {"simclr": "8", "moco_v2": "8"}


def test_a_run_of_two_places_is_the_one_that_has_what_is_needed(tmp_path):
    """One that a study made may have other protocols than the board's, which would do."""
    studies_ = tmp_path / "studies"
    run, more = synthetic_results.board()[-1], "a" * 12
    for folder, evaluations in (
        (studies_ / "results", {more: run.evaluations[synthetic_results.KNN]}),
        (tmp_path / "results", dict(run.evaluations)),
    ):
        path = folder / "clothes" / f"{run.run_id}.json"
        results.write(path, run.model_copy(update={"evaluations": evaluations}))

    own = studies_ / "results" / "clothes" / f"{run.run_id}.json"
    theirs = tmp_path / "results" / "clothes" / f"{run.run_id}.json"
    for needed, wanted in (
        ((), own),
        ((more,), own),
        ((synthetic_results.KNN,), theirs),
        ((synthetic_results.KNN, more), own),  # neither has both
    ):
        assert records.find_result(studies_, "clothes", run.run_id, needed) == wanted


def test_a_run_that_only_lacks_a_protocol_is_judged_and_not_trained(done, heads):
    options, _ = done
    record, _ = find(heads, folder_of(options))
    cell = next(cell for cell in record.cells if cell.method == "simclr")
    file = records.find_result(folder_of(options), cell.track, next(iter(cell.runs.values())))
    before = file.read_bytes()
    kept = results.read(file)
    (entry, *_) = kept.evaluations.values()
    results.write(file, kept.model_copy(update={"evaluations": {"a" * 12: entry}}))
    weights = options.runs_dir / kept.run_id / "backbone.safetensors"
    written = weights.stat().st_mtime_ns

    assert studying.carry_out(heads, options, say=lambda line: None) == 0

    again = results.read(file)
    assert again.evaluations.keys() == kept.evaluations.keys() | {"a" * 12}  # another claim's
    assert weights.stat().st_mtime_ns == written
    file.write_bytes(before)
