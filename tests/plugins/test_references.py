"""The floor and the reference: rescaled initialisation has unit variance, labels give a loss."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from bench_plugins import random_init, supervised
from torch import nn


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
    layers.num_features = 6
    return layers


def test_rescaled_layers_have_unit_variance_and_zero_mean_on_their_images() -> None:
    net = network()
    images = torch.randn(64, 3, 12, 12) * 5 + 2
    with torch.no_grad():
        random_init.rescale(net, images)
        first = net[0](images)
        second = net[2](net[1](first))
    for output in (first, second):
        variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
        assert torch.allclose(variance, torch.ones_like(variance), atol=1e-3)
        assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-3)


def test_random_initialisation_spends_nothing_unless_it_rescales() -> None:
    drawn = []

    def batches() -> object:
        drawn.append(1)
        yield SimpleNamespace(views=(torch.randn(4, 3, 12, 12),), labels=None)

    engine = SimpleNamespace(prepare=lambda module: module, batches=batches)
    before = network()
    kept = random_init.pretrain(network(), random_init.Config(), engine).backbone
    assert not drawn
    assert torch.equal(kept[0].weight, before[0].weight)
    changed = random_init.pretrain(network(), random_init.Config(rescaled=True), engine).backbone
    assert drawn == [1]
    assert not torch.equal(changed[0].weight, before[0].weight)


def test_supervised_loss_is_the_cross_entropy() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    net.num_features = 5
    model = supervised.Classifier(net, 3)
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 2, 1, 1])
    logits = model.head(net(images))
    slow = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        slow += math.log(sum(math.exp(value) for value in row)) - row[label]
    assert abs(float(model(images, labels).detach()) - slow / 4) < 1e-5
