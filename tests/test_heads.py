"""Heads: kept beside the backbone, rebuilt without the plugin, refused when they are no heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_runs
import torch
from torch import nn

from bench import child, heads, results, runner, worker
from bench.identity import file_sha256
from bench.integrity import IntegrityError, load_backbone
from bench.layers import projection_mlp, split_batch_norm
from bench.probe import fork_server


class Model(nn.Module):
    def __init__(self, head: object = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 6, 3)
        if head is not None:
            self.head = head


def trained(head: nn.Module) -> nn.Module:
    """Return the head with running statistics and shifts that are not the initial ones."""
    torch.manual_seed(1)
    for _ in range(3):
        head(3 * torch.randn(32, 6) + 1)
    return head.eval()


HEADS = {
    "linear": lambda: projection_mlp(6, 0, 4, depth=1, out_norm=True),
    "plain linear": lambda: projection_mlp(6, 0, 4, depth=1),
    "mlp": lambda: projection_mlp(6, 6, 4, norm=True, out_norm=True),
    "mlp without norms": lambda: projection_mlp(6, 9, 4),
    "three layers": lambda: projection_mlp(6, 7, 4, depth=3, norm=True, out_norm=True),
    "norms by groups": lambda: split_batch_norm(projection_mlp(6, 6, 4, norm=True), 2),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_comes_back_as_it_was(name, tmp_path):
    head = trained(HEADS[name]())
    artifacts = child._save(tmp_path, Model(head))
    path = tmp_path / "head.safetensors"
    assert artifacts["head.safetensors"] == {
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
    }
    rebuilt = heads.load_head(path, file_sha256(path))
    images = torch.randn(8, 6)
    assert torch.equal(rebuilt(images), head(images))


def test_a_head_does_not_change_the_backbones_bytes(tmp_path):
    for name in ("without", "with"):
        (tmp_path / name).mkdir()
    without = child._save(tmp_path / "without", Model())
    beside = child._save(tmp_path / "with", Model(trained(HEADS["mlp"]())))
    assert set(without) == {"backbone.safetensors"}
    assert beside["backbone.safetensors"] == without["backbone.safetensors"]


def test_what_is_no_head_is_not_kept(tmp_path, monkeypatch):
    for head in (nn.Identity(), "a word"):
        assert set(child._save(tmp_path, Model(head))) == {"backbone.safetensors"}
    monkeypatch.setattr(child, "HEAD_BYTES", 100)
    large = projection_mlp(6, 6, 4)
    assert set(child._save(tmp_path, Model(large))) == {"backbone.safetensors"}


def test_tied_layers_do_not_fail_the_run(tmp_path):
    layer = nn.Linear(6, 6)
    assert "head.safetensors" in child._save(tmp_path, Model(nn.Sequential(layer, layer)))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "head.safetensors"
    with pytest.raises(IntegrityError, match=r"head.safetensors is missing"):
        heads.load_head(path, "0" * 64)
    child._save(tmp_path, Model(projection_mlp(6, 6, 4)))
    with pytest.raises(IntegrityError, match="recorded is 0000000000"):
        heads.load_head(path, "0" * 64)
    path.write_bytes(b"not tensors")
    with pytest.raises(IntegrityError, match="is no safetensors file"):
        heads.load_head(path, file_sha256(path))
    for other in (nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))):
        child._save(tmp_path, Model(other))
        with pytest.raises(IntegrityError, match="no projection head of ours"):
            heads.load_head(path, file_sha256(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, results.Result]:
    """A contrastive run of some steps: its folder and its result."""
    folder = tmp_path_factory.mktemp("heads")
    (spec,) = small_runs.specs(["simclr"], folder, steps=4)
    options = runner.Options(folder / "runs", leaderboards_dir=folder)
    place = runner.lay_out(spec, options)
    process = fork_server().Process(target=worker.entry, args=(str(place),))
    process.start()
    process.join()
    return place, results.read(runner.result_path(spec, options))


def test_a_run_leaves_a_head_that_fits_its_backbone(run):
    place, result = run
    assert result.status == "done"
    found = {name: artifact.sha256 for name, artifact in result.artifacts.items()}
    head = heads.load_head(place / "head.safetensors", found["head.safetensors"])
    backbone = load_backbone(
        result.spec["backbone"], 16, place / "backbone.safetensors", found["backbone.safetensors"]
    )
    assert head(backbone.eval()(torch.zeros(2, 3, 16, 16))).shape == (2, 128)


def test_a_head_that_was_changed_is_found_before_it_is_judged(run):
    place, result = run
    outcome = {"artifacts": {n: a.model_dump() for n, a in result.artifacts.items()}}
    watch = worker.Watch("done", outcome=outcome)
    assert worker._verified(place, watch).status == "done"
    path = place / "head.safetensors"
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    changed = worker._verified(place, watch)
    path.write_bytes(kept)
    assert (changed.status, changed.reason) == (
        "failed",
        "head.safetensors was changed after the run wrote it",
    )
