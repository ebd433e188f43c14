"""What every protocol that is given images and backbone keeps to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from subjects import RESNET, VIT, dataset, subject

from bench import evaluations, features, judge
from bench.errors import UserError
from bench.evaluations import Evaluation, Subject

SMALL = {
    "finetune": {"images_per_rate": 256, "batch_size": 16, "rates": [1e-3, 1e-2]},
    "linear_probe_sgd": {"epochs": 6, "milestones": [4], "batch_size": 50, "smallest_crop": 0.5},
    "mlp_probe_spatial": {"epochs": 2, "until": [1, 2, 3, 4], "batch_size": 50},
    "bn_recalibrated": {"images": 100},
}


def evaluated(name: str, of: Subject, seed: int = 0, **overrides: object) -> Evaluation:
    return evaluations.protocol(name, SMALL[name] | overrides).evaluate(of, seed)


def same(one: Evaluation, two: Evaluation) -> bool:
    assert one.predictions.keys() == two.predictions.keys()
    return (one.metrics, one.validation, one.chosen) == (
        two.metrics,
        two.validation,
        two.chosen,
    ) and all(np.array_equal(one.predictions[key], two.predictions[key]) for key in one.predictions)


def test_these_are_all_protocols_over_images() -> None:
    needs = {name: evaluations.protocol(name).needs for name in evaluations.NAMES}
    assert set(SMALL) == {name for name, what in needs.items() if what == "images"}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("spec", [RESNET, VIT], ids=["resnet", "vit"])
def test_it_repeats_and_leaves_all_else_as_it_was(name: str, spec: dict) -> None:
    judged = subject(spec)
    arrays = [
        *judged.dataset.images.values(),
        *judged.dataset.labels.values(),
        *(values.numpy() for values in judged.features.train.values()),
        *(values.numpy() for values in judged.features.test.values()),
    ]
    before = [array.tobytes() for array in arrays]
    for images in judged.dataset.images.values():
        images.flags.writeable = False  # as those are that lie on disk
    first = evaluated(name, judged)
    torch.manual_seed(99)
    torch.rand(3)
    assert same(first, evaluated(name, judged))
    assert [array.tobytes() for array in arrays] == before
    predicted = {name: hits for name, hits in first.metrics.items() if name.endswith("top1")}
    assert predicted
    for metric, score in predicted.items():
        guesses = first.predictions.get(metric, first.predictions.get(metric[: -len("_top1")]))
        hits = guesses == judged.features.test_labels.numpy()
        assert score == pytest.approx(100 * hits.mean())


@pytest.mark.parametrize("name", SMALL)
def test_other_test_labels_change_the_score_alone(name: str) -> None:
    found, flattering = evaluated(name, subject()), dataset()
    column = list(found.predictions)[-1]
    flattering.labels["test"][:] = found.predictions[column]
    other = evaluated(name, subject(data=flattering))
    assert (found.chosen, found.validation) == (other.chosen, other.validation)
    assert 100.0 in other.metrics.values()
    assert 100.0 not in found.metrics.values()
    for column, guesses in found.predictions.items():
        assert np.array_equal(guesses, other.predictions[column])


class Sealed(dict):
    """Splits without a test split, for which nobody may ask."""

    def __getitem__(self, key: str) -> np.ndarray:
        assert key != "test", "the test split was asked for"
        return super().__getitem__(key)

    get = None


@pytest.mark.parametrize("name", SMALL)
def test_without_the_test_split_all_else_is_the_same(name: str) -> None:
    whole = dataset()
    images, labels = (
        Sealed({key: parts[key] for key in ("train", "val")})
        for parts in (whole.images, whole.labels)
    )
    closed = subject(data=replace(whole, images=images, labels=labels), test=False)
    with pytest.raises(AssertionError, match="asked for"):
        closed.dataset.images["test"]
    seen, unseen = evaluated(name, subject()), evaluated(name, closed)
    assert (seen.chosen, seen.validation) == (unseen.chosen, unseen.validation)
    assert unseen.validation
    assert (unseen.metrics, unseen.predictions) == ({}, {})


def test_raw_pixels_have_no_entry_and_no_failure() -> None:
    judged = subject()
    pixels = features.raw_pixels(judged.dataset, judged.split)
    floor = replace(judged, features=pixels, load=None)
    protocols = [evaluations.protocol(name) for name in SMALL]
    assert judge.all_entries(protocols, floor, 0) == {}


@pytest.mark.parametrize(
    ("name", "overrides", "match"),
    [
        ("finetune", {"rates": []}, "finetune.rates is .*; expected at least one number"),
        ("finetune", {"batch_size": 1}, "finetune.batch_size is 1; expected at least 2"),
        ("linear_probe_sgd", {"schedule": "step"}, "no linear_probe_sgd.schedule 'step'; did you"),
        ("linear_probe_sgd", {"train_on": "all"}, "no linear_probe_sgd.train_on 'all'"),
        ("mlp_probe_spatial", {"rates": [0.1]}, "differ in length"),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_planned(
    name: str, overrides: dict, match: str
) -> None:
    with pytest.raises(UserError, match=match) as caught:
        evaluations.protocol(name, overrides)
    assert "\n" not in str(caught.value)
