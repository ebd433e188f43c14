"""The validation split: stratified, addressed by data and seed; duplicates, counted exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench import data
from bench.errors import UserError

LABELS = [0] * 100 + [1] * 26 + [2] * 12 + [3] * 3 + [4] * 2 + [5]


def test_ten_percent_of_each_class_is_set_aside(make_dataset) -> None:
    dataset = make_dataset(LABELS)

    split = data.split(dataset, 0)

    labels = dataset.labels["train"]
    assert not split.own
    assert np.bincount(labels[split.val], minlength=6).tolist() == [10, 3, 1, 1, 1, 0]
    assert np.array_equal(np.sort(np.concatenate([split.train, split.val])), np.arange(len(labels)))
    assert (np.diff(split.train) > 0).all()
    assert (np.diff(split.val) > 0).all()


def test_seeds_share_a_split_modulo_five(make_dataset) -> None:
    dataset = make_dataset(LABELS)

    hashes = [data.split(dataset, seed).sha256 for seed in range(10)]

    assert hashes[:5] == hashes[5:]
    assert len(set(hashes)) == 5


def test_the_split_follows_from_the_data_sha256(make_dataset) -> None:
    dataset = make_dataset(LABELS)

    again = data.split(replace(dataset, images=dataset.images), 0)
    other = data.split(replace(dataset, sha256="cd" * 32), 0)

    assert again.sha256 == data.split(dataset, 0).sha256
    assert other.sha256 != again.sha256


def test_every_image_is_set_aside_equally_often(make_dataset) -> None:
    dataset = make_dataset([0] * 20 + [1] * 20)
    times = np.zeros(40)
    for number in range(400):
        for seed in range(5):
            times[data.split(replace(dataset, sha256=f"{number:064x}"), seed).val] += 1

    # 2000 draws of a tenth: mean 200, standard deviation sqrt(2000 * 0.1 * 0.9) = 13.4.
    assert times.sum() == 2000 * 4
    assert np.abs(times - 200).max() < 5 * 13.4


def test_a_limit_draws_all_classes_of_images_stored_class_by_class() -> None:
    labels = np.repeat(np.arange(10), 100)

    rows = data.some(1000, 100, "ab" * 32)

    # Hypergeometric: 10 of each class expected, standard deviation sqrt(100 * 0.1 * 0.9 * 0.9) = 3.
    found = np.bincount(labels[rows], minlength=10)
    assert len(rows) == 100
    assert found.min() > 0
    assert found.max() < 10 + 4 * 3
    assert (np.diff(rows) > 0).all()


def test_limits_are_nested_and_none_or_too_many_keep_every_row() -> None:
    few, more = data.some(50, 10, "ab" * 32), data.some(50, 20, "ab" * 32)

    assert set(few) < set(more)
    assert not np.array_equal(few, data.some(50, 10, "cd" * 32))
    for count in (None, 50, 60):
        assert np.array_equal(data.some(50, count, "ab" * 32), np.arange(50))


def test_own_validation_split_is_used(make_dataset) -> None:
    dataset = make_dataset(LABELS, val=[0, 1, 2])

    split = data.split(dataset, 3)

    assert split.own
    assert np.array_equal(split.train, np.arange(len(LABELS)))
    assert np.array_equal(split.val, np.arange(3))
    assert split.sha256 == data.split(dataset, 4).sha256


def test_the_hash_tells_own_validation_from_rows_of_train(make_dataset) -> None:
    hashes = {
        data.split(make_dataset([0, 0, 1, 1], val=[0]), 0).sha256,
        data.split(make_dataset([0, 0, 1, 1], val=[0, 1]), 0).sha256,
        data.split(make_dataset([0, 0, 1], val=[0]), 0).sha256,
        data.split(make_dataset([0, 0, 1, 1]), 0).sha256,
    }

    assert len(hashes) == 4


def test_classes_of_one_image_leave_nothing_to_set_aside(make_dataset) -> None:
    with pytest.raises(UserError, match="two training images"):
        data.split(make_dataset([0, 1, 2]), 0)


def test_duplicates_match_the_double_loop(make_dataset) -> None:
    dataset = make_dataset(LABELS, test=[0] * 30, unlabeled=10)
    split = data.split(dataset, 0)
    train, test = dataset.images["train"], dataset.images["test"]
    test[:3] = train[split.train[5]]  # one training image three times
    test[3] = train[split.train[6]]
    train[split.train[7]] = train[split.train[6]]  # twice in training counts once
    test[4] = dataset.images["unlabeled"][2]
    test[5] = train[split.val[0]]  # validation is not pretraining
    test[6] = train[split.train[8]]
    test[6, 0, 0, 0] ^= 1  # almost equal is not equal

    pretraining = [*train[split.train], *dataset.images["unlabeled"]]
    expected = sum(any(np.array_equal(a, b) for b in pretraining) for a in test)

    assert data.duplicates(dataset, split) == expected == 5


def test_duplicates_need_the_test_split(make_dataset) -> None:
    dataset = make_dataset(LABELS)
    del dataset.images["test"]

    with pytest.raises(ValueError, match="test=True"):
        data.duplicates(dataset, data.split(dataset, 0))
