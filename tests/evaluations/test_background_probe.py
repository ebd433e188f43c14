"""The background probe: what features hold of the photograph, measured on training images."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import data, evaluations
from bench.columns import Column
from bench.errors import UserError
from bench.evaluations import background_probe
from bench.evaluations.logistic import standardiser
from bench.features import Features, raw_pixels
from bench.probe import probe

NUM_PHOTOS = 5


def features(strength: float, count: int = 1000) -> Features:
    """Return features of noise, plus `strength` times the photograph's own direction."""
    generator = torch.Generator().manual_seed(0)
    photographs = torch.randint(NUM_PHOTOS, (count,), generator=generator)
    centres = torch.randn(NUM_PHOTOS, 12, generator=generator)
    last = torch.randn(count, 12, generator=generator) + strength * centres[photographs]
    labels = torch.arange(count) % 4
    return Features(
        train={"stage1": last, "last": last},
        validation={"stage1": last[:40], "last": last[:40]},
        test={"stage1": last[:80], "last": last[:80]},
        train_labels=labels,
        validation_labels=labels[:40],
        test_labels=labels[:80],
        class_names=tuple("abcd"),
        extras={"background": photographs + 7},  # numbers of photographs need not begin at 0
    )


def measured(seen: Features) -> evaluations.Evaluation:
    return evaluations.protocol("background_probe").evaluate(seen, 0)


def test_features_that_hold_the_photograph_are_found_out() -> None:
    found = measured(features(20.0))

    assert found.metrics == found.validation == {"background_top1": 100.0}
    assert found.predictions == {}


def test_features_without_it_are_at_chance() -> None:
    seen = features(0.0)
    _, _, rows = background_probe.divide(1000)

    found = measured(seen)

    most = int(seen.extras["background"][rows].bincount().max())
    assert found.chosen["chance_top1"] == 100 * most / 500
    assert found.chosen["photographs"] == NUM_PHOTOS
    assert abs(found.metrics["background_top1"] - 20) < 6  # three sd of 500 images; fixed draws


def test_the_number_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    seen = features(0.5)
    found = measured(seen)
    fit, choose, rows = background_probe.divide(1000)
    both = np.concatenate([fit, choose])
    last, photographs = seen.train["last"], seen.extras["background"]
    scale = standardiser(last[both])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1 / (found.chosen["l2"] * len(both)), max_iter=2000)
        model.fit(scale(last[both]), photographs[both])

    accuracy = 100 * model.score(scale(last[rows]), photographs[rows])

    assert 30 < accuracy < 90
    assert abs(found.metrics["background_top1"] - accuracy) <= 0.4  # two of 500 images


def test_validation_and_test_images_are_not_looked_at() -> None:
    seen = features(0.5)
    absent = {"stage1": torch.full((40, 12), torch.nan), "last": torch.full((40, 12), torch.nan)}
    settings = background_probe.SETTINGS

    open_ = background_probe.evaluate(seen, settings, 0)
    blind = replace(seen, validation=absent, test=None, test_labels=None)
    closed = background_probe.evaluate(blind, settings, 3)

    assert closed.metrics == {}
    assert closed.validation == open_.validation
    assert closed.chosen == open_.chosen


def test_the_division_is_fixed_and_without_overlap() -> None:
    parts = background_probe.divide(1003)

    assert [len(rows) for rows in parts] == [401, 100, 502]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1003))
    assert all(map(np.array_equal, parts, background_probe.divide(1003)))


def test_features_carry_the_photographs_of_the_training_images() -> None:
    draw = np.random.default_rng(0)
    images = {
        key: draw.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8) for key in ("train", "test")
    }
    labels = {key: np.arange(20) % 2 for key in images}
    extras = {"background": {"train": np.arange(20) % 3, "test": np.arange(20) % 3 + 3}}
    names = {"background": tuple("abcdef")}
    dataset = data.Dataset("x", images, labels, ("a", "b"), "", "", "0" * 64)
    known = replace(dataset, extras=extras, extra_names=names)
    split = data.split(dataset, 0)

    assert raw_pixels(dataset, split).extras == {}
    carried = raw_pixels(known, split).extras["background"]
    assert carried.tolist() == (split.train % 3).tolist()


def test_data_without_photographs_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="background of each image, which this data set"):
        measured(replace(features(1.0), extras={}))
    with pytest.raises(UserError, match="which data set 'digits' does not say") as raised:
        probe(
            [],
            recipe="small",
            overrides={},
            data={"name": "digits", "image_size": 16},
            seeds=[0],
            runs_dir=tmp_path,
            evaluations={"knn": {}, "background_probe": {}},
        )
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_its_column_counts_the_images_that_measured_it() -> None:
    entry = SimpleNamespace(chosen={"num_images": 500})
    numbers = SimpleNamespace(test_images=80, validation_images=40)
    result = SimpleNamespace(evaluations={"h": entry}, data=numbers)
    column = Column("background_probe", 1, "h", "background_top1", "")

    assert column.num_images(result) == 500
    entry.chosen = {}
    assert column.num_images(result) == 80
