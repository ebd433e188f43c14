"""Injected defects are caught: leaks, batch-dependent features, other weights, collapse."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from bench import backbones, health, integrity
from bench.data import Split
from bench.features import Features, extract, raw_pixels

SPEC = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (120, 1, 32, 32), dtype=np.uint8)
LABELS = np.arange(120) % 4
DATASET = SimpleNamespace(
    extras={},
    extra_names={},
    images={"train": IMAGES[:80], "test": IMAGES[80:]},
    labels={"train": LABELS[:80], "test": LABELS[80:]},
    class_names=("a", "b", "c", "d"),
)
SPLIT = Split(train=np.arange(60), val=np.arange(60, 80), own=False, sha256="")


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return backbones.build(SPEC, 32)


def written(path: Path, state: dict[str, Tensor]) -> str:
    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_sound_backbone_passes(tmp_path: Path) -> None:
    sha256 = written(tmp_path / "b", backbone().state_dict())
    loaded = integrity.load_backbone(SPEC, 32, tmp_path / "b", sha256)
    seen = extract(loaded, DATASET, SPLIT)
    assert integrity.check(loaded, sha256, DATASET, SPLIT, seen, seed=0) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("bn1.weight"), "missing bn1.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda s: s.update({"bn1.bias": torch.zeros(2)}),
            r"bias is float32 \(2,\), expected float32 \(64,\)",
        ),
        (lambda s: s.update({"bn1.bias": s["bn1.bias"].double()}), "bn1.bias is float64"),
        (lambda s: s["conv1.weight"].fill_(float("nan")), "non-finite"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    state = {name: tensor.clone() for name, tensor in backbone().state_dict().items()}
    spoil(state)
    sha256 = written(tmp_path / "b", state)
    with pytest.raises(integrity.IntegrityError, match=message):
        integrity.load_backbone(SPEC, 32, tmp_path / "b", sha256)


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    sha256 = written(tmp_path / "b", backbone().state_dict())
    content = bytearray((tmp_path / "b").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(integrity.IntegrityError, match="hashes to"):
        integrity.load_backbone(SPEC, 32, tmp_path / "b", sha256)


class Ordered(nn.Module):
    """Adds each image's place in the batch to its features."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images) + torch.arange(len(images))[:, None]


def test_features_that_depend_on_the_batch_are_found() -> None:
    faults = integrity.batch_dependence(Ordered(), IMAGES[:64], "rgb")
    assert [fault.split(":")[0] for fault in faults] == [
        "last features depend on the batch's size",
        "last features depend on the batch's order",
    ]


def test_changed_weights_are_found() -> None:
    net = backbone()
    sha256 = integrity.weights_sha256(net)
    seen = extract(net, DATASET, SPLIT)
    with torch.no_grad():
        net.bn1.weight.add_(1e-3)
    faults = integrity.check(net, sha256, DATASET, SPLIT, seen, seed=0)
    assert faults == ["the backbone's weights changed during evaluation"]


def test_every_stage_is_checked_for_the_batch() -> None:
    net = backbone()
    net.layer1.register_forward_hook(
        lambda _, __, maps: maps + 1e-2 * torch.randn(len(maps), 1, 1, 1)
    )
    stages = {fault.split()[0] for fault in integrity.batch_dependence(net, IMAGES[:64], "rgb")}
    assert "stage2" in stages
    assert "stage1" not in stages


def test_features_that_collapsed_to_rounding_are_not_called_dependent() -> None:
    net = backbone()
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.zero_()
                norm.bias.fill_(0.1)
    assert integrity.batch_dependence(net, IMAGES[:64], "rgb") == []


