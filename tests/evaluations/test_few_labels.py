"""Few labels: the solver against scikit-learn, the draws, and that no other label is used."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bench import evaluations
from bench.evaluations import few_labels, linear_probe, linear_raw
from bench.evaluations.logistic import solve, standardiser
from bench.evaluations.small_sets import classifier, fit, own_logits, sets
from bench.features import Features

SMALL = {"labels_per_class": [1, 5, 10], "draws": [6, 5, 4]}


def clusters(count: int, seed: int, classes: int = 6, width: int = 12):
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return 3 + centres[labels] + torch.randn(count, width, generator=generator), labels


def features(**more: object) -> Features:
    splits = [clusters(count, seed) for count, seed in ((300, 1), (60, 2), (150, 3))]
    parts = ("train", "validation", "test")
    values = {
        part: {"stage1": x[:, :2] * 5, "stage2": x, "last": x[:, 3:7].contiguous()}
        for part, (x, _) in zip(parts, splits, strict=True)
    }
    values |= {f"{part}_labels": y for part, (_, y) in zip(parts, splits, strict=True)}
    return Features(**(values | {"class_names": tuple("abcdef")} | more))


def reference(x: torch.Tensor, labels: torch.Tensor, l2: float) -> LogisticRegression:
    """Return scikit-learn's solution; its C weighs the sum over images, ours their mean."""
    return LogisticRegression(C=1 / (len(x) * l2), tol=1e-10, max_iter=10000).fit(x, labels)


@pytest.mark.parametrize(("count", "width"), [(40, 96), (120, 12)], ids=["span", "features"])
@pytest.mark.parametrize("l2", [1e-3, 1e-1, 10.0])
def test_every_set_and_fold_has_scikit_learns_probabilities(count, width, l2):
    x, labels = clusters(2 * count, 4, classes=4, width=width)
    batches, targets = x.view(2, count, width), labels.view(2, count)
    of = sets(batches, targets, 4)
    inside = torch.arange(count) % 5 != torch.tensor([0, 1, 9])[:, None]  # two folds, and all
    weights = (inside / inside.sum(1, keepdim=True)).expand(2, -1, -1)
    strengths = torch.full((2, 3), l2)
    found = fit(of, weights, strengths, tolerance=1e-6, max_iterations=5000)
    shown = own_logits(of, found.point).softmax(1)  # (B, C, Q, n)
    for b in range(2):
        for q in range(3):
            theirs = reference(batches[b][inside[q]], targets[b][inside[q]], l2)
            expected = theirs.predict_proba(batches[b])
            assert np.abs(shown[b, :, q].T.numpy() - expected).max() < 1e-3


def test_the_span_of_the_images_loses_nothing():
    x, labels = clusters(40, 4, width=96)
    of = sets(x[None], labels[None], 6)
    assert of.design.shape == (1, 40, 40)  # 39 dimensions and the bias
    ones = torch.full((1, 1, 40), 1 / 40)
    found = fit(of, ones, torch.tensor([[0.05]]), tolerance=1e-6, max_iterations=5000)
    weight, bias = classifier(of, found.point)
    centred = x - x.mean(0)
    plain = solve(centred, labels, num_classes=6, l2=[0.05], tolerance=1e-6)
    unseen, _ = clusters(50, 5, width=96)
    expected = plain.logits(unseen - x.mean(0))[0].softmax(1)
    assert torch.allclose((unseen @ weight[0].T + bias[0]).softmax(1), expected, atol=1e-3)


def test_constant_features_leave_the_bias():
    labels = torch.tensor([[2] * 6 + [1] * 2])
    of = sets(torch.full((1, 8, 5), 7.0), labels, 3)
    found = fit(
        of, torch.full((1, 1, 8), 1 / 8), torch.ones(1, 1), tolerance=1e-4, max_iterations=99
    )
    weight, bias = classifier(of, found.point)
    assert not weight.any()
    assert bias[0].argmax() == 2


