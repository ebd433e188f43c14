"""An exported backbone loads elsewhere and gives the features that were evaluated."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from synthetic_results import board, result, track

from bench import backbones, cli, export
from bench.errors import UserError
from bench.page_files import write_track
from bench.results import Result, parse, write

PLAIN = {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
SMALL = {"kernel": 3, "stride": 2, "max_pool": False}
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet": PLAIN | {"stem": None},
    "vit": {"name": "test_vit", "args": {"patch_size": 4}, "stem": None},
    "vit of any size": {
        "name": "test_vit",
        "args": {"patch_size": 4, "dynamic_img_size": True},
        "stem": None,
    },
    "efficientnet, timm's own stem": {"name": "test_efficientnet", "args": {}, "stem": SMALL},
}
REPLACED: dict[str, dict[str, Any]] = {
    "3x3 for 7x7": PLAIN | {"stem": SMALL},
    "3x3 before the pool": PLAIN | {"stem": SMALL | {"max_pool": True}},
    "7x7 without the pool": PLAIN | {"stem": SMALL | {"kernel": 7}},  # weights as timm's
    "3x3 for a deep stem": {"name": "resnet18d", "args": PLAIN["args"], "stem": SMALL},
    "another stride": {
        "name": "test_efficientnet",
        "args": {},
        "stem": SMALL | {"stride": 1},  # weights as timm's
    },
    "convnext": {"name": "test_convnext", "args": {}, "stem": SMALL},
}
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def finished(folder: Path, backbone: dict[str, Any], **changes: Any) -> tuple[Result, Any]:
    """Lay out what a run of this backbone leaves; return its result and the backbone itself."""
    torch.manual_seed(5)
    model = backbones.build(backbone, 32)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    plain = result("turn_net", 0)
    spec = plain.spec | {"backbone": backbone, "data": plain.spec["data"] | {"name": "shoes"}}
    run = folder / "runs" / plain.run_id
    run.mkdir(parents=True)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        run / "backbone.safetensors",
    )
    sha256 = hashlib.sha256((run / "backbone.safetensors").read_bytes()).hexdigest()
    document = plain.document() | {
        "spec": spec,
        "artifacts": {"backbone.safetensors": {"sha256": sha256, "bytes": 1}},
    }
    made = parse(Result.model_validate(document | changes).document())
    results = folder / "runs" / "results" / "clothes"
    (run / "run.json").write_text(json.dumps({"results": str(results), "spec": spec}))
    write(results / f"{made.run_id}.json", made)
    write_track(results, track(smoke=True, licence="CC BY 4.0"))
    return made, model.eval()


def exported(folder: Path, run: Result) -> Path:
    found = export.find(run.run_id, folder / "runs")
    return export.export(found, folder / "out" / "shared")


@torch.no_grad()
def features(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(IMAGES)


@pytest.mark.parametrize("name", BACKBONES)
def test_timm_loads_an_export_strictly_and_gives_the_same_features(
    tmp_path: Path, name: str
) -> None:
    run, model = finished(tmp_path, BACKBONES[name])
    out = exported(tmp_path, run)
    config = json.loads((out / "config.json").read_text())
    loaded = timm.create_model(
        config["architecture"],
        num_classes=config["num_classes"],
        **config["model_args"],
        checkpoint_path=out / "model.safetensors",
    )
    assert torch.equal(features(loaded), features(model))
    assert config["num_features"] == features(model).shape[1]
    assert config["bench"]["replaced_layers"] == {}
    sha256 = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert sha256 == run.artifacts["backbone.safetensors"].sha256
    assert sha256 == config["bench"]["weights_sha256"]


def test_timm_finds_the_model_in_the_folder_itself(tmp_path: Path) -> None:
    run, model = finished(tmp_path, BACKBONES["resnet"])
    out = exported(tmp_path, run)
    try:
        loaded = timm.create_model(f"local-dir:{out}", pretrained=True)
    except (RuntimeError, ValueError, AssertionError) as error:
        if "local-dir" in str(error):
            pytest.skip(f"timm {timm.__version__} knows no local-dir")
        raise
    assert torch.equal(features(loaded), features(model))
    assert loaded.pretrained_cfg["mean"] == loaded.pretrained_cfg["std"] == [0.5, 0.5, 0.5]
    assert tuple(loaded.pretrained_cfg["input_size"]) == (3, 32, 32)


def code_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("name", [*BACKBONES, *REPLACED])
def test_the_code_on_the_card_gives_the_same_features(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = finished(tmp_path, (BACKBONES | REPLACED)[name])
    out = exported(tmp_path, run)
    monkeypatch.chdir(out)
    ways = code_of((out / "README.md").read_text())
    assert len(ways) == (1 if name in BACKBONES else 2)
    assert ["from bench" in way for way in ways] == [False, True][: len(ways)]
    for way in ways:
        said: dict[str, Any] = {}
        exec(way, said)
        assert torch.equal(features(said["backbone"]), features(model))


@pytest.mark.parametrize("name", REPLACED)
def test_timm_is_not_offered_a_backbone_that_it_would_build_otherwise(
    tmp_path: Path, name: str
) -> None:
    run, _ = finished(tmp_path, REPLACED[name])
    out = exported(tmp_path, run)
    config = json.loads((out / "config.json").read_text())
    assert config["bench"]["replaced_layers"]
    assert config["bench"]["spec"]["backbone"]["stem"] == REPLACED[name]["stem"]
    assert "architecture" not in config  # by which timm would find a model


@pytest.mark.parametrize("name", ["7x7 without the pool", "another stride"])
def test_a_strict_load_alone_would_give_other_features(tmp_path: Path, name: str) -> None:
    """Names and shapes fit timm's own model here; only the features tell the two apart."""
    run, model = finished(tmp_path, REPLACED[name])
    backbone = REPLACED[name]
    plain = timm.create_model(
        backbone["name"],
        num_classes=0,
        **backbone["args"],
        checkpoint_path=exported(tmp_path, run) / "model.safetensors",
    )
    assert not torch.allclose(features(plain), features(model), atol=1e-3)


