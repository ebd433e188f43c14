"""The papers' linear probe: many epochs of SGD over augmented images, for parity with them.

One linear layer on the frozen backbone, which stays in eval mode; every image is seen through a
random resized crop and a flip. Nothing is chosen: the last epoch is reported. `linear_probe` beside
it solves the same question without augmentation to its optimum, and is what boards rank by.

Papers differ, so two sets of settings are written out:

    MOCO    main_lincls.py of facebookresearch/moco (He et al. 2020, Section 4.1); the default.
    SIMCLR  README and model_util.py of google-research/simclr (Chen et al. 2020, Appendix B.6):
            rate 0.1 x batch / 256, cosine without warm-up, Nesterov momentum, a layer that starts
            at zero. On CIFAR-10 its README takes batches of 512, the rate 0.2, 100 epochs and no
            weight decay.

Both take crops of 8 to 100 % of the area. Published tables train on all training images, so a
parity track sets `train_on = "train+validation"`; validation then has no number of its own.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import augment
from bench.errors import UnknownName, UserError
from bench.evaluations import BackboneChanged, Evaluation, Subject
from bench.evaluations.settings import (
    COUNT,
    MOMENTUM,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    refuse_outside,
)
from bench.evaluations.training import accuracies, device_of, predict, show
from bench.identity import stream

ID = "linear_probe_sgd"
VERSION = 1
NEEDS = "images"
MOCO = {
    "rate": 30.0,
    "batch_size": 256,
    "epochs": 100,
    "schedule": "steps",
    "milestones": [60, 80],  # epochs from which the rate of "steps" is a tenth, a hundredth
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
    "weight_std": 0.01,  # of the layer at its start; biases start at 0
    "smallest_crop": 0.08,  # share of the area; the largest is 1
    "flip": True,
    "train_on": "train",
}
SIMCLR = MOCO | {
    "rate": 1.6,  # 0.1 x 4096 / 256
    "batch_size": 4096,
    "epochs": 90,
    "schedule": "cosine",
    "milestones": [],
    "nesterov": True,
    "weight_decay": 1e-6,
    "weight_std": 0.0,
}
SETTINGS = MOCO
RANGES = {
    "rate": POSITIVE,
    "batch_size": COUNT,
    "epochs": COUNT,
    "momentum": MOMENTUM,
    "weight_decay": NOT_NEGATIVE,
    "weight_std": NOT_NEGATIVE,
    "smallest_crop": Range(0, 1, above=True),
}
SCHEDULES = ("steps", "cosine")
TRAIN_ON = ("train", "train+validation")


def evaluate(subject: Subject, settings: dict, seed: int) -> Evaluation:
    """Return top-1 (and top-5 above five classes) after the last epoch; no number if it diverged.

    Raises:
        BackboneChanged: a weight or a statistic is not what it was before.
    """
    joined = settings["train_on"] == "train+validation"
    images, labels = subject.images("train", stored=True), subject.features.train_labels
    held = subject.features.validation_labels
    if joined and len(held):  # a parity track's training images are all there are
        images = np.concatenate([images, subject.images("validation", stored=True)])
        labels = torch.cat([labels, held])
    backbone = subject.backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    classes = len(subject.features.class_names)
    size = subject.image_size
    classifier = fit(backbone, images, labels, classes, subject.kind, settings, seed, size=size)
    if not classifier.weight.isfinite().all():
        return Evaluation({}, {}, {}, stamps=("diverged",))
    model, validation, metrics, predictions = nn.Sequential(backbone, classifier), {}, {}, {}
    if not joined:
        logits = predict(model, subject.images("validation"), subject.kind)
        validation = accuracies(logits, subject.features.validation_labels)
    if subject.test:
        logits = predict(model, subject.images("test"), subject.kind)
        metrics = accuracies(logits, subject.features.test_labels)
        predictions = {"top1": logits.argmax(1).numpy()}
    for name, value in backbone.state_dict().items():
        if not torch.equal(value, before[name]):
            raise BackboneChanged(f"{name} of the frozen backbone changed in {ID}")
    stamps = ("validation images are trained on",) if joined else ()
    return Evaluation(metrics, validation, {}, predictions, stamps)


def check(settings: dict) -> None:
    """Raise UserError if a setting names what does not exist, or is out of its range."""
    for key, known in (("schedule", SCHEDULES), ("train_on", TRAIN_ON)):
        if settings[key] not in known:
            raise UnknownName(f"{ID}.{key}", settings[key], known)
    milestones = {"milestones": COUNT} if settings["milestones"] else {}
    refuse_outside(ID, settings, RANGES | milestones)
    if settings["nesterov"] and not settings["momentum"]:
        raise UserError(f"{ID}.nesterov needs momentum, which is 0; raise it, or nesterov = false")


def fit(
    backbone: nn.Module,
    images: np.ndarray,
    labels: Tensor,
    num_classes: int,
    kind: str,
    settings: dict,
    seed: int,
    *,
    size: int | None = None,
) -> nn.Linear:
    """Return the linear layer after the last epoch; the backbone is left in eval mode.

    Args:
        size: side of the crops in pixels; None: the images'.
    """
    torch.manual_seed(stream(seed, "evaluate", ID, "init"))
    generator = torch.Generator().manual_seed(stream(seed, "evaluate", ID, "order"))
    device = device_of(backbone)
    backbone.eval().requires_grad_(False).float().to(memory_format=torch.channels_last)
    classifier = nn.Linear(backbone.num_features, num_classes).to(device)
    nn.init.normal_(classifier.weight, std=settings["weight_std"])
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=settings["rate"],
        momentum=settings["momentum"],
        nesterov=settings["nesterov"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    view = augment.random_resized_crop(size, scale=(settings["smallest_crop"], 1.0))
    if settings["flip"]:
        view = augment.compose(view, augment.horizontal_flip())
    per_epoch = -(-len(labels) // settings["batch_size"])
    for epoch in range(settings["epochs"]):
        order = torch.randperm(len(labels), generator=generator)
        for step, rows in enumerate(order.split(settings["batch_size"])):
            optimizer.param_groups[0]["lr"] = rate_at(epoch, step / per_epoch, settings)
            shown = show(images[rows.numpy()], kind, device, view, generator)
            with torch.no_grad():
                features = backbone(shown)
            loss = F.cross_entropy(classifier(features), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier


def rate_at(epoch: int, share: float, settings: dict) -> float:
    """Return the learning rate in an epoch from 0, `share` of which is over."""
    rate = settings["rate"]
    if settings["schedule"] == "steps":
        return rate * 0.1 ** sum(epoch >= milestone for milestone in settings["milestones"])
    return rate * 0.5 * (1 + math.cos(math.pi * (epoch + share) / settings["epochs"]))
