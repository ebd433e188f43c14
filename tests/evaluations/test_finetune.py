"""Finetuning, against plain loops and known answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from subjects import RESNET, SIZE, VIT, loader, subject
from torch import Tensor, nn

from bench import backbones, evaluations
from bench.evaluations import few_labels, finetune
from bench.evaluations.training import orders, predict

SETTINGS = finetune.SETTINGS | {"batch_size": 32, "images_per_rate": 2000, "crop_padding": 2}


def protocol(**overrides: object) -> evaluations.Protocol:
    return evaluations.protocol("finetune", SETTINGS | overrides)


def test_it_learns_what_its_frozen_features_do_not_tell() -> None:
    judged = subject()
    frozen = evaluations.protocol("linear_probe").evaluate(judged, 0)
    found = protocol().evaluate(judged, 0)
    assert found.metrics["top1"] > frozen.metrics["last_top1"] + 25
    assert 100 >= found.metrics["top5"] >= found.metrics["top1"]


def trained(rate: float, **overrides: object) -> nn.Module:
    judged = subject()
    images = (judged.images("train"), judged.features.train_labels)
    settings = SETTINGS | {"images_per_rate": 640} | overrides
    return finetune.train_at(rate, judged.backbone(), images, 6, "rgb", settings, 0)


def test_weights_repeat_to_the_byte_whatever_was_drawn_before() -> None:
    first = trained(1e-3)
    torch.manual_seed(5)
    again, other = trained(1e-3), trained(2e-3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first[1].weight, other[1].weight)


def test_batch_norm_statistics_follow_the_weights() -> None:
    before, after = loader(RESNET)().bn1, trained(1e-3)[0].bn1
    assert not torch.allclose(before.running_mean, after.running_mean, atol=1e-3)
    assert after.num_batches_tracked == 640 // 32
    assert not after.training


def test_the_rate_that_is_best_on_validation_is_tested_as_it_is() -> None:
    judged = subject()
    found = protocol(rates=[3e-3, 1e-4]).evaluate(judged, 0)
    scores = {rate: found.validation[f"rate{rate:g}_top1"] for rate in (1e-4, 3e-3)}
    assert found.chosen == {"rate": max(scores, key=scores.get)}
    assert found.validation["top1"] == max(scores.values()) > min(scores.values())
    images = (judged.images("train"), judged.features.train_labels)
    model = finetune.train_at(
        found.chosen["rate"], judged.backbone(), images, 6, "rgb", SETTINGS, 0
    )
    logits = predict(model, judged.images("test"), "rgb")
    assert np.array_equal(logits.argmax(1).numpy(), found.predictions["top1"])


class Pixels(nn.Module):
    """One linear layer over all pixels, with an output width as backbones have it."""

    num_features = 7

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(3 * SIZE * SIZE, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)).tanh()


def test_it_equals_a_plain_loop_of_adamw_in_float64() -> None:
    judged, steps, size, rate = subject(), 7, 32, 0.01
    images, labels = judged.images("train"), judged.features.train_labels
    settings = SETTINGS | {"images_per_rate": steps * size, "crop_padding": 0, "warmup": 0.3}
    fast = finetune.train_at(rate, Pixels(), (images, labels), 6, "rgb", settings, 0)

    backbone = Pixels()
    w1, b1 = backbone.layer.weight.detach().double(), backbone.layer.bias.detach().double()
    weights = [w1, b1, torch.zeros(6, 7).double(), torch.zeros(6).double()]
    decays = [0.05, 0.0, 0.05, 0.0]
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    seed = finetune.stream(0, "evaluate", "finetune", "order")
    order = orders(len(labels), steps * size, torch.Generator().manual_seed(seed))
    x = (torch.from_numpy(images).double() / 255 * 2 - 1).expand(-1, 3, -1, -1).flatten(1)
    for step in range(steps):
        rows = order[step * size : (step + 1) * size]
        share = (step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 5))
        leaves = [w.clone().requires_grad_() for w in weights]
        logits = (x[rows] @ leaves[0].T + leaves[1]).tanh() @ leaves[2].T + leaves[3]
        loss = -logits.log_softmax(1)[torch.arange(size), labels[rows]].mean()
        for i, gradient in enumerate(torch.autograd.grad(loss, leaves)):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            mean, square = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            shrunk = weights[i] * (1 - rate * share * decays[i])
            weights[i] = shrunk - rate * share * mean / (square.sqrt() + 1e-8)
    found = [fast[0].layer.weight, fast[0].layer.bias, fast[1].weight, fast[1].bias]
    for ours, plain in zip(found, weights, strict=True):
        assert torch.allclose(ours.double(), plain, atol=1e-5)
    assert not torch.allclose(w1, weights[0], atol=1e-3)


def test_layers_of_a_vit_have_rates_that_fall_towards_the_input() -> None:
    torch.manual_seed(0)
    vit = backbones.build(VIT, SIZE)
    classifier = nn.Linear(vit.num_features, 6)
    groups = finetune.parameter_groups(vit, classifier, 0.05, 0.5)
    of = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of)
    depth = len(vit.blocks)
    for name, parameter in vit.named_parameters():
        part = name.split(".")[0]
        layer = int(name.split(".")[1]) + 1 if part == "blocks" else 0
        layer = depth if part == "norm" else layer  # with the last block, as timm has it
        group = of.pop(id(parameter))
        assert group["scale"] == pytest.approx(0.5 ** (depth + 1 - layer)), name
        exempt = parameter.ndim <= 1 or name in ("pos_embed", "cls_token")
        assert group["weight_decay"] == (0.0 if exempt else 0.05), name
    assert {g["scale"] for g in of.values()} == {1.0}
    assert len(of) == 2
    whole = finetune.parameter_groups(vit, classifier, 0.05, 1.0)
    assert {group["scale"] for group in whole} == {1.0}


def test_a_rate_that_diverges_is_left_out_and_said() -> None:
    judged = subject()
    found = protocol(rates=[1e-3, 1e30], images_per_rate=320).evaluate(judged, 0)
    assert found.chosen == {"rate": 1e-3}
    assert found.stamps == ("diverged at rate 1e+30",)
    none = protocol(rates=[1e30], images_per_rate=320).evaluate(judged, 0)
    assert (none.metrics, none.validation, none.chosen, none.predictions) == ({}, {}, {}, {})
    assert none.stamps == ("diverged at rate 1e+30",)


@pytest.mark.parametrize("few", [3, 10])
def test_labels_outside_the_draw_change_nothing(few: int) -> None:
    judged = subject()
    settings = {"labels_per_class": few, "images_per_rate": 320, "rates": [1e-3, 3e-3, 1e-2]}
    found = protocol(**settings).evaluate(judged, 0)
    labels = judged.features.train_labels
    rows = few_labels.draw(labels, few, 0)
    inside = torch.zeros(len(labels), dtype=torch.bool)
    inside[rows] = True
    elsewhere = replace(
        judged,
        dataset=replace(judged.dataset, images=dict(judged.dataset.images)),
        features=replace(
            judged.features, validation_labels=judged.features.validation_labels.roll(1)
        ),
    )
    outside = np.flatnonzero(~inside.numpy())
    images = judged.dataset.images["train"].copy()
    images[outside] = 255 - images[outside]  # what is not drawn is not looked at either
    elsewhere.dataset.images["train"] = images
    other = protocol(**settings).evaluate(elsewhere, 0)
    assert other.chosen == found.chosen
    assert np.array_equal(other.predictions["top1"], found.predictions["top1"])
    tried = [name for name in found.validation if name.startswith("rate")]
    assert len(tried) == (3 if few >= 5 else 0)
    if few < 5:
        assert found.chosen == {"rate": 3e-3}


def test_more_labels_than_a_class_has_give_no_number() -> None:
    none = protocol(labels_per_class=41).evaluate(subject(), 0)
    assert none.stamps == ("K = 41 skipped: the smallest class has 40 images",)
    assert (none.metrics, none.validation) == ({}, {})
