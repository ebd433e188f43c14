"""Activation checkpointing: the same training from less memory, or a refusal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from bench_plugins import moco_v2
from test_chunking import BATCH, OPTIONS, Peak, backbone, distance, jitter, trainer
from torch import Tensor, nn

from bench import recompute, results, runner
from bench.adversarial import normalise_spectra
from bench.backbones import build
from bench.buffers import kept
from bench.errors import Unsupported, UserError
from bench.identity import run_id

RANDOM = {
    "test_resnet": {"drop_path_rate": 0.3},
    "test_vit": {"proj_drop_rate": 0.3, "drop_path_rate": 0.3},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Squares(nn.Module):
    """A loss of the backbone's features, from any way to read them."""

    def __init__(self, backbone: nn.Module, read: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.backbone, self.read = backbone, read

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images) if self.read is None else self.read(self.backbone, images)
        return features.square().mean()


def train(folder: Path, model: nn.Module, *, again: bool, **more: Any) -> nn.Module:
    watched = None
    if again:
        watched = recompute.enable(model.backbone, "mine")
    engine = trainer(folder, recomputation=watched, **more)
    after_step = getattr(model, "after_step", None)
    views = (jitter, jitter) if hasattr(model, "embed") else (jitter,)
    return engine.fit(model, views=views, after_step=after_step, **OPTIONS)


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("chunk", [None, 8])
def test_gradients_and_buffers_are_those_of_plain_training(
    tmp_path: Path, name: str, chunk: int | None
) -> None:
    def model() -> nn.Module:
        if chunk is None:
            return Squares(backbone(name, **RANDOM[name]))
        config = moco_v2.Config(head_features=8)
        return moco_v2.MoCo(backbone(name, **RANDOM[name]), config, 2 * BATCH, momentum=0.9)

    plain = train(tmp_path / "a", model(), again=False, steps=2, chunk=chunk)
    found = train(tmp_path / "b", model(), again=True, steps=2, chunk=chunk)
    assert gradients(plain).norm() > 0
    assert distance(gradients(found), gradients(plain)) < 1e-6
    moved = dict(found.named_buffers())
    for key, buffer in plain.named_buffers():
        assert torch.allclose(moved[key], buffer, rtol=1e-6, atol=1e-7), key


def test_without_care_running_statistics_would_move_twice() -> None:
    net = backbone()
    recompute.enable(net, "mine")
    images = torch.randn(4, 3, 32, 32)
    counters = [b for name, b in net.named_buffers() if name.endswith("num_batches_tracked")]
    net(images).square().mean().backward()
    assert {int(counter) for counter in counters} == {1, 2}  # the stem is not recomputed
    loss = net(images).square().mean()
    before = [int(counter) for counter in counters]
    with kept([net]):
        loss.backward()
    assert [int(counter) for counter in counters] == before


def test_memory_falls() -> None:
    def peak(again: bool) -> int:
        net = backbone("test_vit", depth=8)
        if again:
            recompute.enable(net, "mine")
        images = torch.randn(64, 3, 32, 32)
        with Peak() as memory:
            net(images).square().mean().backward()
        return memory.most

    assert peak(True) < 0.5 * peak(False)


def test_what_cannot_recompute_is_refused_in_one_line(tmp_path: Path) -> None:
    for net in (nn.Linear(3, 3), build({"name": "vgg11", "args": {}, "stem": None}, 32)):
        with pytest.raises(UserError, match="timm's mine cannot compute its activations again"):
            recompute.enable(net, "mine")
    by_hand = Squares(backbone(), lambda net, images: net.layer1(net.maxpool(net.conv1(images))))
    with pytest.raises(Unsupported, match="reads the backbone's stages past timm's"):
        train(tmp_path / "a", by_hand, again=True)
    normed = Squares(normalise_spectra(backbone()))
    with pytest.raises(Unsupported, match="spectral norms would move a second time"):
        train(tmp_path / "b", normed, again=True)


def test_a_run_saves_memory_as_its_spec_says(tmp_path: Path) -> None:
    plain, turns = small_runs.specs(["simclr", "rotnet"], tmp_path, steps=2)

    def asked(run: Any, **ways: Any) -> Any:
        spec = run.spec | ways
        return dataclasses.replace(run, spec=spec, run_id=run_id(spec))

    runs = [
        plain,
        asked(plain, checkpointing=True),
        asked(plain, chunk=8),
        asked(turns, chunk=8),
    ]
    found: list[results.Result] = []
    runner.carry_out(
        runs,
        runner.Options(tmp_path / "runs", jobs=1, leaderboards_dir=tmp_path),
        finished=lambda spec, result, skipped: found.append(result),
        watching=lambda active, waiting: None,
    )
    by_run = {result.run_id: result for result in found}
    usual, again, chunks, refused = (by_run[run.run_id] for run in runs)
    weights = [r.artifacts["backbone.safetensors"].sha256 for r in (usual, again, chunks)]
    assert weights[0] == weights[1] != weights[2]  # BatchNorm of 8 images is another
    assert (usual.cost.passes_with_grad, usual.cost.passes_without_grad) == (2, 0)
    assert chunks.cost.passes_with_grad == 2
    assert chunks.cost.passes_without_grad == pytest.approx(2 * 2 / 3, abs=1e-4)  # of 3 chunks, 2
    assert refused.status == "unsupported"
    assert refused.reason == "chunks need embed and loss; RotNet has not both"
