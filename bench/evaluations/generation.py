"""Generation: how far a method's samples lie from training images, in features of a pinned network.

Headline below 10,000 samples: the kernel distance ("KID", Binkowski et al. 2018), which is
unbiased. Beside it the Frechet distance at equal N, its extrapolation to infinite N, the same
along 64 directions of the reference, precision and recall (Kynkaanniemi et al. 2019), density and
coverage (Naeem et al. 2020), and whether training images were copied. Samples and reference images
are equal in number, or refused; so are fewer than 1,000 of them, unless `allow_small` says so in
the name.

The reference are training images, fixed by a hash of their rows; tuning scores the distance to the
validation images. Copies are looked for among all training images, mirrored ones too, by pixels
averaged to 16 x 16; what is usual is told by test images, or where the test split is closed by one
half of the validation images against the other. Of a method that reconstructs,
`reconstruction_fd` is the Frechet distance of the reference to its own reconstructions.

Conditional methods are asked for each class equally often. `class_accuracy` is that of a logistic
classifier fitted on the reference's features, `class_accuracy_least` its worst class; the
classification accuracy score (Ravuri & Vinyals 2019) is that of one fitted on samples, on test
images: one prototype a class scores 100 in the first and fails the second.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from bench import extractors
from bench.errors import UserError
from bench.evaluations import Evaluation, Subject
from bench.evaluations.logistic import solve, standardiser
from bench.extractors import Extractor
from bench.features import coarse
from bench.identity import stream
from bench.metrics import classes, coverage, frechet, kernel, memorisation
from bench.metrics.names import LEAST_SAMPLES, MEMORISED
from bench.sampling import Samples, reference_rows

ID = "generation"
VERSION = 1
SETTINGS = {
    "samples": 2000,
    "reference": 2000,
    "extractor": "efficientnet_lite0",
    "sampling": {},
    "allow_small": False,
}
NEEDS = "samples"
KID_SCALE = 1000.0  # the papers' unit: KID x 1000
USUAL_IMAGES = 2000  # test images that say what is usual, and that a score is over
USUAL_PER_CLASS = 20  # of these, of each of more than a hundred classes
CLASSIFIER_L2 = 1e-2  # of the independent classifier, the constant of `few_labels`


def check(settings: dict) -> None:
    """Refuse settings whose numbers mean nothing.

    Raises:
        UserError: unequal numbers of samples and reference images, fewer than 1,000 of them without
            `allow_small`, or an extractor that is unknown or not installed.
    """
    samples, reference = settings["samples"], settings["reference"]
    if samples != reference:
        raise UserError(
            f"{samples} samples against {reference} reference images: distances are biased by "
            "their number; give both the same"
        )
    least = 20 if settings["allow_small"] else LEAST_SAMPLES
    if samples < least:
        said = "" if settings["allow_small"] else ", or --allow-small, which the column then says"
        raise UserError(f"{samples} samples: a distance needs at least {least}{said}")
    extractors.named(settings["extractor"])


def refuse_sizes(settings: dict, train: int, test: int) -> None:
    """Raise UserError if there are fewer training images than the reference takes."""
    if settings["reference"] > train:
        raise UserError(
            f"{settings['reference']} reference images of {train} training images; lower samples "
            "and reference to what there is"
        )


def evaluate(subject: Subject, samples: Samples, settings: dict, seed: int) -> Evaluation:
    """Return the distances of samples to training images, and what else is known of them.

    Metrics: `kid` (x 1000) with `kid_low` and `kid_high` over blocks, `fd`, `fd_limit` with
    `fd_residual`, `fd64`; `precision`, `recall`, `density`, `coverage` and `memorisation` (the
    chance that a sample lies nearer to training than an unseen image does; 50 is honest) in
    percent. `validation` has `kid` and `fd` against validation images, as many as there are of them
    or of samples.
    """
    found = in_features(subject, samples, settings, seed)
    train, held = subject.images("train"), subject.images("validation")
    copied = copies(samples.images, train, held, subject, seed)
    stamps = list(found.stamps)
    if copied.accused:
        stamps.append(
            f"{MEMORISED}: {copied.leading} of {len(samples.images)} samples lie nearer to a "
            f"training image than any unseen image does; AUC {copied.auc:.2f}"
        )
    metrics = found.metrics | {"memorisation": 100.0 * copied.auc} if subject.test else {}
    chosen = found.chosen | {"copies": asdict(copied)}
    return Evaluation(metrics, found.validation, chosen, stamps=tuple(stamps))


def in_features(subject: Subject, samples: Samples, settings: dict, seed: int) -> Evaluation:
    """Return all that is measured in the features of the settings' extractor."""
    extractor = extractors.named(settings["extractor"])
    train, held = subject.images("train"), subject.images("validation")
    rows = reference_rows(len(train), settings["reference"], seed)
    real = seen(extractor, train[rows], subject)
    drawn = seen(extractor, samples.images, subject)
    scores = {}
    if len(held):
        count = min(len(held), len(drawn))
        near = seen(
            extractor, held[spread_rows(subject.features.validation_labels, count, seed)], subject
        )
        scores["kid"] = KID_SCALE * kernel.distance(drawn[:count], near)
        scores["fd"] = frechet.distance(drawn[:count], near)
    metrics, stamps = measure(drawn, real, seed=seed)
    if samples.labels is not None:
        found, said = class_metrics(subject, extractor, drawn, samples.labels, real, rows, seed)
        metrics |= found
        stamps += said
    if samples.reconstructions is not None:
        again = seen(extractor, samples.reconstructions, subject)
        metrics["reconstruction_fd"] = frechet.distance(again, real)
    if extractor.trained_on and extractor.trained_on == subject.dataset.sha256:
        stamps.append(f"{extractor.name} was trained on images of this data set")
    chosen = {
        "sampling": samples.sampling,
        "extractor_sha256": extractor.sha256,
        "reference_sha256": hashlib.sha256(np.ascontiguousarray(train[rows])).hexdigest(),
    }
    return Evaluation(metrics if subject.test else {}, scores, chosen, stamps=tuple(stamps))


