"""A generator from `bench run` to its numbers: drawn once, drawn again otherwise, or refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_runs
import synthetic_results
from PIL import Image
from test_defects import carry_out, defect

from bench import child, manager, page_files, results, session, sheets
from bench.plan import RunSpec
from bench.runner import Options
from bench.sampling import file_name
from bench.track import load_track

GAN = str(Path(__file__).parent / "own_loop_gan.py")
SETTINGS = {"samples": 30, "reference": 30, "extractor": "pixels", "allow_small": True}


def planned(plugin: str, folder: Path, **settings: Any) -> RunSpec:
    (spec,) = small_runs.specs([plugin], folder, steps=5)
    entry = {"name": "generation", "overrides": SETTINGS | settings}
    return replace(spec, evaluations=[*spec.evaluations, entry])


def entry(result: results.Result) -> tuple[str, results.EvaluationEntry]:
    return next((key, e) for key, e in result.evaluations.items() if e.id == "generation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generating")


@pytest.fixture(scope="module")
def first(folder: Path) -> results.Result:
    return carry_out([planned(GAN, folder)], folder / "runs")["own_loop_gan"]


def test_samples_are_drawn_kept_and_measured(folder: Path, first: results.Result) -> None:
    assert first.status == "done", first.reason
    key, measured = entry(first)
    name = file_name(key)
    images = np.load(folder / "runs" / first.run_id / name)
    assert (images.dtype, images.shape) == (np.uint8, (30, 3, 16, 16))
    assert images.std() > 0
    assert set(first.artifacts) == {"backbone.safetensors", name}
    assert measured.chosen["sampling"] == {"scale": 1.0}
    assert {"kid", "fd", "precision", "recall", "memorisation"} <= set(measured.metrics)
    assert first.cost.sampling_seconds > 0
    drawn = folder / "runs" / first.run_id / "sheets"
    assert {path.name for path in drawn.iterdir()} == {
        f"samples.{key}.png",
        f"neighbours.{key}.png",
    }


def test_other_sampling_settings_reuse_the_training(folder: Path, first: results.Result) -> None:
    place = folder / "runs" / first.run_id
    before = (place / "metrics.jsonl").read_bytes()
    old_key, _ = entry(first)
    old = np.load(place / file_name(old_key))
    shown = published_sheet(folder, first)
    (folder / "runs" / "results" / first.track / f"{first.run_id}.json").unlink()
    spec = planned(GAN, folder, sampling={"scale": 0.25, "steps": 7})
    again = carry_out([spec], folder / "runs")["own_loop_gan"]
    key, measured = entry(again)
    assert (again.run_id, again.attempts) == (first.run_id, 2)
    assert key != old_key
    assert measured.chosen["sampling"] == {"scale": 0.25}  # it has no steps
    assert again.artifacts["backbone.safetensors"] == first.artifacts["backbone.safetensors"]
    assert again.cost.train_seconds == first.cost.train_seconds
    assert (place / "metrics.jsonl").read_bytes() == before
    assert (np.load(place / file_name(key)) != old).any()
    assert published_sheet(folder, first) == shown
    assert published_sheet(folder, again) != shown


def published_sheet(folder: Path, result: results.Result) -> bytes:
    """Return the samples that a board with this result shows."""
    planned = sheets.planned(folder / "runs", [result])[result.track]
    assert set(planned) == {"own_loop_gan-samples.png", "own_loop_gan-neighbours.png"}
    return planned["own_loop_gan-samples.png"].read_bytes()


def test_the_same_samples_come_from_the_same_run_and_are_drawn_once_for_two_extractors(
    folder: Path, first: results.Result
) -> None:
    spec = planned(GAN, folder)
    beside = {"name": "generation_beside", "overrides": SETTINGS}
    spec = replace(spec, evaluations=[*spec.evaluations, beside])
    again = carry_out([spec], folder / "elsewhere")["own_loop_gan"]
    assert again.artifacts == first.artifacts  # drawn once, kept once
    assert entry(again)[1].metrics == entry(first)[1].metrics
    (second,) = [e for e in again.evaluations.values() if e.id == "generation_beside"]
    assert second.metrics["fd"] == entry(first)[1].metrics["fd"]
    assert "memorisation" not in second.metrics
    shown = (folder / "elsewhere" / again.run_id / "sheets").iterdir()
    assert {path.stem.partition(".")[2] for path in shown} == {entry(again)[0]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("torch.full((num_images, 3, 16, 16), float('nan'))", "are not finite"),
        ("torch.zeros(num_images - 1, 3, 16, 16)", "expected (30, 3, 16, 16)"),
        ("255 * torch.rand(num_images, 3, 16, 16)", "expected [-1, 1]"),
    ],
)
def test_a_generator_of_no_images_is_invalid(tmp_path: Path, body: str, reason: str) -> None:
    source = Path(defect("copies_training")).read_text()
    start = source.index("    images = model.seen[")
    (tmp_path / "broken.py").write_text(f"{source[:start]}    return {body}\n")
    result = carry_out([planned(str(tmp_path / "broken.py"), tmp_path)], tmp_path / "runs")[
        "broken"
    ]
    assert result.status == "invalid"
    assert reason in result.reason
    assert not result.evaluations


def test_returned_training_images_are_marked(tmp_path: Path) -> None:
    spec = planned(defect("copies_training"), tmp_path)
    result = carry_out([spec], tmp_path / "runs")["copies_training"]
    measured = entry(result)[1]
    assert measured.metrics["memorisation"] > 99
    assert any("memorised: 30 of 30" in stamp for stamp in measured.stamps)


def test_reconstructions_are_compared_with_the_images_that_were_given_back(tmp_path: Path) -> None:
    source = Path(defect("copies_training")).read_text()
    head = "\n\n@hookimpl\ndef reconstruct(model, images):\n    return "
    found = {}
    for name, body in (("same", "images"), ("dark", "images - (images + 1) / 4")):
        (tmp_path / f"{name}.py").write_text(f"{source}{head}{body}\n")
        spec = planned(str(tmp_path / f"{name}.py"), tmp_path)
        found[name] = carry_out([spec], tmp_path / "runs")[name]
        assert found[name].status == "done", found[name].reason
    key, measured = entry(found["same"])
    assert file_name(key, "-again") in found["same"].artifacts
    assert measured.metrics["reconstruction_fd"] == pytest.approx(0, abs=1e-6)
    assert entry(found["dark"])[1].metrics["reconstruction_fd"] > 1
    folder = tmp_path / "runs" / found["same"].run_id
    sheet = np.asarray(Image.open(folder / "sheets" / f"reconstructed.{key}.png"))
    height = (sheet.shape[0] - 2) // 2
    above, below = sheet[2:].reshape(2, height, *sheet.shape[1:])
    assert (above == below).all()  # images over themselves
    assert above.std() > 10

    (tmp_path / "flat.py").write_text(f"{source}{head}images[:, :1]\n")
    result = carry_out([planned(str(tmp_path / "flat.py"), tmp_path)], tmp_path / "runs")["flat"]
    assert result.status == "invalid"
    assert result.reason.startswith("reconstruct returned images (30, 1, 16, 16), expected (30, 3")


def test_pictures_that_fail_leave_the_run_and_its_samples(tmp_path: Path) -> None:
    source = Path(defect("copies_training")).read_text()
    faulty = "\n\n@hookimpl\ndef picture(model, engine, sampling):\n    raise KeyError('strip')\n"
    (tmp_path / "faulty.py").write_text(source + faulty)
    spec = planned(str(tmp_path / "faulty.py"), tmp_path)
    spec = replace(spec, row=spec.row | {"notes": ["the plan cut its warm-up"]})
    result = carry_out([spec], tmp_path / "runs")["faulty"]
    assert result.status == "done", result.reason
    assert entry(result)[1].metrics
    assert result.row.notes == [
        "the plan cut its warm-up",
        "the pictures are left out: KeyError: 'strip'",
    ]


def test_a_method_that_draws_nothing_has_no_entry(tmp_path: Path) -> None:
    (good,) = small_runs.hostile("good")
    result = carry_out([planned(good, tmp_path)], tmp_path / "runs")["good"]
    assert result.status == "done"
    assert [e.id for e in result.evaluations.values()] == ["knn"]
    outcome = json.loads((tmp_path / "runs" / result.run_id / "outcome.json").read_text())
    assert outcome["outcome"]["samples"] == {}


def test_the_working_board_shows_the_samples(tmp_path: Path) -> None:
    """Rendered from the run's own folder: its sheets are copied beside the page, and linked."""
    track = replace(load_track("digits"), id="small")
    options = Options(tmp_path / "runs", leaderboards_dir=tmp_path / "boards")
    carried = carry_out([planned(GAN, tmp_path)], options.runs_dir)["own_loop_gan"]
    headline = {"id": "generation", "version": 1, "hash": entry(carried)[0], "headline": "kid"}
    page = synthetic_results.track(id=carried.track, protocols=[headline])
    page_files.write_track(options.results / carried.track, page)
    shown = session.render(
        session.Session(track=replace(track, id=carried.track), specs=[], broken={}, page={}),
        options,
    )
    (name,) = re.findall(r"\]\((sheets/[^)]*-samples\.png)\)", shown.read_text())
    drawn = options.runs_dir / carried.run_id / "sheets"
    (source,) = drawn.glob("samples.*.png")
    assert (shown.parent / name).read_bytes() == source.read_bytes()


def test_pictures_follow_the_protocol_s_sampling(tmp_path: Path) -> None:
    card = manager.load(GAN).call("describe")
    overrides = SETTINGS | {"sampling": {"scale": 0.25}}
    entries = [{"name": "knn", "overrides": {}}, {"name": "generation", "overrides": overrides}]
    orders = {"spec": {"seed": 0}, "evaluations": entries}
    asked = []
    plugin = SimpleNamespace(has=lambda hook: True, call=lambda hook, **given: asked.append(given))
    child._picture(tmp_path, orders, plugin, card, None, None)
    assert card.sampling.scale == 1.0
    assert [given["sampling"].scale for given in asked] == [0.25]
