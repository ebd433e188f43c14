"""Studies of generators: distances, ways of sampling one training, shares that work, two tracks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import small_runs

from bench import claim as claims_
from bench import claims, contrasts, records, results, studying
from bench.claim import Claim
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
methods = ["ddpm"]
settings = { width = 8 }
metric = { protocol = "generation", name = "fd", sampling = { steps = 4 } }
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
    regret, share, none, slope = found
    assert [finding.state for finding in found] == ["judged"] * 4, [f.reason for f in found]
    assert share.estimate.value == 100.0
    assert none.estimate.value == 0.0
    tracks = {cell.track.partition("~")[0] for cell in record.cells}
    assert tracks == {"one", "two"}
    values = {(s.side.group, s.side.option): s.values for s in regret.sides}
    assert len(values) == 4
    assert regret.estimate == contrasts.regret(values)
    assert all((v > 0).all() for v in values.values())
    first, second = slope.sides
    assert first.cell.runs == second.cell.runs  # one training, drawn from twice
    assert slope.estimate.value == pytest.approx((second.values - first.values).mean())
    assert slope.estimate.seed_variance == pytest.approx((second.values - first.values).var(ddof=1))
    page = claims.render(options.leaderboards_dir, [claim])
    assert "# Claims" in page


def test_each_way_of_sampling_has_its_own_protocol_and_samples(done) -> None:
    claim, options = done
    studies = records.studies_folder(options.runs_dir)
    record, _ = find(claim, studies)
    keys = {"generation", "generation (steps=2)", "generation (steps=4)"}
    assert set(record.protocols) == keys
    assert len(set(record.protocols.values())) == 3
    cell = next(cell for cell in record.cells if cell.method == "ddpm")
    run = results.read(records.find_result(studies, cell.track, cell.runs["0"]))
    chosen = [e.chosen["sampling"]["steps"] for e in run.evaluations.values()]
    assert sorted(chosen) == [2, 4, 50]
    folder = options.runs_dir / run.run_id
    drawn = [np.load(file) for file in sorted(folder.glob("samples-*.npy"))]
    assert len(drawn) == 3
    assert (drawn[0] != drawn[1]).any()


def test_a_page_of_a_study_of_samples_names_its_sides(done, tmp_path: Path) -> None:
    claim, options = done
    target = tmp_path / "studies"
    subprocess.run(["cp", "-r", records.studies_folder(options.runs_dir), target], check=True)
    page = claims.render(tmp_path, [claim])
    assert "discriminator_steps=2" in page
    assert "fd (steps=4)" in page
    assert "kid below 1e+09" in page
