"""Studies of generators: distances, ways of sampling one training, shares that work, two tracks."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest
import small_runs

from bench import claim as claims_
from bench import (
    claims,
    contrasts,
    findings,
    publish,
    published_studies,
    records,
    results,
    studying,
    sweeps,
)
from bench.claim import Claim
from bench.errors import UserError
from bench.findings import find
from bench.runner import Options

GENERATION = """
[evaluations.generation]
samples = 30
reference = 30
extractor = "pixels"
allow_small = true
"""
CLAIM = """
id = "samples"
quote = "No best k."
source = "A lecture"
track = "{first}"
metric = {{ protocol = "generation", name = "kid" }}
unit = "percent"
seeds = 2
tuning = "None."
scale = "cpu"
reason = "Small."

[[contrasts]]
name = "regret"
measure = "regret"
delta = 10.0
"""
SIDE = """
[[contrasts.sides]]
methods = ["gan"]
settings = {{ discriminator_steps = {steps}, width = 4 }}
track = "{track}"
group = "gan on {track}"
option = "k = {steps}"
"""
SHARE = """
[[contrasts]]
name = "share"

[[contrasts.sides]]
methods = ["gan"]
settings = {{ discriminator_steps = 1, width = 4 }}
metric = {{ protocol = "generation", name = "kid", below = {below} }}
"""
SLOPE = """
[[contrasts]]
name = "slope"

[[contrasts.sides]]
weight = -1
methods = ["ddpm"]
settings = { width = 8 }
metric = { protocol = "generation", name = "fd", sampling = { steps = 2 } }

[[contrasts.sides]]
weight = 0
methods = ["ddpm"]
settings = { width = 8 }
metric = { protocol = "generation", name = "fd", sampling = { steps = 1 } }

[[contrasts.sides]]
methods = ["ddpm"]
settings = { width = 8 }
metric = { protocol = "generation", name = "fd", sampling = { steps = 4 } }

[[contrasts]]
name = "fewer"

[[contrasts.sides]]
methods = ["ddpm"]
settings = { width = 8 }
metric = { protocol = "generation", name = "fd", settings = { samples = 20, reference = 20 } }
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Claim, Options]:
    folder = tmp_path_factory.mktemp("samples")
    data = small_runs.write_data(folder / "small.npz")
    text = small_runs.TRACK + GENERATION
    tracks = []
    for name, steps in (("one", 4), ("two", 6)):
        tracks.append(folder / f"{name}.toml")
        said = text.format(data=data, backbone="resnet18", args=small_runs.NARROW, steps=steps)
        tracks[-1].write_text(said.replace("seeds = [0]", "seeds = [0, 1]"))
    claim = CLAIM.format(first=tracks[0])
    claim += "".join(SIDE.format(track=t, steps=k) for t in tracks for k in (1, 2))
    claim += SHARE.format(below=1e9) + SHARE.format(below=-1e9).replace("share", "none") + SLOPE
    shipped = folder / "shipped"
    shipped.mkdir()
    (shipped / "samples.toml").write_text(claim)
    options = Options(folder / "runs", leaderboards_dir=folder / "boards", jobs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims_, "SHIPPED", shipped)
        loaded = claims_.load_claim("samples")
        assert studying.carry_out(loaded, options, say=lambda line: None) == 0
    return loaded, options


def test_contrasts_of_samples_are_judged(done) -> None:
    claim, options = done
    record, found = find(claim, records.studies_folder(options.runs_dir))
    regret, share, none, slope, fewer = found
    assert [finding.state for finding in found] == ["judged"] * 5, [f.reason for f in found]
    assert share.estimate.value == 100.0
    assert none.estimate.value == 0.0
    tracks = {cell.track.partition("~")[0] for cell in record.cells}
    assert tracks == {"one", "two"}
    values = {(s.side.group, s.side.option): s.values for s in regret.sides}
    assert len(values) == 4
    assert regret.estimate == contrasts.regret(values)
    assert all((v > 0).all() for v in values.values())
    first, shown, second = slope.sides
    assert shown.side.weight == 0
    assert fewer.estimate.value > 0
    assert first.cell.runs == second.cell.runs  # one training, drawn from twice
    assert slope.estimate.value == pytest.approx((second.values - first.values).mean())
    assert slope.estimate.seed_variance == pytest.approx((second.values - first.values).var(ddof=1))
    page = claims.render(options.leaderboards_dir, [claim])
    assert "# Claims" in page