@pytest.mark.parametrize("stem_type", ["", "deep", "deep_tiered"])
@pytest.mark.parametrize("replace_stem_pool", [False, True])
def test_no_argument_of_timm_builds_the_tracks_stem(
    stem_type: str, replace_stem_pool: bool
) -> None:
    """Were this to fail, the backbone of the digits track could be given to timm as it is."""
    given = {"stem_type": stem_type, "replace_stem_pool": replace_stem_pool, "stem_width": 32}
    theirs = timm.create_model("resnet18", num_classes=0, **PLAIN["args"], **given)
    ours = backbones.build(PLAIN | {"stem": SMALL}, 32)
    with pytest.raises(RuntimeError, match=r"conv1|maxpool"):
        theirs.load_state_dict(ours.state_dict(), strict=True)


def test_the_card_says_what_it_is_and_what_it_does_not_show(tmp_path: Path) -> None:
    run, _ = finished(tmp_path, BACKBONES["resnet"])
    card = (exported(tmp_path, run) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    for key, entry in run.evaluations.items():
        assert f"{entry.id} {entry.version}" in card
        assert f"`{key}`" in card
    assert card.count("single run, ") == 4
    for said in (
        "**licence of the data:** CC BY 4.0",
        "216 steps of 128 images, fp32",
        "torch 2.14.1",
        f"sha256 `{run.artifacts['backbone.safetensors'].sha256}`",
        "say nothing about ImageNet",
        "not for ranking",
        "in [-1, 1]",
    ):
        assert said in card


def test_a_row_of_several_seeds_stands_beside_its_run(tmp_path: Path) -> None:
    run, _ = finished(tmp_path, BACKBONES["resnet"])
    others = [one for one in board() if one.method == "turn_net" and one.seed > 0]
    for one in others:
        document = one.document()
        document["spec"] |= {"backbone": run.spec["backbone"]}
        document["spec"]["data"] |= {"name": "shoes"}
        made = parse(Result.model_validate(document).document())
        write(tmp_path / "runs" / "results" / "clothes" / f"{one.run_id}.json", made)
    card = (exported(tmp_path, run) / "README.md").read_text()
    best = run.evaluations[track()["protocols"][0]["hash"]].metrics["best_top1"]
    (line,) = [line for line in card.splitlines() if line.startswith("| linear, best stage")]
    assert f"{best:.2f}" in line
    assert re.search(r"\d ± \d[.\d]*, n = 5", line)


@pytest.mark.parametrize("evil", ["a`](http://x)<script>", "x\n# y | z"])
def test_a_title_cannot_write_markup_into_the_card(tmp_path: Path, evil: str) -> None:
    row = {"title": evil, "notes": [evil]}
    run, _ = finished(tmp_path, BACKBONES["resnet"], row=row)
    card = (exported(tmp_path, run) / "README.md").read_text()
    assert "<script>" not in card
    assert "](http://x)" not in card
    assert "\n# y" not in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "invalid", "reason": "labels leaked"}, "is invalid: labels leaked; only sound"),
        ({"status": "timeout"}, "is timeout; only sound runs"),
        ({"artifacts": {}}, "trained no backbone"),
    ],
)
def test_runs_that_are_not_sound_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished(tmp_path, BACKBONES["resnet"], **changes)
    args = ("export", run.run_id, "--runs-dir", str(tmp_path / "runs"))
    assert cli.main([*args, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_weights_than_recorded_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    run, _ = finished(tmp_path, BACKBONES["resnet"])
    weights = tmp_path / "runs" / run.run_id / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="hashes to"):
        exported(tmp_path, run)
    weights.unlink()
    with pytest.raises(UserError, match=r"backbone\.safetensors is missing"):
        exported(tmp_path, run)
    assert not (tmp_path / "out").exists()


def test_a_run_is_found_by_id_by_folder_and_by_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished(tmp_path, BACKBONES["resnet"])
    runs = tmp_path / "runs"
    result_file = runs / "results" / "clothes" / f"{run.run_id}.json"
    for given in (run.run_id, str(runs / run.run_id), str(result_file)):
        assert export.find(given, runs).weights == runs / run.run_id / "backbone.safetensors"
    assert cli.main(["export", run.run_id, "--runs-dir", str(runs)]) == 0
    out = Path(capsys.readouterr().out.strip())
    assert out == runs / "exported" / run.run_id
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert cli.main(["export", run.run_id, "--runs-dir", str(runs)]) == 2
    assert "exists; choose another --out" in capsys.readouterr().err
    result_file.unlink()
    with pytest.raises(UserError, match="has no result yet"):
        export.find(run.run_id, runs)
