"""Generation and calibration on squares, by pixels: sets whose quality is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from subjects import CLASSES, SIZE, dataset, subject

from bench import evaluations, extractors, features, judge
from bench.data import Dataset
from bench.errors import UserError
from bench.evaluations import Evaluation, Subject, generation
from bench.extractors import Extractor
from bench.sampling import Samples

SETTINGS = {"samples": 120, "reference": 120, "extractor": "pixels", "allow_small": True}
CAS = "classification_accuracy_score"
PROTOCOL = evaluations.protocol("generation", SETTINGS)
DARK = Extractor("dark", "", 768, "1", lambda images: extractors.pixels().network(images // 2) ** 2)


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 (N, 1, 16, 16) and labels: where a square lies, give or take, is its class."""
    generator = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(count) % CLASSES
    images = generator.normal(60, 15, (count, 1, SIZE, SIZE))
    for image, label in zip(images, labels, strict=True):
        top, left = np.array(divmod(label, 3)) * (7, 5) + generator.integers(0, 3, 2)
        image[0, top : top + 5, left : left + 4] += generator.uniform(80, 150)
    return images.clip(0, 255).astype(np.uint8), labels


def data(train: int = 480, validation: int = 240, test: int = 240) -> Dataset:
    return dataset(train, validation, test, draw=squares)


@pytest.fixture(scope="module")
def judged() -> Subject:
    return subject(data=data())


def measured(judged: Subject, images: np.ndarray, labels: np.ndarray | None = None) -> Evaluation:
    shown = np.repeat(images, 3, axis=1)
    drawn = Samples(shown, labels, {"steps": 3})
    return PROTOCOL.evaluate(replace(judged, samples={PROTOCOL.hash: drawn}), 0)


def test_other_images_of_the_same_kind_are_near_and_no_copies(judged: Subject) -> None:
    found = measured(judged, squares(120, 9)[0])
    assert found.metrics["kid_low"] < 0 < found.metrics["kid_high"]
    assert 35 < found.metrics["memorisation"] < 65  # sd of chance: 3.2 points
    assert not [stamp for stamp in found.stamps if "memorised" in stamp]
    assert found.chosen["sampling"] == {"steps": 3}
    noise = np.random.default_rng(0).integers(0, 256, (120, 1, 16, 16), dtype=np.uint8)
    worse = measured(judged, noise)
    for metric in ("kid", "fd"):
        assert worse.metrics[metric] > found.metrics[metric]
        assert worse.validation[metric] > found.validation[metric]


def test_one_class_is_far_and_recalls_little(judged: Subject) -> None:
    every, one = squares(120, 9)[0], squares(120 * CLASSES, 9)[0][::CLASSES]
    whole, narrow = measured(judged, every), measured(judged, one)
    assert narrow.metrics["kid_low"] > whole.metrics["kid"]
    assert narrow.metrics["recall"] < whole.metrics["recall"] / 2


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_copied_training_images_are_found(judged: Subject, share: float) -> None:
    images = squares(120, 9)[0]
    count = int(share * len(images))
    images[:count] = judged.images("train")[:count, :, :, ::-1]  # mirrored: copies all the same
    found = measured(judged, images)
    assert found.chosen["copies"]["leading"] >= count
    assert any("memorised" in stamp for stamp in found.stamps)


def test_a_prototype_per_class_passes_the_first_measure_and_fails_the_second(
    judged: Subject,
) -> None:
    asked = np.arange(120) % CLASSES
    varied, labels = squares(120, 9)
    assert (labels == asked).all()
    prototypes = varied[:CLASSES][asked]
    honest, collapsed = measured(judged, varied, asked), measured(judged, prototypes, asked)
    shuffled = measured(judged, varied, np.roll(asked, 1))
    assert honest.metrics["class_accuracy"] > 60
    assert shuffled.metrics["class_accuracy"] < 30
    scores = [f.metrics["classification_accuracy_score"] for f in (honest, collapsed)]
    assert scores[0] > scores[1] + 15