def separable(seed: int) -> Features:
    """Four tight clusters, a class each, as supervised training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 16, generator=generator)
    parts = [
        centres[labels] + 0.1 * torch.randn(len(labels), 16, generator=generator)
        for labels in (torch.arange(200) % 4, torch.arange(400) % 4)
    ]
    return Features(
        train={"last": parts[0]},
        validation={"last": parts[1]},
        test=None,
        train_labels=torch.arange(200) % 4,
        validation_labels=torch.arange(400) % 4,
        test_labels=None,
        class_names=("a", "b", "c", "d"),
    )


def test_shuffled_labels_find_nothing_in_sound_features() -> None:
    assert integrity.shuffled_probe(raw_pixels(DATASET, SPLIT), 0) == ""
    assert [integrity.shuffled_probe(separable(seed), seed) for seed in range(20)] == [""] * 20


def test_a_probe_that_saw_the_labels_it_is_scored_by_is_found() -> None:
    def leaking(features: Features) -> float:
        both = torch.cat([features.train["last"], features.validation["last"]])
        labels = torch.cat([features.train_labels, features.validation_labels])
        distances = torch.cdist(features.validation["last"], both)
        return float((labels[distances.argmin(1)] == features.validation_labels).float().mean())

    fault = integrity.shuffled_probe(separable(0), 0, leaking)
    assert fault.startswith("probes of shuffled labels reach 100.0 % on validation where 25.0 %")


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"no weights")
    sha256 = hashlib.sha256(b"no weights").hexdigest()
    with pytest.raises(integrity.IntegrityError, match="b is no safetensors file"):
        integrity.load_backbone(SPEC, 32, tmp_path / "b", sha256)
    with pytest.raises(integrity.IntegrityError, match="absent is missing"):
        integrity.load_backbone(SPEC, 32, tmp_path / "absent", sha256)


def test_raw_pixels_are_area_averages() -> None:
    seen = raw_pixels(DATASET, SPLIT)
    image = IMAGES[0, 0].astype(float) / 255
    slow = image.reshape(16, 2, 16, 2).mean((1, 3)).reshape(-1)
    assert np.allclose(seen.train["last"][0], slow, atol=1e-6)
    assert len(seen.test["last"]) == 40
    assert raw_pixels(DATASET, SPLIT, test=False).test is None


def test_extraction_leaves_the_weights_and_uses_eval_mode() -> None:
    net = backbone().train()
    before = integrity.weights_sha256(net)
    first = extract(net, DATASET, SPLIT, batch_size=60).train["last"]
    second = extract(net, DATASET, SPLIT, batch_size=13).train["last"]
    assert torch.allclose(first, second, atol=1e-5)
    assert integrity.weights_sha256(net) == before


def test_diagnostics_of_known_features() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(2000, 16, generator=generator)
    assert health.feature_std(spread) == pytest.approx(0.25, abs=0.01)
    assert not health.is_collapsed(spread)
    assert health.is_collapsed(torch.ones(100, 16) + 1e-4 * torch.randn(100, 16))
    assert health.effective_rank(spread) == pytest.approx(16, abs=0.2)
    line = torch.randn(100, 1, generator=generator) @ torch.randn(1, 16, generator=generator)
    assert health.effective_rank(line) == pytest.approx(1, abs=0.01)
    assert health.alignment(spread, spread) == 0
    assert health.alignment(spread, -spread) == pytest.approx(4)
    few = torch.randn(20, 4, generator=generator).double()
    unit = few / few.norm(dim=1, keepdim=True)
    pairs = [
        float((-2 * (unit[i] - unit[j]).square().sum()).exp()) for i in range(20) for j in range(i)
    ]
    assert health.uniformity(few) == pytest.approx(float(np.log(np.mean(pairs))))


def test_health_changes_neither_mode_nor_random_state() -> None:
    net = backbone().train()
    before, state = integrity.weights_sha256(net), torch.get_rng_state()
    values = health.health(net, IMAGES, 0)
    assert values["finite"] == 1.0
    assert net.training
    assert integrity.weights_sha256(net) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stage_that_is_the_output_is_measured_once() -> None:
    net = backbone()
    both = backbones.stages(net.eval(), torch.zeros(2, 3, 32, 32))
    assert list(both)[-2:] == ["stage5", "last"]  # the pooled final map and the output
    assert list(extract(net, DATASET, SPLIT).train) == [
        "stage1",
        "stage2",
        "stage3",
        "stage4",
        "last",
    ]
