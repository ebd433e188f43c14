"""Parity tracks: all training images, no validation, nothing selected, and who is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import subjects
import torch

from bench import data, evaluations, features, integrity, plan, session
from bench.errors import UserError
from bench.evaluations import Subject, knn, linear_probe_sgd

TRACK = """
title = "As the paper"
description = "A track."
seeds = [0]
recipe = "small"
batch_size = 8
trials = 0
parity = true
[data]
name = "digits"
image_size = 32
[backbone]
name = "resnet18"
[budget]
steps = 1
[evaluations.knn]
k = [20]
[evaluations.linear_probe_sgd]
train_on = "train+validation"
"""


def load(folder: Path, text: str = TRACK, name: str = "paper-parity") -> plan.Track:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return plan.load_track(str(path))


def whole(**more: int) -> data.Dataset:
    """Return gratings without a validation split."""
    made = subjects.dataset(**more)
    return replace(
        made,
        images={key: made.images[key] for key in ("train", "test")},
        labels={key: made.labels[key] for key in ("train", "test")},
    )


def test_every_image_is_trained_on_and_none_set_aside() -> None:
    dataset = whole()

    split = data.split(dataset, 0, parity=True)

    assert split.train.tolist() == list(range(240))
    assert len(split.val) == 0
    assert not split.own
    assert split.sha256 == data.split(dataset, 3, parity=True).sha256
    assert split.sha256 != data.split(dataset, 0).sha256


def test_a_data_set_with_its_own_validation_split_is_refused() -> None:
    with pytest.raises(UserError, match="brings its own validation split"):
        data.split(subjects.dataset(), 0, parity=True)


def test_a_parity_track_says_so_in_its_name_and_only_a_parity_track_does(tmp_path: Path) -> None:
    assert load(tmp_path).parity
    with pytest.raises(UserError, match="parity = true if its name ends in -parity, and only"):
        load(tmp_path, name="paper")
    with pytest.raises(UserError, match="parity = true if its name ends in -parity, and only"):
        load(tmp_path, TRACK.replace("parity = true\n", ""))
    assert not load(tmp_path, TRACK.replace("parity = true\n", ""), "paper").parity


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trials = 0\n", "", "selects nothing: trials must be 0, got 8"),
        ("k = [20]", "", "knn chooses k, unless it is given one"),
        ("k = [20]", "k = [20, 200]", "knn chooses k"),
        ("[evaluations.knn]\nk = [20]", "[evaluations.linear_probe]", "linear_probe chooses"),
        ("[evaluations.knn]\nk = [20]", "[evaluations.finetune]", "finetune chooses"),
        ('train_on = "train+validation"', "", "linear_probe_sgd chooses nothing, but it needs"),
    ],
)
def test_what_would_select_is_refused_in_one_line(old, new, said, tmp_path: Path) -> None:
    assert old in TRACK
    with pytest.raises(UserError, match=said) as met:
        load(tmp_path, TRACK.replace(old, new))
    assert "\n" not in str(met.value)


def test_every_protocol_that_may_choose_is_known_to() -> None:
    """With its own settings each shipped protocol but one needs validation images."""
    for name in set(evaluations.NAMES) - {"few_labels"}:  # that one chooses inside its draws
        assert evaluations.chooses(name, {})


def test_a_track_without_parity_has_the_content_that_it_had(tmp_path: Path) -> None:
    plain = load(tmp_path, TRACK.replace("parity = true\n", ""), "paper")

    assert load(tmp_path, TRACK.replace("parity = true", "parity = false"), "paper").id == plain.id


def test_validation_scores_alone_are_refused(tmp_path: Path) -> None:
    load(tmp_path)
    with pytest.raises(UserError, match="has no validation images, and --dev reports nothing else"):
        session.prepare("random_init", track=str(tmp_path / "paper-parity.toml"), dev=True)


def subject(dataset: data.Dataset) -> Subject:
    split, load = data.split(dataset, 0, parity=True), subjects.loader(subjects.RESNET)
    seen = features.extract(load(), dataset, split)
    return Subject(seen, load, dataset, split, "rgb", subjects.SIZE, True, threads=1)


def test_neighbours_vote_from_all_training_images_at_the_one_k() -> None:
    dataset = whole()
    split = data.split(dataset, 0, parity=True)
    seen = features.raw_pixels(dataset, split)
    assert seen.validation == {}
    assert len(seen.validation_labels) == 0

    found = evaluations.protocol("knn", {"k": [5]}).evaluate(seen, 0)

    bank = torch.nn.functional.normalize(torch.from_numpy(dataset.images["train"]).flatten(1) / 255)
    votes = knn.votes(seen.test["last"], bank, seen.train_labels, 6, [5], 0.07)[5]
    assert np.array_equal(found.predictions["top1"], votes.numpy())
    assert found.validation == {}
    assert found.chosen == {"k": 5}


def test_the_papers_probe_trains_on_all_training_images() -> None:
    judged = subject(whole(train=60))
    settings = {"train_on": "train+validation", "epochs": 1, "milestones": []}

    found = evaluations.protocol("linear_probe_sgd", settings).evaluate(judged, 0)

    assert found.validation == {}
    assert set(found.metrics) == {"top1", "top5"}
    assert judged.images("train") is judged.dataset.images["train"]


def test_crops_of_the_papers_probe_come_from_the_images_as_they_are_stored(monkeypatch) -> None:
    dataset = whole(train=30)
    margin = ((0, 0), (0, 0), (2, 2), (2, 2))
    larger = {key: np.pad(images, margin) for key, images in dataset.images.items()}
    judged = subject(replace(dataset, larger=larger))
    sizes = []
    show = linear_probe_sgd.show

    def watched(images, kind, device, view=None, generator=None):
        shown = show(images, kind, device, view, generator)
        sizes.append((images.shape[-1], shown.shape[-1]))
        return shown

    monkeypatch.setattr(linear_probe_sgd, "show", watched)
    settings = {"train_on": "train+validation", "epochs": 1, "milestones": []}
    evaluations.protocol("linear_probe_sgd", settings).evaluate(judged, 0)

    assert sizes == [(20, 16)]
    assert judged.images("test").shape[-1] == 16
    assert judged.images("train", stored=True).shape[-1] == 20


def test_shuffled_labels_are_probed_on_training_images_that_are_set_aside() -> None:
    dataset = whole()
    seen = features.raw_pixels(dataset, data.split(dataset, 0, parity=True))
    sizes = []

    def leaking(some: features.Features) -> float:
        sizes.append((len(some.train_labels), len(some.validation_labels)))
        return 1.0

    assert integrity.shuffled_probe(seen, 0) == ""
    assert "labels leak" in integrity.shuffled_probe(seen, 0, leaking)
    assert set(sizes) == {(216, 24)}
