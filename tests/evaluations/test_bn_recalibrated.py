"""BatchNorm's statistics, measured directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import RESNET, VIT, gratings, loader, subject
from torch import Tensor, nn

from bench import evaluations
from bench.evaluations import bn_recalibrated
from bench.evaluations.training import show


def norms(backbone: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_statistics_are_the_mean_and_variance_of_what_each_layer_is_given() -> None:
    images, _ = gratings(1000, 4)
    backbone = loader(RESNET)()
    before = {name: layer.running_mean.clone() for name, layer in norms(backbone).items()}
    assert bn_recalibrated.recalibrate(backbone, images, "rgb") == len(before) > 5
    seen: dict[str, Tensor] = {}
    for name, layer in norms(backbone).items():
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    with torch.no_grad():
        backbone.eval()(show(images, "rgb", torch.device("cpu")))
    for name, layer in norms(backbone).items():
        values = seen[name].double().transpose(0, 1).flatten(1)  # (C, N h w)
        std = values.var(1).sqrt()
        # Below the first layer, those who normalise by N and by N - 1 differ: 1 in 2,000 at 1,000.
        share = 1e-4 if name == "bn1" else 2e-3
        assert ((layer.running_mean - values.mean(1)).abs() <= share * std + 1e-7).all(), name
        assert torch.allclose(layer.running_var.double(), values.var(1), rtol=share), name
        assert not torch.allclose(layer.running_mean, before[name], atol=1e-4), name
        assert (layer.momentum, layer.training) == (0.1, False)


def spoilt() -> nn.Module:
    """Return the untrained net with the statistics of other images."""
    backbone = loader(RESNET)()
    for layer in norms(backbone).values():
        layer.running_mean += 3
        layer.running_var *= 50
    return backbone


def test_it_depends_on_the_weights_and_not_on_the_old_statistics() -> None:
    protocol = evaluations.protocol("bn_recalibrated", {"images": 200})
    found, other = protocol.evaluate(subject(), 0), protocol.evaluate(subject(load=spoilt), 0)
    assert (found.metrics, found.validation) == (other.metrics, other.validation)
    for column in ("best", "last"):
        assert np.array_equal(found.predictions[column], other.predictions[column])
    probe = evaluations.protocol("linear_probe")
    assert probe.evaluate(subject(), 0).metrics != probe.evaluate(subject(load=spoilt), 0).metrics


def test_a_net_without_batch_norm_keeps_its_features_and_says_so() -> None:
    judged = subject(VIT)
    found = evaluations.protocol("bn_recalibrated").evaluate(judged, 0)
    plain = evaluations.protocol("linear_probe").evaluate(judged, 0)
    assert (found.metrics, found.validation) == (plain.metrics, plain.validation)
    assert found.stamps[-1] == "no BatchNorm: the features are those of linear_probe"


def test_weights_stay_and_labels_are_not_needed() -> None:
    backbone, weights = loader(RESNET)(), dict(loader(RESNET)().named_parameters())
    bn_recalibrated.recalibrate(backbone, gratings(50, 4)[0], "rgb")
    for name, value in backbone.named_parameters():
        assert torch.equal(value, weights[name])


def test_fewer_images_than_asked_for_are_all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, real = [], bn_recalibrated.recalibrate
    monkeypatch.setattr(
        bn_recalibrated,
        "recalibrate",
        lambda backbone, images, kind: counts.append(len(images)) or real(backbone, images, kind),
    )
    evaluations.protocol("bn_recalibrated").evaluate(subject(), 0)
    evaluations.protocol("bn_recalibrated", {"images": 100}).evaluate(subject(), 0)
    assert counts == [240, 100]
