"""Noisy inputs: the level is chosen on validation, the noise is fixed, draws are averaged."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from subjects import SIZE, dataset, loader, subject
from torch import Tensor, nn

from bench import backbones, features, integrity, judge, noisy
from bench.data import Split
from bench.errors import UserError
from bench.evaluations import protocol


class Listener(nn.Module):
    """Features say where an image is bright, but only at about the noise of step 100."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        grain = (images[..., 1:] - images[..., :-1]).std((1, 2, 3)) / math.sqrt(2)
        heard = ((grain > 0.25) & (grain < 0.45)).float()[:, None]
        halves = [
            images[..., :8, :8],
            images[..., 8:, :8],
            images[..., :8, 8:],
            images[..., 8:, 8:],
        ]
        return torch.stack([half.mean((1, 2, 3)) for half in halves], 1) * heard


def corners(train: int = 60, validation: int = 40):
    """Return flat images with one bright corner, its number the label; the test is no images."""
    data = dataset(train, validation, 6)
    for part in ("train", "val"):
        labels = np.arange(len(data.labels[part])) % 4
        images = np.full((len(labels), 1, SIZE, SIZE), 100, np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[0, 8 * column : 8 * column + 8, 8 * row : 8 * row + 8] = 160
        data.images[part], data.labels[part] = images, labels
    data.images["test"] = data.labels["test"] = None
    return data, Split(np.arange(train), np.arange(validation), True, "")


def test_noise_is_that_of_the_step_and_the_same_for_every_image() -> None:
    images = torch.full((3, 1, 40, 40), 153, dtype=torch.uint8)
    images[1] = 0
    plain = backbones.to_input(images)
    for step, kept in ((0, 1 - 1e-4), (999, 4.036e-5)):
        shown = backbones.to_input(images, f"noisy({step})", 2)
        noise = shown - math.sqrt(kept) * plain
        assert torch.allclose(noise[0], noise[1], atol=1e-6)
        assert float(noise[0].std()) == pytest.approx(math.sqrt(1 - kept), rel=0.06)
        again = backbones.to_input(images[1:2], f"noisy({step})", 2)
        assert torch.allclose(again[0], shown[1])
        other = backbones.to_input(images, f"noisy({step})", 3)
        assert not torch.allclose(other, shown)
        assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6)  # of a single plane
        colour = backbones.to_input(images.expand(-1, 3, -1, -1), f"noisy({step})", 2)
        assert not torch.allclose(colour[:, 0], colour[:, 1], atol=1e-3)


def test_features_are_the_mean_over_the_fixed_draws() -> None:
    backbone = loader({"name": "test_resnet", "args": {}, "stem": None})().eval()
    images = dataset().images["train"][:20]
    found = features.embed(backbone, images, kind="noisy(100)", batch_size=7)["last"]
    with torch.no_grad():
        each = [
            backbone(backbones.to_input(torch.from_numpy(images), "noisy(100)", draw))
            for draw in range(4)
        ]
    assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-5)
    assert not torch.allclose(each[0], each[1], atol=1e-3)


def test_one_draw_leaves_plain_features_as_they_were() -> None:
    backbone = loader({"name": "test_resnet", "args": {}, "stem": None})().eval()
    images = dataset().images["train"][:20]
    found = features.embed(backbone, images)["last"]
    shown = backbones.to_input(torch.from_numpy(images))
    with torch.no_grad():
        expected = backbone(shown.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found, expected)


def test_the_step_is_the_one_that_validation_likes_best() -> None:
    data, split = corners()
    assert noisy.resolve("noisy", Listener(), data, split) == "noisy(100)"


def test_equal_steps_give_the_least_noise_and_no_validation_the_usual_one() -> None:
    data, split = corners()
    data.labels["val"] = np.zeros_like(data.labels["val"])
    data.labels["train"] = np.zeros_like(data.labels["train"])
    assert noisy.resolve("noisy", Listener(), data, split) == "noisy(0)"
    without = dataclasses.replace(split, val=np.arange(0))
    assert noisy.resolve("noisy", Listener(), data, without) == "noisy(50)"


def test_other_inputs_are_left_alone() -> None:
    assert noisy.resolve("rgb", nn.Identity(), None, None) == "rgb"
    assert backbones.noise_step("rgb") is None
    assert backbones.noise_step("noisy(25)") == 25
    with pytest.raises(UserError, match="no input kind 'noisy' in this release"):
        backbones.to_input(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "noisy")


def test_integrity_accepts_noisy_features() -> None:
    net = loader({"name": "test_resnet", "args": {}, "stem": None})()
    images = dataset().images["train"][:40]
    assert integrity.batch_dependence(net, images, "noisy(50)") == []


def test_protocols_of_scarce_labels_have_the_constant_step() -> None:
    plain = subject()
    backbone = plain.backbone()
    seen = features.extract(backbone, plain.dataset, plain.split, kind="noisy(400)")
    shown = dataclasses.replace(plain, features=seen, kind="noisy(400)")
    few = {"labels_per_class": [1, 5], "draws": [3, 3]}
    scarce = [protocol("few_labels", few), protocol("finetune", {"labels_per_class": 5})]
    protocols = [protocol("knn"), protocol("finetune"), *scarce]
    at = noisy.seen_by(protocols, shown, backbone)
    assert [at[p.hash].kind for p in protocols] == ["noisy(400)"] * 2 + ["noisy(50)"] * 2
    expected = features.extract(backbone, plain.dataset, plain.split, kind="noisy(50)")
    blind = at[scarce[0].hash]
    assert torch.equal(blind.features.train["last"], expected.train["last"])
    entries = judge.all_entries(scarce[:1], blind, 0)
    noisy.store_plain(entries, scarce[:1], shown, backbone, 0)
    assert entries[scarce[0].hash]["chosen"]["input"] == "noisy(50)"
    assert noisy.seen_by(protocols, plain, backbone)[scarce[0].hash] is plain


def test_entries_keep_the_step_and_the_plain_numbers() -> None:
    plain = subject()
    backbone = plain.backbone()
    seen = features.extract(backbone, plain.dataset, plain.split, kind="noisy(400)")
    shown = dataclasses.replace(plain, features=seen, kind="noisy(400)")
    protocols = [protocol("knn"), protocol("linear_raw")]
    entries = judge.all_entries(protocols, shown, 0)
    before = {key: dict(entry["metrics"]) for key, entry in entries.items()}
    noisy.store_plain(entries, protocols, shown, backbone, 0)
    expected = judge.all_entries(protocols, plain, 0)
    for key, entry in entries.items():
        assert entry["metrics"] == before[key]
        assert entry["chosen"]["input"] == "noisy(400)"
        assert entry["chosen"]["rgb"]["metrics"] == expected[key]["metrics"]
        assert entry["chosen"]["rgb"]["validation"] == expected[key]["validation"]
    assert any(before[key] != expected[key]["metrics"] for key in entries)
