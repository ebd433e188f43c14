"""Protocols over features whose answer is known."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import evaluations
from bench.evaluations import NonFinite, knn, linear_probe
from bench.evaluations.logistic import solve, standardiser
from bench.features import Features


def clusters(count: int, spread: float, seed: int, classes: int = 6) -> tuple[Tensor, Tensor]:
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, 12, generator=generator), labels


def features(spread: float = 1.0, **more: object) -> Features:
    splits = [clusters(n, spread, seed) for n, seed in ((300, 1), (60, 2), (150, 3))]
    noise = torch.Generator().manual_seed(9)
    stages = [
        {"stage1": torch.randn(x.shape, generator=noise), "stage2": x, "last": x[:, :2]}
        for x, _ in splits
    ]
    values = {
        "train": stages[0],
        "validation": stages[1],
        "test": stages[2],
        "train_labels": splits[0][1],
        "validation_labels": splits[1][1],
        "test_labels": splits[2][1],
        "class_names": tuple("abcdef"),
    }
    return Features(**(values | more))


def test_knn_votes_equal_a_slow_loop() -> None:
    found = features(2.0)
    bank, labels, queries = found.train["stage2"], found.train_labels, found.test["stage2"]
    ks = [1, 5, 20, 300]
    fast = knn.votes(queries, torch.nn.functional.normalize(bank), labels, 6, ks, temperature=0.07)
    for k in ks:
        for row, query in enumerate(queries):
            similarity = torch.cosine_similarity(query[None].double(), bank.double())
            order = similarity.argsort(descending=True)[:k]
            score = [0.0] * 6
            for index in order.tolist():
                score[int(labels[index])] += math.exp(float(similarity[index]) / 0.07)
            assert int(fast[k][row]) == int(np.argmax(score))


def test_knn_chooses_k_on_validation_and_caps_it() -> None:
    found = evaluations.protocol("knn").evaluate(features(2.0), 0)
    tried = {name for name in found.validation if name.startswith("k")}
    assert tried == {f"k{k}_top1" for k in (1, 5, 10, 20, 50, 100, 200)}
    best = max(found.validation[name] for name in tried)
    assert found.validation[f"k{found.chosen['k']}_top1"] == best
    small = features()
    few = {name: values[:30] for name, values in small.train.items()}
    capped = evaluations.protocol("knn").evaluate(
        features(train=few, train_labels=small.train_labels[:30]), 0
    )
    assert "k30_top1" in capped.validation
    assert "k50_top1" not in capped.validation


def test_probe_takes_the_best_stage_by_validation() -> None:
    found = evaluations.protocol("linear_probe").evaluate(features(), 0)
    assert found.chosen["best"]["stage"] == "stage2"
    assert found.metrics["best_top1"] > found.metrics["last_top1"] + 20
    assert found.metrics["last_top5"] >= found.metrics["last_top1"]
    hits = torch.from_numpy(found.predictions["best"]) == features().test_labels
    assert found.metrics["best_top1"] == pytest.approx(100 * float(hits.float().mean()))


def test_nothing_is_chosen_on_test() -> None:
    whole = features()
    blind = features(test=None, test_labels=None)
    for name in evaluations.over_features():
        protocol = evaluations.protocol(name)
        seen, unseen = protocol.evaluate(whole, 0), protocol.evaluate(blind, 0)
        assert (seen.chosen, seen.validation) == (unseen.chosen, unseen.validation)
        assert unseen.metrics == {}
        assert unseen.predictions == {}


def test_probe_is_within_a_fifth_of_a_point_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    train, labels = clusters(2000, 2.5, 4)
    test, truth = clusters(2000, 2.5, 5)
    scale = standardiser(train)
    x, y = scale(train), scale(test)
    values = linear_probe.grid(linear_probe.SETTINGS)
    ours = solve(x, labels, num_classes=6, l2=values).logits(y).argmax(2)
    best = float((ours == truth).float().mean(1).max()) * 100
    theirs = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for l2 in values:
            model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=2000).fit(x, labels)
            theirs = max(theirs, 100 * model.score(y, truth.numpy()))
    assert abs(best - theirs) <= 0.2


def test_solution_has_no_gradient_left() -> None:
    train, labels = clusters(200, 2.0, 6)
    x = standardiser(train)(train).double()
    found = solve(x, labels, num_classes=6, l2=[1e-3, 1e-1], tolerance=1e-6, max_iterations=5000)
    for index, l2 in enumerate((1e-3, 1e-1)):
        weight = found.weight[index].clone().requires_grad_()
        bias = found.bias[index].clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels)
        (loss + l2 / 2 * weight.square().sum()).backward()
        assert float(weight.grad.square().sum() + bias.grad.square().sum()) ** 0.5 < 1e-5


def test_gradient_of_every_strength_falls_to_the_tolerance() -> None:
    train, labels = clusters(400, 1.0, 7)
    wide = torch.cat(
        [train, train @ torch.randn(12, 500, generator=torch.Generator().manual_seed(1))], 1
    )
    x = standardiser(wide)(wide)  # of rank 12, and nearly separable: hard for small l2
    values = linear_probe.grid(linear_probe.SETTINGS)
    found = solve(x, labels, num_classes=6, l2=values)
    assert found.converged.all()
    assert found.iterations < 200
    for index, l2 in enumerate(values):
        weight, bias = found.weight[index].clone(), found.bias[index].clone()
        loss = torch.nn.functional.cross_entropy
        total = loss(x @ weight.requires_grad_().T + bias.requires_grad_(), labels)
        (total + l2 / 2 * weight.square().sum()).backward()
        assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1.05e-4


def test_unfinished_strengths_are_said_to_be() -> None:
    train, labels = clusters(200, 2.0, 6)
    x = standardiser(train)(train)
    found = solve(x, labels, num_classes=6, l2=[1e-6, 1e1], max_iterations=8)
    assert found.converged.tolist() == [False, True]
    assert found.iterations == 8
    probe = evaluations.protocol(
        "linear_probe", {"max_iterations": 1, "gradient_norm": 1e-6}
    ).evaluate(features(), 0)
    assert any("not converged at l2" in stamp for stamp in probe.stamps)


def test_features_that_are_all_dead_leave_the_largest_class() -> None:
    labels = torch.tensor([2] * 30 + [1] * 10)
    x = standardiser(torch.ones(40, 5))(torch.ones(40, 5))
    assert x.shape == (40, 0)
    found = solve(x, labels, num_classes=3, l2=[1e-2])
    assert found.converged.all()
    assert found.logits(x)[0].argmax(1).unique().tolist() == [2]


def test_grid_has_thirteen_values_and_grows_at_its_edge() -> None:
    values = linear_probe.grid(linear_probe.SETTINGS)
    assert len(values) == 13
    assert values[0] == pytest.approx(1e-7)
    assert values[-1] == pytest.approx(10.0)
    narrow = evaluations.protocol("linear_probe", {"l2_high": 1e-6, "l2_count": 3})
    found = narrow.evaluate(features(4.0), 0)
    assert found.chosen["best"]["l2"] > 1e-6


def test_dead_features_are_dropped_and_counted() -> None:
    plain = features()
    dead = {
        part: {
            "last": torch.cat(
                [
                    getattr(plain, part)["stage2"],
                    torch.full((len(getattr(plain, part)["last"]), 3), 7.0),
                ],
                1,
            )
        }
        for part in ("train", "validation", "test")
    }
    found = evaluations.protocol("linear_probe").evaluate(features(**dead), 0)
    assert "last: 3 dead features dropped" in found.stamps


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("name", evaluations.over_features())
def test_non_finite_features_never_give_a_number(name: str, part: str) -> None:
    plain = features()
    bad = {stage: values.clone() for stage, values in getattr(plain, part).items()}
    bad["last"][3, 0] = float("nan")
    with pytest.raises(NonFinite, match=f"1 of {len(bad['last'])} {part} images"):
        evaluations.protocol(name).evaluate(features(**{part: bad}), 0)


def test_settings_change_the_hash_and_unknown_ones_are_refused() -> None:
    from bench.errors import UnknownName, UserError

    standard = evaluations.protocol("knn")
    assert standard.hash == evaluations.protocol("knn", {"temperature": 0.07}).hash
    assert standard.hash != evaluations.protocol("knn", {"temperature": 0.1}).hash
    with pytest.raises(UnknownName, match="no setting of knn 'temprature'; did you mean"):
        evaluations.protocol("knn", {"temprature": 0.1})
    with pytest.raises(UserError, match="expected a value of type float"):
        evaluations.protocol("knn", {"temperature": "hot"})
    with pytest.raises(UnknownName, match="no evaluation 'knnn'"):
        evaluations.protocol("knnn")