def test_a_run_that_broke_down_is_one_that_is_not_below_the_bar(done, tmp_path: Path) -> None:
    claim, options = done
    target = tmp_path / "studies"
    subprocess.run(["cp", "-r", records.studies_folder(options.runs_dir), target], check=True)
    before = find(claim, target)[1]
    (side,) = before[1].sides
    file = records.find_result(target, side.cell.track, side.cell.runs["1"])
    run = results.read(file).model_copy(update={"evaluations": {}, "reason": "the loss is nan"})
    for status, value in (("invalid", 50.0), ("diverged", 50.0), ("failed", None)):
        results.write(file, run.model_copy(update={"status": status}))
        share = find(claim, target)[1][1]
        if value is None:
            assert (share.state, share.estimate) == ("incomplete", None)
            continue
        assert share.sides[0].values.tolist() == [100.0, 0.0]
        assert share.estimate.value == value
        assert share.verdict is not None
        assert f"seed 1 ended as {status}: not below the bar" in claims.render(tmp_path, [claim])


def test_each_way_of_sampling_has_its_own_protocol_and_samples(done) -> None:
    claim, options = done
    studies = records.studies_folder(options.runs_dir)
    record, _ = find(claim, studies)
    keys = {"generation", "generation (reference=20, samples=20)"}
    keys |= {f"generation (steps={steps})" for steps in (1, 2, 4)}
    assert set(record.protocols) == keys
    assert len(set(record.protocols.values())) == 5
    cell = next(cell for cell in record.cells if cell.method == "ddpm")
    run = results.read(records.find_result(studies, cell.track, cell.runs["0"]))
    chosen = [e.chosen["sampling"]["steps"] for e in run.evaluations.values()]
    assert sorted(chosen) == [1, 2, 4, 50, 50]
    folder = options.runs_dir / run.run_id
    drawn = [np.load(file) for file in sorted(folder.glob("samples-*.npy"))]
    assert sorted(len(images) for images in drawn) == [20, 30, 30, 30, 30]
    assert len({images.tobytes() for images in drawn}) == 5


def test_a_claim_may_read_samplings_of_its_own_alone(done, tmp_path: Path) -> None:
    claim, options = done
    studies = records.studies_folder(options.runs_dir)
    record, found = find(claim, studies)
    alone = claim.model_copy(update={"contrasts": claim.contrasts[3:], "metric": None})
    cells = [c.model_copy(update={"contrast": c.contrast - 3}) for c in record.cells]
    changed = record.model_copy(
        update={
            "claim_sha256": alone.sha256,
            "cells": [cell for cell in cells if cell.contrast >= 0],
            "protocols": {k: v for k, v in record.protocols.items() if k != "generation"},
        }
    )
    records.write(records.path(tmp_path, claim.id), changed)
    (tmp_path / "results").symlink_to(studies / "results")
    estimates = [finding.estimate for finding in find(alone, tmp_path)[1]]
    assert estimates == [finding.estimate for finding in found[3:]]


def test_a_ratio_of_two_samplings_of_one_training_is_taken_seed_by_seed(done) -> None:
    _, found = find(done[0], records.studies_folder(done[1].runs_dir))
    first, _, second = found[3].sides
    contrast = found[3].contrast.model_copy(update={"measure": "relative"})
    ratio = np.log(second.values / first.values)
    estimate = findings._estimate(contrast, [first, second])
    assert estimate.value == pytest.approx(100 * np.expm1(ratio.mean()))
    assert estimate.seed_variance == pytest.approx(ratio.var(ddof=1))
    below = dataclasses.replace(second, values=-second.values)
    with pytest.raises(ValueError, match="a ratio needs values above 0"):
        findings._estimate(contrast, [first, below])