def test_draws_are_nested_balanced_and_those_of_the_rule():
    labels = clusters(300, 1)[1]
    draws = [few_labels.draw(labels, 10, number) for number in range(4)]
    for number, rows in enumerate(draws):
        assert torch.bincount(labels[rows]).tolist() == [10] * 6
        assert len(rows.unique()) == 60
        five = few_labels.draw(labels, 5, number).view(6, 5)
        assert torch.equal(rows.view(6, 10)[:, :5], five)
        address = json.dumps(
            ["few/1", hashlib.sha256(labels.numpy().tobytes()).hexdigest(), number],
            separators=(",", ":"),
        )
        key = int.from_bytes(hashlib.sha256(address.encode()).digest(), "big")
        words = np.random.PCG64(key).random_raw(300)
        third = [row for row in sorted(range(300), key=lambda row: words[row]) if labels[row] == 3]
        assert five[3].tolist() == third[:5]
    assert len({tuple(rows.tolist()) for rows in draws}) == 4


def test_one_draw_equals_scikit_learn_on_the_drawn_images():
    found = features()
    settings = {"labels_per_class": [5], "draws": [1], "folds": 9, "l2_few": 0.03}
    outcome = evaluations.protocol("few_labels", settings).evaluate(found, 0)
    rows = few_labels.draw(found.train_labels, 5, 0)
    everything = found.train["last"].double()
    mean, std = everything.mean(0), everything.std(0, correction=0)
    theirs = reference((everything[rows] - mean) / std, found.train_labels[rows], 0.03)
    guesses = theirs.predict((found.test["last"].double() - mean) / std)
    right = torch.from_numpy(guesses) == found.test_labels
    assert outcome.shares["k5_top1"].tolist() == right.int().tolist()
    assert outcome.metrics["k5_top1"] == pytest.approx(100 * right.double().mean().item())


def test_folds_choose_the_l2_that_scikit_learn_would():
    found = features()
    settings = few_labels.SETTINGS | {"l2_count": 3, "fold_gradient_norm": 1e-6}
    rows = few_labels.draw(found.train_labels, 10, 0)
    x, labels = found.train["last"][rows], found.train_labels[rows]
    x = x - x.mean(0)
    fold = torch.arange(60) % 10 % 5
    right = {}
    for l2 in few_labels.grid(settings):
        fits = [reference(x[fold != held], labels[fold != held], l2) for held in range(5)]
        scores = [fits[k].score(x[fold == k], labels[fold == k]) for k in range(5)]
        right[l2] = round(12 * sum(scores))
    of = sets(x[None], labels[None], 6)
    l2, hits = few_labels._cross_validate(of, 10, settings)
    best = max(right, key=lambda value: (right[value], value))
    assert len(set(right.values())) > 1
    assert (float(l2), int(hits)) == (pytest.approx(best), right[best])


def test_no_label_outside_the_draws_is_used(monkeypatch):
    found = features()
    rows = {k: [few_labels.draw(found.train_labels, k, n) for n in range(6)] for k in (1, 5, 10)}
    monkeypatch.setattr(few_labels, "draw", lambda labels, k, number: rows[k][number])
    honest = evaluations.protocol("few_labels", SMALL).evaluate(found, 0)
    drawn = torch.cat([rows[k][n] for k, n in ((1, 5), (5, 4), (10, 3)) for n in range(n + 1)])
    altered = found.train_labels.clone()
    outside = torch.ones(300, dtype=torch.bool).index_fill(0, drawn, False)
    altered[outside] = (altered[outside] + 1) % 6
    assert outside.sum() > 20
    lied = features(train_labels=altered, validation_labels=(found.validation_labels + 1) % 6)
    other = evaluations.protocol("few_labels", SMALL).evaluate(lied, 1)
    assert other.metrics == honest.metrics
    assert other.chosen == honest.chosen
    assert other.validation != honest.validation


def test_metrics_are_the_mean_share_of_the_draws_on_test_and_validation():
    outcome = evaluations.protocol("few_labels", SMALL).evaluate(features(), 0)
    names = ["k1_top1", "k5_top1", "k5_best_top1", "k10_top1", "k10_best_top1"]
    assert sorted(outcome.shares) == sorted(outcome.draws) == sorted(names)
    for name in names:
        counts = outcome.shares[name]
        assert counts.max() <= outcome.draws[name]
        share = 100 * counts.mean() / outcome.draws[name]
        assert outcome.metrics[name] == pytest.approx(share)
        assert 0 < outcome.metrics[name.replace("top1", "spread")] < 20
    assert set(outcome.validation) == set(outcome.metrics)
    assert outcome.metrics["k10_top1"] > outcome.metrics["k1_top1"]
    unread = evaluations.protocol("few_labels", SMALL).evaluate(
        features(test=None, test_labels=None), 0
    )
    assert unread.metrics == unread.shares == unread.draws == {}
    assert unread.validation == outcome.validation


