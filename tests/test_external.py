"""Checkpoints from elsewhere are loaded strictly, and what was done to load them is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import backbones, ledger, packing
from bench.errors import UserError
from bench.external import evaluate_checkpoint, evaluate_run, load_external

SPEC = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}


def weights(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return backbones.build(SPEC, 32).state_dict()


def write_data(folder: Path) -> str:
    """Write 60 noise images of four classes to set.npz; return the data set's name."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 4
    file = folder / "set.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return f"npz:{file}"


def fresh() -> torch.nn.Module:
    torch.manual_seed(0)
    return backbones.build(SPEC, 32)


def test_prefix_is_stripped_and_head_left_out_aloud(tmp_path: Path) -> None:
    state = {f"module.encoder_q.{k}": v for k, v in weights().items()}
    state |= {"module.encoder_q.fc.weight": torch.zeros(10, 8), "module.queue": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "moco.pt")
    backbone = fresh()
    notes = load_external(backbone, tmp_path / "moco.pt")
    assert notes == [
        "prefix 'module.encoder_q.' stripped; keys without it, left out: module.queue",
        "head left out: fc.weight",
    ]
    assert all(torch.equal(v, weights()[k]) for k, v in backbone.state_dict().items())


def test_a_second_encoder_in_the_file_is_said(tmp_path: Path) -> None:
    state = {f"{p}{k}": v for p in ("encoder_q.", "encoder_k.") for k, v in weights().items()}
    torch.save(state, tmp_path / "both.pt")
    notes = load_external(fresh(), tmp_path / "both.pt")
    assert notes[0] == "several prefixes fit: encoder_q., encoder_k.; the first is taken"


def test_every_key_that_does_not_match_is_named(tmp_path: Path) -> None:
    state = weights()
    state["surplus"] = torch.zeros(1)
    del state["bn1.weight"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"missing bn1.weight, unexpected surplus"):
        load_external(fresh(), tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no checkpoint at all")
    with pytest.raises(UserError, match="is no checkpoint that can be read safely") as caught:
        load_external(fresh(), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    with pytest.raises(UserError, match="no checkpoint at"):
        load_external(fresh(), tmp_path / f"absent-{name}")


def test_a_file_of_numbered_tensors_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(2), 1: torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds no state dict; expected names with tensors"):
        load_external(fresh(), tmp_path / "x.pt")


def test_no_test_read_is_noted_for_a_result_that_cannot_be_kept(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "theirs.safetensors")
    data = write_data(tmp_path)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be made"):
        evaluate_checkpoint(
            SPEC,
            tmp_path / "theirs.safetensors",
            data,
            image_size=32,
            names=["knn"],
            runs_dir=tmp_path / "file",
            ledger_file=tmp_path / "ledger.jsonl",
        )
    assert not (tmp_path / "ledger.jsonl").exists()


def test_external_result_names_the_data_without_its_folder(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "theirs.safetensors")
    data = write_data(tmp_path)
    result, _ = evaluate_checkpoint(
        SPEC,
        tmp_path / "theirs.safetensors",
        data,
        image_size=32,
        names=["knn"],
        runs_dir=tmp_path / "runs",
    )
    assert result.spec["data"]["name"] == "npz:set.npz"
    assert str(tmp_path) not in str(result.document())


def test_external_row_says_that_its_data_are_unknown(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "theirs.safetensors")
    result, notes = evaluate_checkpoint(
        SPEC,
        tmp_path / "theirs.safetensors",
        "digits",
        image_size=32,
        names=["knn"],
        runs_dir=tmp_path / "runs",
        ledger_file=tmp_path / "ledger.jsonl",
    )
    (entry,) = result.evaluations.values()
    (line,) = ledger.read(tmp_path / "ledger.jsonl")  # this look at the test split is counted too
    assert (line["run_id"], line["protocols"]) == (result.run_id, list(result.evaluations))
    assert notes == []
    assert result.row.origin == "external"
    assert result.row.notes == ["external: training data unknown"]
    hits = packing.unpack_bits(entry.correct["top1"], 500)
    assert entry.metrics["top1"] == pytest.approx(100 * hits.mean())


def test_what_a_checkpoint_was_judged_by_before_stays(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "theirs.safetensors")
    seen = []
    for name in ("knn", "linear_raw"):
        result, _ = evaluate_checkpoint(
            SPEC,
            tmp_path / "theirs.safetensors",
            "digits",
            image_size=32,
            names=[name],
            runs_dir=tmp_path / "runs",
            ledger_file=tmp_path / "ledger.jsonl",
        )
        seen.append({entry.id: entry.metrics for entry in result.evaluations.values()})
    assert set(seen[1]) == {"knn", "linear_raw"}
    assert seen[1]["knn"] == seen[0]["knn"]


@pytest.mark.parametrize(
    ("name", "said"), [("generation", "judges samples"), ("calibration", "judges the data alone")]
)
def test_what_needs_more_than_a_backbone_is_refused_first(
    tmp_path: Path, name: str, said: str
) -> None:
    """Before anything is read: no line in the ledger, no file."""
    ledger_file = tmp_path / "ledger.jsonl"
    with pytest.raises(UserError, match=said):
        evaluate_run("none", [name], tmp_path, ledger_file=ledger_file)
    with pytest.raises(UserError, match=said):
        evaluate_checkpoint(
            {}, tmp_path / "no.pt", "digits", image_size=32, names=[name], runs_dir=tmp_path
        )
    assert not list(tmp_path.iterdir())