def seen(extractor: Extractor, images: np.ndarray, subject: Subject) -> Tensor:
    """Return features (N, D) of uint8 images (N, C, H, W), gray ones as three equal channels."""
    if images.shape[1] == 1:
        images = np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
    return extractors.features(extractor, images, cache=subject.cache)


def class_metrics(
    subject: Subject,
    extractor: Extractor,
    drawn: Tensor,
    asked: np.ndarray,
    real: Tensor,
    rows: np.ndarray,
    seed: int,
) -> tuple[dict[str, float], list[str]]:
    """Return what two classifiers say of samples that were drawn for classes, in percent, and a
    remark where one of them cannot be asked."""
    labels, count = torch.from_numpy(asked), len(subject.dataset.class_names)
    if missing := sorted(set(range(count)) - set(asked.tolist())):
        return {}, [f"no class accuracy: no sample of class {missing[0]}, there are {len(asked)}"]
    scale = standardiser(real)
    solution = solve(
        scale(real), subject.features.train_labels[rows], num_classes=count, l2=[CLASSIFIER_L2]
    )
    named = classes.accuracy(solution.logits(scale(drawn))[0].argmax(1), labels, num_classes=count)
    found = {"class_accuracy": named.top1, "class_accuracy_least": named.least}
    split = "test" if subject.test else "validation"
    known = getattr(subject.features, f"{split}_labels")
    shown = spread_rows(known, max(USUAL_IMAGES, USUAL_PER_CLASS * count), seed)
    if absent := sorted(set(range(count)) - set(known[shown].tolist())):
        return found, [f"no classification accuracy score: no {split} image of class {absent[0]}"]
    score = classes.accuracy_score(
        drawn,
        labels,
        seen(extractor, subject.images(split)[shown], subject),
        known[shown],
        num_classes=count,
        seed=stream(seed, "evaluate", ID, 4),
    )
    return found | {"classification_accuracy_score": score.accuracy.top1}, []


def spread_rows(labels: Tensor, count: int, seed: int) -> np.ndarray:
    """Return which of some images stand for all, ascending: the first `count`, or where these lack
    a class, as in a folder sorted by class, as many drawn by the seed."""
    if len(labels[:count].unique()) == len(labels.unique()):
        return np.arange(min(count, len(labels)))
    order = np.random.default_rng(stream(seed, "evaluate", ID, 5)).permutation(len(labels))
    return np.sort(order[:count])


def measure(drawn: Tensor, real: Tensor, *, seed: int) -> tuple[dict[str, float], list[str]]:
    """Return the metrics of features (N, D) against as many of real images, and remarks on them."""
    near = kernel.interval(drawn, real, seed=stream(seed, "evaluate", ID, 1))
    line = frechet.extrapolate(drawn, real, seed=stream(seed, "evaluate", ID, 2))
    shares = coverage.measure(drawn, real)
    found = {
        "kid": KID_SCALE * near.value,
        "kid_low": KID_SCALE * near.low,
        "kid_high": KID_SCALE * near.high,
        "fd": line.distances[0],
        "fd_limit": line.limit,
        "fd_residual": line.residual,
        "precision": 100.0 * shares.precision,
        "recall": 100.0 * shares.recall,
        "density": 100.0 * shares.density,
        "coverage": 100.0 * shares.coverage,
    }
    try:
        along = frechet.principal_directions(real)
    except ValueError as error:
        return found, [f"no fd64: {error}"]
    found["fd64"] = frechet.distance(along(drawn), along(real))
    return found, []


def copies(
    drawn: np.ndarray, train: np.ndarray, held: np.ndarray, subject: Subject, seed: int
) -> memorisation.Copies:
    """Return how samples lie between training and held-out images, beside images that no method
    has seen."""
    if subject.test:
        order = np.random.default_rng(stream(seed, "evaluate", ID, 3))
        test = subject.images("test")
        usual = test[np.sort(order.permutation(len(test))[:USUAL_IMAGES])]
    else:
        rows = spread_rows(subject.features.validation_labels, len(held) // 2, seed)
        held, usual = held[rows], np.delete(held, rows, axis=0)
    channels = train.shape[1]
    return memorisation.copies(
        coarse(drawn, channels).flatten(1),
        memorisation.mirrored(coarse(train, channels)),
        memorisation.mirrored(coarse(held, channels)),
        coarse(usual, channels).flatten(1),
    )