def test_a_run_of_the_board_is_published_with_what_a_claim_drew_from_it(
    done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board has the same training, and other samples of it."""
    claim, options = done
    monkeypatch.setattr(published_studies, "load_claim", lambda name: claim)
    studies = records.studies_folder(options.runs_dir)
    record, found = find(claim, studies)
    cell = next(cell for cell in record.cells if cell.method == "ddpm")
    whole = results.read(records.find_result(studies, cell.track, cell.runs["0"]))

    def on_the_board(sha256: str) -> Path:
        samples = {name: a for name, a in whole.artifacts.items() if not name.startswith("samples")}
        weights = samples["backbone.safetensors"].model_copy(update={"sha256": sha256})
        artifacts = samples | {"backbone.safetensors": weights}
        own = {record.protocols["generation"]: whole.evaluations[record.protocols["generation"]]}
        target = tmp_path / sha256[:4]
        results.write(
            target / "results" / cell.track / f"{whole.run_id}.json",
            whole.model_copy(update={"artifacts": artifacts, "evaluations": own}),
        )
        return target

    target = on_the_board(whole.artifacts["backbone.safetensors"].sha256)
    published_studies.publish_studies(options.runs_dir, target, [claim.id])
    again = find(claim, target / "studies")[1]
    assert [finding.estimate for finding in again] == [finding.estimate for finding in found]
    with pytest.raises(UserError, match="the board has another run as"):
        published_studies.publish_studies(options.runs_dir, on_the_board("0" * 64), [claim.id])


def test_a_page_of_a_study_of_samples_names_its_sides(done, tmp_path: Path) -> None:
    claim, options = done
    target = tmp_path / "studies"
    subprocess.run(["cp", "-r", records.studies_folder(options.runs_dir), target], check=True)
    page = claims.render(tmp_path, [claim])
    assert "![samples](claims-samples.svg)" in page
    assert "discriminator_steps=2" in page
    assert "fd (steps=4)" in page
    assert "kid below 1e+09" in page


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.8, 4.4, "+3 [+2, +4]"),
        (0.31, 3.1, "+1.7 [+0.3, +3.1]"),  # not +0, which would leave the verdict open
        (-2.9, -0.04, "-1.47 [-2.90, -0.04]"),
        (-1.2, 2.2, "+1 [-1, +2]"),
        (0.0, 3.0, "+2 [+0, +3]"),
    ],
)
def test_an_end_of_an_interval_that_is_not_0_does_not_read_0(low, high, said) -> None:
    found = contrasts.estimate([contrasts.Cell(np.array([0.0, 1.0, 2.0]))])
    found = dataclasses.replace(found, value=(low + high) / 2, low=low, high=high)
    assert claims.interval(found) == said


def test_a_metric_by_a_setting_is_drawn_and_checked(done, tmp_path: Path) -> None:
    claim, options = done
    _, found = find(claim, records.studies_folder(options.runs_dir))
    field, (line,) = sweeps.sweeps(found)
    assert (field, line.label, [point[0] for point in line.points]) == ("steps", "fd", [1, 2, 4])
    assert all(low <= mean <= high for _, mean, low, high in line.points)
    assert sweeps.faults(tmp_path, claim, found) == [
        "claims-samples.svg: missing, or differs from its results"
    ]
    (path,) = sweeps.write(tmp_path, claim, found)
    assert sweeps.write(tmp_path, claim, found) == []
    assert sweeps.faults(tmp_path, claim, found) == []
    studies = records.studies_folder(options.runs_dir)
    (tmp_path / "studies").symlink_to(studies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "shipped", lambda: (claim.id,))
        patch.setattr(claims, "load_claim", lambda name: claim)
        assert claims.write(tmp_path) == [tmp_path / "claims.md"]
        publish.render_all(tmp_path / "results", tmp_path)
        assert publish.check(tmp_path) == []
    path.write_text(path.read_text().replace("rows sha256: ", "rows sha256: 0"))
    assert len(sweeps.faults(tmp_path, claim, found)) == 1