def test_a_test_split_sorted_by_class_is_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder of classes lies: its first images are of few of them."""
    monkeypatch.setattr(generation, "USUAL_IMAGES", 120)
    ordered = data()
    order = np.argsort(ordered.labels["test"], kind="stable")
    ordered.images["test"] = ordered.images["test"][order]
    ordered.labels["test"] = ordered.labels["test"][order]
    images, labels = squares(120, 9)
    found = measured(subject(data=ordered), images, labels)
    assert found.metrics["classification_accuracy_score"] > 60
    mixed = torch.from_numpy(data().labels["test"])
    assert generation.spread_rows(mixed, 120, 0).tolist() == list(range(120))


@pytest.mark.parametrize("test", [True, False])
def test_validation_images_sorted_by_class_are_drawn_from(test: bool) -> None:
    """What generators are tuned by would else be the distance to one class, and copies of the
    others would have no neighbour among those held out."""
    ordered = data(train=480, validation=480)
    order = np.argsort(ordered.labels["val"], kind="stable")
    ordered.images["val"] = ordered.images["val"][order]
    ordered.labels["val"] = ordered.labels["val"][order]
    found = measured(subject(data=ordered, test=test), squares(120, 9)[0])
    usual = measured(subject(data=data(train=480, validation=480), test=test), squares(120, 9)[0])
    assert abs(found.validation["kid"] - usual.validation["kid"]) < 50
    copied = found.chosen["copies"]
    assert 35 < 100 * copied["auc"] < 65


def test_data_with_unlabeled_images_are_refused() -> None:
    asked = {"generation": {"extractor": "pixels"}}
    with pytest.raises(UserError, match="would train on the 100 unlabeled ones; leave generation"):
        evaluations.refuse_sizes(asked, 4000, 0, 100)
    evaluations.refuse_sizes({"knn": {}}, 4000, 0, 100)


def test_a_class_without_test_images_has_no_score_and_loses_nothing_else() -> None:
    lacking = data()
    kept = lacking.labels["test"] != 2
    for part in (lacking.images, lacking.labels):
        part["test"] = part["test"][kept]
    images, labels = squares(120, 9)
    found = measured(subject(data=lacking), images, labels)
    assert "classification_accuracy_score" not in found.metrics
    assert found.metrics["class_accuracy"] > 60
    assert "no classification accuracy score: no test image of class 2" in found.stamps


def test_fewer_samples_than_classes_have_no_class_accuracy_and_lose_nothing_else() -> None:
    images, labels = squares(120, 9)
    found = measured(subject(data=data()), images, np.zeros_like(labels))
    assert not any(name.startswith("class") for name in found.metrics)
    assert {"kid", "fd", "precision", "memorisation"} <= set(found.metrics)
    assert "no class accuracy: no sample of class 1, there are 120" in found.stamps


def test_a_closed_test_split_gives_validation_scores_alone() -> None:
    closed = subject(data=data(), test=False)
    found = measured(closed, squares(120, 9)[0])
    assert not found.metrics
    assert set(found.validation) == {"kid", "fd"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 50, "reference": 50}, "50 samples: a distance needs at least 1000"),
        ({"samples": 2000, "reference": 1000}, "2000 samples against 1000 reference images"),
        ({"extractor": "inceptoin"}, "did you mean inception"),
        ({"samples": 10, "reference": 10, "allow_small": True}, "at least 20"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluations.protocol("generation", {"extractor": "pixels"} | settings)


def test_calibration_tells_good_sets_from_bad_ones() -> None:
    judged = subject(data=data(train=1200, validation=120))
    seen = features.raw_pixels(judged.dataset, judged.split)
    floor = replace(judged, features=seen, load=None)
    protocol = evaluations.protocol(
        "calibration", {"samples": 120, "extractor": "pixels", "allow_small": True}
    )
    assert not protocol.applies(judged)
    (entry,) = judge.all_entries([protocol, PROTOCOL], floor, 0).values()
    found = entry["metrics"]
    assert found["one_class_kid"] > found["train_half_kid"] + 50
    for bad in ("one_class", "noise"):
        assert found[f"{bad}_fd"] > 1.2 * found["train_half_fd"], bad
    assert found["copied_fd"] < 1e-6 < found["train_half_fd"]
    assert found["copied_memorisation"] > 99
    assert found["test_memorisation"] < 60
    assert found["copied_class_accuracy"] > 99
    assert "one_class_class_accuracy" not in found  # most classes are not there to be named
    scores = {key.removesuffix(f"_{CAS}") for key in found if key.endswith(CAS)}
    assert scores == {"train_half", "copied", "blur", "noise", "jpeg"}  # test images teach of tests
    assert found[f"train_half_{CAS}"] > 2 * 100 / CLASSES


def test_beside_measures_the_same_samples_in_other_features(
    judged: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Samples(np.repeat(squares(120, 9)[0], 3, axis=1), None, {})
    beside = evaluations.protocol("generation_beside", SETTINGS)
    both = replace(judged, samples={PROTOCOL.hash: drawn, beside.hash: drawn})
    first, second = (p.evaluate(both, 0) for p in (PROTOCOL, beside))
    pixelwise = dict(first.metrics)
    assert 0 <= pixelwise.pop("memorisation") <= 100
    assert second.metrics == pixelwise  # in the same features, the same numbers
    assert second.validation == first.validation
    assert second.chosen["reference_sha256"] == first.chosen["reference_sha256"]
    assert beside.hash != PROTOCOL.hash
    monkeypatch.setattr(extractors, "named", lambda name: DARK)
    third = beside.evaluate(both, 0)
    assert third.chosen["extractor_sha256"] == DARK.sha256 != first.chosen["extractor_sha256"]
    assert third.metrics["fd"] != second.metrics["fd"]


def test_calibration_beside_is_of_the_very_same_sets() -> None:
    judged = subject(data=data(train=1200, validation=120))
    floor = replace(judged, features=features.raw_pixels(judged.dataset, judged.split), load=None)
    settings = {"samples": 120, "extractor": "pixels", "allow_small": True}
    names = ("calibration", "calibration_beside")
    protocols = [evaluations.protocol(name, settings) for name in names]
    first, second = judge.all_entries(protocols, floor, 0).values()
    assert second["metrics"] == first["metrics"]
    assert [first["id"], second["id"]] == list(names)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((1500, 5000), "2000 reference images of 1500 training images"),
        ((3000, 5000), "calibration sets of 2000 images: half of the 3000"),
        ((9000, 1000), "or the 1000 test images"),
    ],
)
def test_more_images_than_there_are_is_refused_before_a_run(sizes: tuple, said: str) -> None:
    for beside in ("", "_beside"):
        names = (f"generation{beside}", f"calibration{beside}")
        asked = {name: {"extractor": "pixels"} for name in names}
        with pytest.raises(UserError, match=said):
            evaluations.refuse_sizes(asked, *sizes)
        evaluations.refuse_sizes(asked, 4000, 0)
