"""The papers' linear probe, against a plain loop and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from subjects import CLASSES, dataset, subject
from torch import Tensor, nn

from bench import augment, evaluations
from bench.evaluations import BackboneChanged, linear_probe_sgd
from bench.evaluations.training import show


class Brightness(nn.Module):
    """Features that say how near an image's mean is to each of six levels."""

    num_features = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(-0.75, 0.75, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return (-40 * (images.mean((1, 2, 3))[:, None] - self.levels).square()).exp()


class Counting(Brightness):
    """Brightness that counts its calls in a buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


def plain_images():
    """Return a data set of one-coloured images whose brightness is the class."""
    data = dataset()
    for split, images in data.images.items():
        levels = np.linspace(32, 223, CLASSES).round().astype(np.uint8)
        images[:] = levels[data.labels[split]][:, None, None, None]
    return data


def probe(of, **overrides: object) -> evaluations.Evaluation:
    return evaluations.protocol("linear_probe_sgd", overrides).evaluate(of, 0)


def test_features_that_tell_the_class_reach_every_image() -> None:
    judged = subject(data=plain_images(), load=Brightness)
    found = probe(judged, epochs=4, milestones=[2, 3], batch_size=32)
    assert found.metrics == {"top1": 100.0, "top5": 100.0}
    assert found.validation == {"top1": 100.0, "top5": 100.0}
    assert found.chosen == {}


def test_a_backbone_that_changes_is_refused() -> None:
    judged = subject(load=Counting)
    with pytest.raises(BackboneChanged, match="calls of the frozen backbone changed"):
        probe(judged, epochs=1, milestones=[])


def test_only_the_layer_learns_and_it_equals_a_plain_loop_of_sgd() -> None:
    judged = subject()
    images, labels = judged.images("train"), judged.features.train_labels
    settings = linear_probe_sgd.MOCO | {
        "epochs": 3,
        "milestones": [1, 2],
        "batch_size": 100,
        "rate": 20.0,
        "weight_decay": 0.01,
        "nesterov": True,
    }
    backbone = judged.backbone()
    fast = linear_probe_sgd.fit(backbone, images, labels, CLASSES, "rgb", settings, 0)

    seed = linear_probe_sgd.stream(0, "evaluate", "linear_probe_sgd", "order")
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(linear_probe_sgd.stream(0, "evaluate", "linear_probe_sgd", "init"))
    nn.Linear(backbone.num_features, CLASSES)  # draws, then is drawn again with a deviation of 0.01
    weight = (0.01 * torch.randn(CLASSES, backbone.num_features)).double()
    bias, turns = torch.zeros(CLASSES).double(), [0.0, 0.0]
    view = augment.compose(augment.random_resized_crop(), augment.horizontal_flip())
    frozen = judged.backbone().eval()
    for rate in (20.0, 2.0, 0.2):
        order = torch.randperm(240, generator=generator)
        for rows in (order[:100], order[100:200], order[200:]):
            with torch.no_grad():
                shown = show(images[rows.numpy()], "rgb", torch.device("cpu"), view, generator)
                x = frozen(shown).double()
            target = torch.eye(CLASSES).double()[labels[rows]]
            error = ((x @ weight.T + bias).softmax(1) - target) / len(rows)
            for i, gradient in enumerate((error.T @ x, error.sum(0))):
                value = (weight, bias)[i]
                gradient = gradient + 0.01 * value
                turns[i] = 0.9 * turns[i] + gradient
                value -= rate * (gradient + 0.9 * turns[i])
    assert torch.allclose(fast.weight.double(), weight, atol=1e-4)
    assert torch.allclose(fast.bias.double(), bias, atol=1e-4)
    assert float(weight.abs().max()) > 0.1


def test_the_papers_rates() -> None:
    moco, simclr = linear_probe_sgd.MOCO, linear_probe_sgd.SIMCLR
    assert moco == linear_probe_sgd.SETTINGS
    rates = [linear_probe_sgd.rate_at(epoch, 0.5, moco) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([30, 30, 3, 3, 0.3, 0.3])
    assert simclr["rate"] == 0.1 * simclr["batch_size"] / 256
    assert linear_probe_sgd.rate_at(0, 0.0, simclr) == 1.6
    half = linear_probe_sgd.rate_at(44, 0.25, simclr)
    assert half == pytest.approx(0.8 * (1 + math.cos(math.pi * 44.25 / 90)))
    assert linear_probe_sgd.rate_at(89, 0.999, simclr) < 1e-6
    with_them = evaluations.protocol("linear_probe_sgd", simclr)
    assert with_them.hash != evaluations.protocol("linear_probe_sgd").hash


def test_validation_images_are_trained_on_where_a_track_says_so() -> None:
    data = plain_images()
    data.labels["train"][:] = 0  # only validation knows the classes
    judged = subject(data=data, load=Brightness)
    apart = probe(judged, epochs=30, milestones=[], batch_size=300)
    joined = probe(judged, epochs=30, milestones=[], batch_size=300, train_on="train+validation")
    assert apart.metrics["top1"] == pytest.approx(100 / CLASSES)
    assert joined.metrics["top1"] > 2 * apart.metrics["top1"] or joined.metrics["top5"] == 100
    assert joined.validation == {}
    assert joined.stamps == ("validation images are trained on",)


def test_a_layer_that_diverges_gives_no_number() -> None:
    found = probe(subject(), rate=1e300, epochs=2, milestones=[])
    assert (found.metrics, found.validation, found.stamps) == ({}, {}, ("diverged",))
