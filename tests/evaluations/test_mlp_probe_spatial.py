"""RotNet's classifier, against its source's numbers and a plain version in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import CLASSES, RESNET, SIZE, VIT, dataset, loader, subject
from torch import Tensor, nn

from bench import backbones, evaluations
from bench.evaluations import mlp_probe_spatial as mlp
from bench.evaluations.training import show


class Mirror(nn.Module):
    """A backbone whose only stage is the image itself."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def forward_intermediates(self, images: Tensor, intermediates_only: bool = False):
        return [images] if intermediates_only else (images, [images])


def spots():
    """Return a data set where the class is the row of the one bright spot, its column random."""
    data, generator = dataset(), np.random.default_rng(0)
    for split, images in data.images.items():
        images[:] = 0
        columns = generator.integers(0, SIZE, len(images))
        images[np.arange(len(images)), 0, 2 * data.labels[split], columns] = 255
    return data


def test_it_sees_where_things_are_and_a_pooled_one_does_not() -> None:
    judged = subject(data=spots(), load=Mirror)
    whole = evaluations.protocol("mlp_probe_spatial", {"batch_size": 32}).evaluate(judged, 0)
    pooled = evaluations.protocol("mlp_probe_spatial", {"pooled_to": 1}).evaluate(judged, 0)
    assert whole.metrics["best_top1"] > 90
    assert pooled.metrics["best_top1"] == pytest.approx(100 / CLASSES, abs=0.1)


def test_architecture_and_schedule_are_the_sources() -> None:
    torch.manual_seed(0)
    probe = mlp.classifier(192 * 8 * 8, 200, 10)
    assert [tuple(p.shape) for p in probe.parameters()] == [
        (200, 12288), (200,), (200,), (200, 200), (200,), (200,), (10, 200), (10,),
    ]  # fmt: skip
    assert float(probe[0].weight.detach().std()) == pytest.approx(0.1, rel=0.01)
    assert float(probe[3].weight.detach().std()) == pytest.approx(0.1, rel=0.02)
    assert float(probe[6].weight.detach().std()) == pytest.approx(0.2**0.5, rel=0.1)
    assert not probe[6].bias.any()
    settings = mlp.SETTINGS
    rates = [mlp.rate_at(epoch, settings["rates"], settings["until"]) for epoch in range(60)]
    assert rates == [0.1] * 20 + [0.02] * 20 + [0.004] * 5 + [0.0008] * 15
    assert (settings["epochs"], settings["batch_size"]) == (50, 128)
    assert (settings["momentum"], settings["weight_decay"]) == (0.9, 5e-4)
    assert settings["units_per_class"] * 10 == 200


def test_two_steps_equal_a_plain_version_in_float64() -> None:
    judged = subject()
    images, labels = judged.images("train")[:90], judged.features.train_labels[:90]
    settings = mlp.SETTINGS | {"epochs": 1, "batch_size": 45, "units_per_class": 5}
    backbone = judged.backbone().eval()
    fast = mlp.fit(backbone, "stage3", images, labels, CLASSES, "rgb", settings, 0)

    torch.manual_seed(mlp.stream(0, "evaluate", "mlp_probe_spatial", "init", "stage3"))
    with torch.no_grad():
        shown = show(images, "rgb", torch.device("cpu"))
        x = backbones.stage_maps(backbone, shown)["stage3"].flatten(1).double()
    probe = mlp.classifier(x.shape[1], 30, CLASSES)
    values = [p.detach().double().requires_grad_() for p in probe.parameters()]
    seed = mlp.stream(0, "evaluate", "mlp_probe_spatial", "order", "stage3")
    order = torch.randperm(90, generator=torch.Generator().manual_seed(seed))

    def hidden(inputs: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        raw = inputs @ weight.T
        centred = raw - raw.mean(0)
        return (centred / (centred.square().mean(0) + 1e-5).sqrt() * scale + shift).clamp_min(0)

    turns = None
    for rows in (order[:45], order[45:]):
        w1, g1, s1, w2, g2, s2, w3, b3 = values
        logits = hidden(hidden(x[rows], w1, g1, s1), w2, g2, s2) @ w3.T + b3
        loss = -logits.log_softmax(1)[torch.arange(45), labels[rows]].mean()
        found = torch.autograd.grad(loss, values)
        with torch.no_grad():
            found = [g + 5e-4 * v for g, v in zip(found, values, strict=True)]
            turns = (
                [0.9 * t + g for t, g in zip(turns, found, strict=True)] if turns else list(found)
            )
            steps = [0.1 * (g + 0.9 * t) for g, t in zip(found, turns, strict=True)]
            values = [(v - s).requires_grad_() for v, s in zip(values, steps, strict=True)]
    for ours, plain in zip(fast.parameters(), values, strict=True):
        assert torch.allclose(ours.double(), plain, atol=2e-4)
    assert not torch.allclose(probe[0].weight, fast[0].weight, atol=1e-3)


def test_maps_made_anew_for_each_batch_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = subject()
    settings = mlp.SETTINGS | {"epochs": 2, "batch_size": 50}

    def fitted() -> nn.Module:
        images, labels = judged.images("train"), judged.features.train_labels
        return mlp.fit(
            judged.backbone().eval(), "stage2", images, labels, CLASSES, "rgb", settings, 0
        )

    kept = fitted()
    calls, real = [], mlp.maps
    monkeypatch.setattr(mlp, "maps", lambda *args: calls.append(1) or real(*args))
    monkeypatch.setattr(mlp, "CACHE_BYTES", 0)
    anew = fitted()
    assert len(calls) == 1 + 2 * 5
    for one, two in zip(kept.parameters(), anew.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-3)


def test_every_stage_has_its_number_and_the_best_is_chosen_on_validation() -> None:
    settings = {"epochs": 5, "until": [2, 3, 4, 5]}
    for spec in (RESNET, VIT):
        found = evaluations.protocol("mlp_probe_spatial", settings).evaluate(subject(spec), 0)
        shown = torch.zeros(2, 3, SIZE, SIZE)
        stages = list(backbones.stage_maps(loader(spec)().eval(), shown))
        assert list(found.validation) == [*(f"{stage}_top1" for stage in stages), "best_top1"]
        best = found.chosen["best"]["stage"]
        assert found.validation[f"{best}_top1"] == max(found.validation.values())
        assert found.metrics["best_top1"] == found.metrics[f"{best}_top1"]


def test_maps_pool_to_the_stages_of_the_linear_probe() -> None:
    for spec in (RESNET, VIT):
        backbone, shown = loader(spec)().eval(), torch.randn(2, 3, SIZE, SIZE)
        pooled, maps = backbones.stages(backbone, shown), backbones.stage_maps(backbone, shown)
        assert list(pooled) == [*maps, "last"]
        for stage, values in maps.items():
            assert torch.allclose(values.mean((2, 3)), pooled[stage], atol=1e-5)


def test_a_last_batch_of_one_image_is_left_out() -> None:
    judged = subject(data=dataset(train=61))
    settings = {"epochs": 1, "until": [1, 2, 3, 4], "batch_size": 60}
    found = evaluations.protocol("mlp_probe_spatial", settings).evaluate(judged, 0)
    assert found.metrics["best_top1"] > 0
