"""RotNet's classifier: a small non-linear network on the flattened map of each frozen stage.

Gidaris et al. 2018, Section 3.1 and Table 1. From their code (gidariss/FeatureLearningRotNet):
two hidden layers, each linear, BatchNorm and ReLU, then a linear layer; 20 units per class, at most
2048, and weights drawn with variance 2 / outputs (architectures/NonLinearClassifier.py, MultLayer);
SGD with Nesterov momentum and the rate 0.1, 0.02, 0.004, 0.0008 until epochs 20, 40, 45, 50
(config/CIFAR10_MultLayerClassifier_on_RotNet_NIN4blocks_Conv2_feats.py).

It sees where things are, and it is not linear: its numbers belong to no column of a linear probe.
Every stage is trained alone; the best is the best on validation after the last epoch. The authors'
code differs in three points. It shows cropped and flipped images (`crop_padding = 4` and `flip =
true`, with which the maps are computed anew each epoch); it goes on at the last rate to epoch 100
(`epochs`); and it reports the epoch that is best on test, which no setting here does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import augment, backbones
from bench.errors import UserError
from bench.evaluations import Evaluation, Subject
from bench.evaluations.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range, refuse_outside
from bench.evaluations.training import BATCH, crop_and_flip, device_of, show
from bench.identity import stream

ID = "mlp_probe_spatial"
VERSION = 1
NEEDS = "images"
SETTINGS = {
    "units_per_class": 20,
    "units_at_most": 2048,
    "pooled_to": 0,  # side to which maps are averaged before; 0: as they are
    "rates": [0.1, 0.02, 0.004, 0.0008],
    "until": [20, 40, 45, 50],  # epochs
    "epochs": 50,
    "batch_size": 128,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "crop_padding": 0,
    "flip": False,
}
RANGES = {
    "units_per_class": COUNT,
    "units_at_most": COUNT,
    "pooled_to": NOT_NEGATIVE,
    "rates": POSITIVE,
    "until": COUNT,
    "epochs": COUNT,
    "batch_size": Range(2),  # BatchNorm has no variance of one image
    "momentum": Range(0, 1, above=True, below=True),  # Nesterov's
    "weight_decay": NOT_NEGATIVE,
    "crop_padding": NOT_NEGATIVE,
}
CACHE_BYTES = 2**30  # a stage's maps of all training images are kept up to here, else made anew


def check(settings: dict) -> None:
    """Raise UserError if a rate lacks its last epoch, or a setting is out of its range."""
    refuse_outside(ID, settings, RANGES)
    rates, until = settings["rates"], settings["until"]
    if len(rates) != len(until):
        raise UserError(f"{ID}.rates and {ID}.until differ in length; give every rate its epoch")
    if sorted(set(until)) != until:
        raise UserError(f"{ID}.until is {until!r}; expected epochs that rise")


def evaluate(subject: Subject, settings: dict, seed: int) -> Evaluation:
    """Return top-1 of every stage after the last epoch, and of the best by validation."""
    backbone, kind, side = subject.backbone(), subject.kind, settings["pooled_to"]
    backbone.eval().requires_grad_(False).float().to(memory_format=torch.channels_last)
    images, labels = subject.images("train"), subject.features.train_labels
    validation, metrics, predictions = {}, {}, {}
    for stage in maps(backbone, images[:2], kind, side):
        probe = fit(
            backbone, stage, images, labels, len(subject.features.class_names), kind, settings, seed
        )
        guesses = classify(backbone, stage, probe, subject.images("validation"), kind, side)
        hits = guesses == subject.features.validation_labels
        validation[f"{stage}_top1"] = 100.0 * int(hits.sum()) / len(hits)
        if subject.test:
            guesses = classify(backbone, stage, probe, subject.images("test"), kind, side)
            hits = guesses == subject.features.test_labels
            metrics[f"{stage}_top1"] = 100.0 * int(hits.sum()) / len(hits)
            predictions[stage] = guesses.numpy()
    best = max(reversed(validation), key=validation.get)  # ties: the later stage
    stage = best.removesuffix("_top1")
    validation["best_top1"] = validation[best]
    if subject.test:
        metrics["best_top1"], predictions["best"] = metrics[best], predictions[stage]
    return Evaluation(metrics, validation, {"best": {"stage": stage}}, predictions)


@torch.no_grad()
def maps(
    backbone: nn.Module,
    images: np.ndarray,
    kind: str,
    side: int,
    view: augment.View | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the stages' maps of uint8 images, flattened: float32 (B, D).

    Args:
        side: of the grid to which maps (B, C, h, w) are averaged before; 0: as they are.
        view: the images are seen through it; it draws from `generator`.
    """
    shown = show(images, kind, device_of(backbone), view, generator)
    found = {}
    for stage, values in backbones.stage_maps(backbone, shown).items():
        if side and values.ndim == 4:
            values = F.adaptive_avg_pool2d(values, side)
        found[stage] = values.flatten(1)
    return found