def test_a_parity_track_without_validation_images_has_the_same_numbers():
    protocol = evaluations.protocol("few_labels", SMALL)
    none = features(validation={}, validation_labels=torch.zeros(0, dtype=torch.int64))
    found = protocol.evaluate(none, 0)
    assert found.validation == {}
    assert found.metrics == protocol.evaluate(features(), 0).metrics
    assert evaluations.chooses("few_labels", {}) == ""


def test_the_folds_find_the_stage_that_holds_the_classes():
    outcome = evaluations.protocol("few_labels", SMALL).evaluate(features(), 0)
    assert outcome.chosen["k10_best"]["stages"] == ["stage2"] * 4
    assert outcome.metrics["k10_best_top1"] > outcome.metrics["k10_top1"] + 5


def test_k_above_the_smallest_class_is_skipped_and_said():
    found = features()
    kept = (found.train_labels != 4) | ((found.train_labels == 4).cumsum(0) <= 7)
    few = features(
        train={name: values[kept] for name, values in found.train.items()},
        train_labels=found.train_labels[kept],
    )
    outcome = evaluations.protocol("few_labels", SMALL).evaluate(few, 0)
    assert "K = 10 skipped: the smallest class has 7 images" in outcome.stamps
    assert {name[:3] for name in outcome.metrics} == {"k1_", "k5_"}


def test_a_class_without_training_images_is_always_wrong():
    found = features()
    kept = found.train_labels != 0
    lacking = features(
        train={name: values[kept] for name, values in found.train.items()},
        train_labels=found.train_labels[kept],
    )
    outcome = evaluations.protocol("few_labels", SMALL).evaluate(lacking, 0)
    zeros = (found.test_labels == 0).numpy()
    assert not outcome.shares["k10_top1"][zeros].any()
    assert outcome.shares["k10_top1"][~zeros].mean() > 1.5


def scaled(found: Features, factor: torch.Tensor | float) -> Features:
    return features(
        **{
            part: {"last": getattr(found, part)["stage2"] * factor}
            for part in ("train", "validation", "test")
        }
    )


def test_linear_raw_keeps_the_scales_of_features_and_ignores_their_unit():
    found, uneven = features(), torch.logspace(-3, 3, 12)
    raw, standard = evaluations.protocol("linear_raw"), evaluations.protocol("linear_probe")
    outcome = raw.evaluate(scaled(found, 1.0), 0)
    assert raw.evaluate(scaled(found, 1024.0), 0).predictions["last"].tolist() == (
        outcome.predictions["last"].tolist()
    )
    same = standard.evaluate(scaled(found, 1.0), 0).metrics["last_top1"]
    assert standard.evaluate(scaled(found, uneven), 0).metrics["last_top1"] == pytest.approx(
        same, abs=1.0
    )
    assert raw.evaluate(scaled(found, uneven), 0).metrics["last_top1"] < same - 5


def test_linear_raw_solves_the_raw_features_problem():
    x, labels = clusters(200, 1)
    x = x * torch.logspace(-1, 1, 12)
    scale = linear_raw.common_scale(x)
    unit = float(standardiser(x).std.square().mean().sqrt())
    found = solve(scale(x), labels, num_classes=6, l2=[0.01], tolerance=1e-6)
    theirs = reference(x, labels, 0.01 * unit**2)
    shown = found.logits(scale(x))[0].softmax(1).numpy()
    assert np.abs(shown - theirs.predict_proba(x)).max() < 2e-3


def test_both_linear_protocols_have_columns_of_their_own():
    hashes = {evaluations.protocol(name).hash for name in ("linear_probe", "linear_raw")}
    assert len(hashes) == 2
    assert linear_raw.SETTINGS == linear_probe.SETTINGS
