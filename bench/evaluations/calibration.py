"""Calibration: sets of images whose quality is known, measured as `generation` measures samples.

Other training images and test images say how near a generator can come at this N; one class only,
blur, noise and JPEG what the numbers notice; the reference itself, in the place of samples, what a
copied training set looks like. Stands in the row of the harness's own floor, which has no backbone.
"""

from __future__ import annotations

import numpy as np

from bench import extractors
from bench.errors import UserError
from bench.evaluations import Evaluation, Subject, generation
from bench.identity import stream
from bench.metrics import calibration, frechet, kernel

ID = "calibration"
VERSION = 3  # 2: no metrics of classes; 1: one_class was another one with every seed
SETTINGS = {key: generation.SETTINGS[key] for key in ("samples", "extractor", "allow_small")}
NEEDS = "nothing"


def check(settings: dict) -> None:
    """Refuse what `generation` refuses."""
    generation.check(generation.SETTINGS | settings | {"reference": settings["samples"]})


def refuse_sizes(settings: dict, train: int, test: int) -> None:
    """Raise UserError if a set would have fewer images than samples; test is 0 if it is closed."""
    count = settings["samples"]
    if count > train // 2 or 0 < test < count:
        raise UserError(
            f"calibration sets of {count} images: half of the {train} training images, or the "
            f"{test} test images, are fewer; lower --samples, or leave calibration out"
        )


def evaluate(subject: Subject, settings: dict, seed: int) -> Evaluation:
    """Return every metric of `generation` for every set, `<set>_<metric>`; those of classes, by
    the images' own, for sets that have all of them.

    Where the test split is closed, validation images stand in its place.
    """
    extractor = extractors.named(settings["extractor"])
    train, labels = subject.images("train"), subject.features.train_labels
    split = "test" if subject.test else "validation"
    rows, sets = calibration.sets(
        train,
        labels.numpy(),
        subject.images(split),
        getattr(subject.features, f"{split}_labels").numpy(),
        count=settings["samples"],
        seed=stream(seed, "evaluate", ID, 0),
    )
    real = generation.seen(extractor, train[rows], subject)
    held = subject.images("validation")
    most = min(len(held), settings["samples"])
    some = generation.spread_rows(subject.features.validation_labels, most, seed)
    near = generation.seen(extractor, held[some], subject)
    metrics, scores, stamps = {}, {}, []
    if "one_class" not in sets:
        stamps.append(f"no set of one class: none has {-(-settings['samples'] // 2)} images left")
    for name, (images, classes) in sets.items():
        drawn = generation.seen(extractor, images, subject)
        found, said = generation.measure(drawn, real, seed=seed)
        if len(np.unique(classes)) == len(subject.dataset.class_names):
            more = generation.class_metrics(subject, extractor, drawn, classes, real, rows, seed)
            if name == "test":  # its images are among those that the score is over
                more[0].pop("classification_accuracy_score", None)
            found, said = found | more[0], said + more[1]
        copied = generation.copies(images, train, held, subject, seed)
        found["memorisation"] = 100.0 * copied.auc
        metrics |= {f"{name}_{metric}": value for metric, value in found.items()}
        stamps += [f"{name}: {remark}" for remark in said]
        count = min(len(near), len(drawn))
        scores[f"{name}_kid"] = generation.KID_SCALE * kernel.distance(drawn[:count], near[:count])
        scores[f"{name}_fd"] = frechet.distance(drawn[:count], near[:count])
    chosen = {"extractor_sha256": extractor.sha256}
    return Evaluation(metrics if subject.test else {}, scores, chosen, stamps=tuple(stamps))