@torch.no_grad()
def classify(
    backbone: nn.Module, stage: str, probe: nn.Module, images: np.ndarray, kind: str, side: int
) -> Tensor:
    """Return the classes (N,) of uint8 images on the CPU; the probe is left in eval mode."""
    probe.eval()
    guesses = [
        probe(maps(backbone, images[start : start + BATCH], kind, side)[stage]).argmax(1).cpu()
        for start in range(0, len(images), BATCH)
    ]
    return torch.cat(guesses)


def fit(
    backbone: nn.Module,
    stage: str,
    images: np.ndarray,
    labels: Tensor,
    num_classes: int,
    kind: str,
    settings: dict,
    seed: int,
) -> nn.Sequential:
    """Return the classifier of one stage's maps after the last epoch.

    A last batch of one image is left out, since BatchNorm has no variance of it.
    """
    torch.manual_seed(stream(seed, "evaluate", ID, "init", stage))
    generator = torch.Generator().manual_seed(stream(seed, "evaluate", ID, "order", stage))
    device, side = device_of(backbone), settings["pooled_to"]
    view = crop_and_flip(settings["crop_padding"], settings["flip"])
    size = maps(backbone, images[:1], kind, side)[stage].shape[1]
    kept = None
    if view is None and 4 * size * len(images) <= CACHE_BYTES:
        kept = torch.empty(len(images), size, device=device)
        for start in range(0, len(images), BATCH):
            batch = maps(backbone, images[start : start + BATCH], kind, side)[stage]
            kept[start : start + BATCH] = batch
    units = min(settings["units_per_class"] * num_classes, settings["units_at_most"])
    probe = classifier(size, units, num_classes).to(device).train()
    optimizer = torch.optim.SGD(
        probe.parameters(),
        lr=settings["rates"][0],
        momentum=settings["momentum"],
        nesterov=True,
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    for epoch in range(settings["epochs"]):
        optimizer.param_groups[0]["lr"] = rate_at(epoch, settings["rates"], settings["until"])
        order = torch.randperm(len(labels), generator=generator)
        for rows in order.split(settings["batch_size"]):
            if len(rows) == 1:
                continue
            if kept is None:
                seen = maps(backbone, images[rows.numpy()], kind, side, view, generator)[stage]
            else:
                seen = kept[rows.to(device)]
            loss = F.cross_entropy(probe(seen), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return probe.eval()


def classifier(size: int, units: int, num_classes: int) -> nn.Sequential:
    """Return RotNet's classifier of flat maps (B, size), drawn from torch's generator."""
    probe = nn.Sequential(
        nn.Linear(size, units, bias=False),
        nn.BatchNorm1d(units),
        nn.ReLU(),
        nn.Linear(units, units, bias=False),
        nn.BatchNorm1d(units),
        nn.ReLU(),
        nn.Linear(units, num_classes),
    )
    for layer in probe:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.out_features))
    nn.init.zeros_(probe[-1].bias)
    return probe


def rate_at(epoch: int, rates: list[float], until: list[int]) -> float:
    """Return the rate of an epoch from 0: the first whose `until` is above it, else the last."""
    return next((rate for rate, end in zip(rates, until, strict=True) if epoch < end), rates[-1])
