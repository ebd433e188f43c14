"""Deliberately broken plugins: each is stopped, refused, or told apart, and where it is not, the
threat model says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import small_runs

from bench import confine, results, runner
from bench.plan import RunSpec
from bench.probe import probe

DEFECTS = Path(__file__).parent / "defects"
needs_landlock = pytest.mark.skipif(
    not confine.landlock_version(), reason="the kernel has no Landlock"
)


def defect(name: str) -> str:
    return str(DEFECTS / f"{name}.py")


def carry_out(
    specs: list[RunSpec], runs_dir: Path, *, dev: bool = False
) -> dict[str, results.Result]:
    """Run one after the other and return the results by method."""
    options = runner.Options(
        runs_dir, jobs=1, dev=dev, leaderboards_dir=runs_dir.parent / "leaderboards"
    )
    found = {}

    def finished(spec: RunSpec, result: results.Result | None, skipped: bool) -> None:
        assert result is not None
        found[spec.spec["method"]] = result

    runner.carry_out(specs, options, finished=finished, watching=lambda active, waiting: None)
    return found


def log(runs_dir: Path, method: str) -> str:
    (path,) = runs_dir.glob(f"{method}-*/child.log")
    return path.read_text()


@needs_landlock
def test_labels_are_not_found_where_the_harness_keeps_them(tmp_path: Path) -> None:
    """Neither beside the images, in the data set, nor in a backbone that was trained on them."""
    boards = tmp_path / "leaderboards" / "results" / "some"
    boards.mkdir(parents=True)
    (boards / "run.json").write_text("{}")
    plugins = ["supervised", defect("smuggles_labels")]
    specs = small_runs.specs(plugins, tmp_path, steps=5)
    found = carry_out(specs, tmp_path / "runs")
    assert found["supervised"].status == "done"  # whose card says so may read them
    said = log(tmp_path / "runs", "smuggles_labels")
    assert "found: nothing" in said
    for way in (
        "beside_the_images",
        "in_the_data_set",
        "in_another_run_s_backbone",
        "in_an_encoder_of_the_package",
        "in_published_results",
    ):
        assert f"{way}: " in said
    assert said.count("Permission denied") >= 5
    assert found["smuggles_labels"].status == "done"  # on no labels at all


@needs_landlock
def test_a_plugin_that_opens_the_test_split_fails(tmp_path: Path) -> None:
    specs = small_runs.specs([defect("reads_the_test")], tmp_path, steps=5)
    result = carry_out(specs, tmp_path / "runs")["reads_the_test"]
    assert result.status == "failed"
    assert "Permission denied" in result.reason
    assert not result.evaluations


@needs_landlock
def test_a_plugin_that_is_asked_for_its_card_writes_nothing(tmp_path: Path) -> None:
    """Or it could leave there, where the data set is not hidden, what its run looks for."""
    source = (DEFECTS / "wrong_prefix.py").read_text()
    told = "    open(__file__ + '.left', 'w').write('labels')\n    return MethodCard"
    (tmp_path / "writes.py").write_text(source.replace("    return MethodCard", told))
    answer = probe(
        [str(tmp_path / "writes.py")],
        recipe="small",
        overrides={},
        data=None,
        seeds=[0],
        runs_dir=tmp_path,
    )
    (facts,) = answer["methods"].values()
    assert "Permission denied" in facts["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["writes.py"]


def test_a_card_that_changes_its_mind_about_labels_is_refused(tmp_path: Path) -> None:
    (spec,) = small_runs.specs(["supervised"], tmp_path, steps=5)
    planned = dataclasses.replace(spec, row=spec.row | {"uses_labels": False})
    result = carry_out([planned], tmp_path / "runs")["supervised"]
    assert result.status == "failed"
    assert "the card now says uses_labels=True" in result.reason


def test_a_wrong_prefix_is_invalid_and_names_the_keys(tmp_path: Path) -> None:
    specs = small_runs.specs([defect("wrong_prefix")], tmp_path, steps=5)
    result = carry_out(specs, tmp_path / "runs")["wrong_prefix"]
    assert result.status == "invalid"
    assert "missing conv1.weight" in result.reason
    assert not result.evaluations


def test_a_backbone_that_remembers_is_invalid(tmp_path: Path) -> None:
    (spec,) = small_runs.specs([defect("sees_the_batch")], tmp_path, steps=5)
    remembered = dataclasses.replace(spec, spec=spec.spec | {"config": {"remembered": True}})
    result = carry_out([remembered], tmp_path / "runs")["sees_the_batch"]
    assert result.status == "invalid"
    assert "unexpected memory" in result.reason


def test_a_forward_of_its_own_is_not_what_is_judged(tmp_path: Path) -> None:
    """The harness builds the backbone itself: the numbers are those of the weights alone."""
    plugins = [defect("sees_the_batch"), *small_runs.hostile("good")]
    found = carry_out(small_runs.specs(plugins, tmp_path, steps=5), tmp_path / "runs")
    patched, plain = found["sees_the_batch"], found["good"]
    assert patched.status == plain.status == "done"
    assert patched.artifacts == plain.artifacts
    assert [e.metrics for e in patched.evaluations.values()] == [
        e.metrics for e in plain.evaluations.values()
    ]


def marked(path: Path) -> Path:
    """Write gray images whose first 64 bytes are one pattern in training, another in test."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count, (factor, offset, modulus) in (
        ("train", 120, (7, 3, 251)),
        ("test", 40, (11, 5, 241)),
    ):
        images = generator.integers(0, 256, (count, 256), dtype=np.uint8)
        images[:, :64] = (factor * np.arange(64) + offset) % modulus
        arrays[f"x_{part}"] = images.reshape(count, 16, 16)
        arrays[f"y_{part}"] = np.arange(count) % small_runs.CLASSES
    np.savez(path, **arrays)
    return path


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the system has no /proc")
def test_no_test_image_is_in_the_memory_of_a_plugin_s_process(tmp_path: Path) -> None:
    """Which holds the training images, so that the search is known to find what is there."""
    marked(tmp_path / "small.npz")
    specs = small_runs.specs([defect("scans_memory")], tmp_path, steps=5)
    result = carry_out(specs, tmp_path / "runs")["scans_memory"]
    assert (result.status, result.data.test_images) == ("done", 40)
    assert "held: train\n" in log(tmp_path / "runs", "scans_memory")


def test_validation_only_runs_never_open_the_test_split(tmp_path: Path) -> None:
    """Its arrays are text here, which whoever reads them is told; a plain run is."""
    arrays = dict(np.load(marked(tmp_path / "whole.npz")))
    arrays["x_test"] = arrays["y_test"] = np.array(["nobody reads this"])
    np.savez(tmp_path / "small.npz", **arrays)
    specs = small_runs.specs(small_runs.hostile("good"), tmp_path, steps=5)
    result = carry_out(specs, tmp_path / "runs", dev=True)["good"]
    assert (result.status, result.data.test_images) == ("done", 0)
    assert not (tmp_path / "leaderboards").exists()
    assert carry_out(specs, tmp_path / "plain")["good"].reason.startswith("judging failed: x_test")
