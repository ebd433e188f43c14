"""Class accuracy and the classification accuracy score: what each sees, and prototypes in both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.metrics import classes

C, D = 4, 24


def images(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features (N, D) of C classes: each has a centre, and all vary far along ten axes."""
    centres = 2.5 * torch.eye(D)[:C]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(C).repeat(per_class)
    within = torch.randn(len(labels), D, generator=generator)
    within[:, -10:] *= 5
    within[:, :-10] *= 0.6
    return centres[labels] + within, labels


def prototypes(count: int) -> tuple[Tensor, Tensor]:
    """Return one image of each class, `count` times over."""
    features, labels = images(1, 7)
    return features.repeat(count, 1), labels.repeat(count)


def score(samples: tuple[Tensor, Tensor]) -> classes.AccuracyScore:
    return classes.accuracy_score(*samples, *images(250, 1), num_classes=C, seed=0)


def nearest_centre(features: Tensor) -> Tensor:
    """The independent classifier: by the true centres, along the axes that tell classes apart."""
    return torch.cdist(features[:, :C], 2.5 * torch.eye(C)).argmin(1)


def test_accuracy_is_counted_over_all_and_by_class() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    found = classes.accuracy(predictions, labels, num_classes=3)
    assert found.top1 == pytest.approx(100 * 5 / 7)
    assert found.by_class == pytest.approx((75, 50, 100))
    assert (found.least, found.least_class) == (50, 1)


def test_a_class_that_is_never_drawn_shows_in_the_least() -> None:
    labels = torch.arange(10).repeat(20)
    predictions = torch.where(labels == 3, 5, labels)
    found = classes.accuracy(predictions, labels, num_classes=10)
    assert (found.top1, found.least, found.least_class) == (90, 0, 3)


def test_prototypes_score_100_in_the_first_and_fail_the_second() -> None:
    samples, labels = prototypes(250)
    assert classes.accuracy(nearest_centre(samples), labels, num_classes=C).top1 == 100
    found = score((samples, labels))
    assert found.on_samples == 100
    honest = score(images(250, 2))
    assert honest.accuracy.top1 > 95
    assert found.accuracy.top1 < 60


def test_the_score_of_real_images_is_that_of_the_best_classifier() -> None:
    """The true centres name about as many: the probe loses nothing of what is there."""
    features, labels = images(250, 1)
    bound = classes.accuracy(nearest_centre(features), labels, num_classes=C).top1
    assert score(images(250, 2)).accuracy.top1 == pytest.approx(bound, abs=2)
    assert score(images(250, 2)).converged


def test_samples_with_shuffled_labels_score_chance() -> None:
    """1,000 real images, chance 25 %: five standard deviations are 6.8."""
    features, labels = images(250, 2)
    turned = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert score((features, turned)).accuracy.top1 == pytest.approx(25, abs=10)


def test_a_class_swapped_in_the_samples_is_the_least() -> None:
    features, labels = images(250, 2)
    samples = features[labels != 2], labels[labels != 2]
    found = score(samples)  # no sample of class 2 at all
    assert (found.accuracy.least, found.accuracy.least_class) == (0, 2)
    assert found.accuracy.top1 == pytest.approx(75, abs=3)


def test_nothing_of_the_real_images_enters_the_probe() -> None:
    """Real images are named as they are beside others."""
    samples = images(60, 2)
    features, labels = images(50, 1)
    whole = classes.accuracy_score(*samples, features, labels, num_classes=C, seed=0)
    first = classes.accuracy_score(*samples, features[:100], labels[:100], num_classes=C, seed=0)
    rest = classes.accuracy_score(*samples, features[100:], labels[100:], num_classes=C, seed=0)
    assert whole.accuracy.top1 == pytest.approx((first.accuracy.top1 + rest.accuracy.top1) / 2)
    assert whole.l2 == first.l2 == rest.l2


def test_samples_that_are_all_one_image_name_one_class() -> None:
    samples = torch.ones(40, D), torch.arange(C).repeat(10)
    assert score(samples).accuracy.top1 == pytest.approx(25)


def test_what_cannot_be_scored_is_refused() -> None:
    features, labels = images(10, 0)
    with pytest.raises(ValueError, match=r"labels in \[0, 3\)"):
        classes.accuracy(labels, labels, num_classes=3)
    with pytest.raises(ValueError, match="of class 4"):
        classes.accuracy(labels, labels, num_classes=5)
    with pytest.raises(ValueError, match=r"\(40,\) and \(39,\)"):
        classes.accuracy(labels, labels[1:], num_classes=C)

    def score_of(x: Tensor, y: Tensor) -> None:
        classes.accuracy_score(x, y, features, labels, num_classes=C, seed=0)

    with pytest.raises(ValueError, match="ten samples"):
        score_of(features[:9], labels[:9])
    with pytest.raises(ValueError, match="a NaN"):
        score_of(features * torch.nan, labels)
    with pytest.raises(ValueError, match=r"\(40, 3\) and \(40, 24\)"):
        score_of(features[:, :3], labels)
