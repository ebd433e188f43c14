"""Finetuning: the whole network, from the run's backbone and one linear layer on top of it.

Each rate of a small grid trains for the same number of images; the one that is best on validation
is tested, once and as it is, without a refit. Its control is training from scratch: the same
protocol on an untrained backbone, which is a board's random row.

AdamW, since one rule has to serve convolutions and transformers, and backbones whose weights and
features differ in scale with the method: its step does not grow with the gradient. Weight decay
0.05 on all but norms and biases, betas (0.9, 0.999), cosine after a short warm-up and, for ViTs,
smaller rates towards the input are what BEiT (Bao et al. 2022) and MAE (He et al. 2022,
Table 9; FINETUNE.md of its code) finetune with. The linear layer starts at zero, as SimCLR's code
does (`zero_init_logits_layer`). BatchNorm is in train mode, so its statistics follow the weights.

With `labels_per_class` = K, no label outside the first draw of `few_labels` is used (Oliver et al.
2018): the rate is chosen on a fifth of the draw and the whole draw is then trained on; below 5 per
class nothing can be held out and the middle rate is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from bench.evaluations import Evaluation, Subject, few_labels
from bench.evaluations.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range, refuse_outside
from bench.evaluations.training import accuracies, crop_and_flip, device_of, orders, predict, show
from bench.identity import stream

ID = "finetune"
VERSION = 1
NEEDS = "images"
SETTINGS = {
    "rates": [1e-3, 3e-3, 1e-2],
    "images_per_rate": 20_000,  # with gradients: 9 s of one core for 0.32 M parameters at 32 px
    "batch_size": 64,
    "warmup": 0.05,  # share of the steps
    "weight_decay": 0.05,
    "layer_decay": 1.0,  # 0.65 for ViT-B in MAE's code
    "crop_padding": 4,  # pixels of black around the image, of which a crop is taken
    "flip": False,
    "labels_per_class": 0,  # 0: all
}
RANGES = {
    "rates": POSITIVE,
    "images_per_rate": COUNT,
    "batch_size": Range(2),
    "warmup": Range(0, 1),
    "weight_decay": NOT_NEGATIVE,
    "layer_decay": Range(0, 1, above=True),
    "crop_padding": NOT_NEGATIVE,
    "labels_per_class": NOT_NEGATIVE,
}
FOLDS = 5  # of a draw of labels, of which one chooses the rate

Labelled = tuple[np.ndarray, Tensor]  # uint8 images (N, C, H, W), labels (N,)


def evaluate(subject: Subject, settings: dict, seed: int) -> Evaluation:
    """Return top-1 (and top-5 above five classes) at the rate chosen on validation.

    Ties go to the lower rate. A rate at which the loss is not finite is left out and stamped; where
    that leaves none, there is no number.
    """
    train: Labelled = (subject.images("train"), subject.features.train_labels)
    validation: Labelled = (subject.images("validation"), subject.features.validation_labels)
    rates, stamps = sorted(settings["rates"]), []

    def trained(images: Labelled, rate: float) -> nn.Module | None:
        backbone, classes = subject.backbone(), len(subject.features.class_names)
        model = train_at(rate, backbone, images, classes, subject.kind, settings, seed)
        if model is None:
            stamps.append(f"diverged at rate {rate:g}")
        return model

    if few := settings["labels_per_class"]:
        smallest = int(train[1].unique(return_counts=True)[1].min())
        if few > smallest:
            stamp = f"K = {few} skipped: the smallest class has {smallest} images"
            return Evaluation({}, {}, {}, stamps=(stamp,))
        drawn = few_labels.draw(train[1], few, 0).view(-1, few)  # (C, K)
        held = few // FOLDS
        if held:
            kept, choosing = _take(train, drawn[:, held:]), _take(train, drawn[:, :held])
            scores, _, rate = _best(trained, kept, choosing, rates, subject.kind)
        else:
            scores, rate = {}, rates[len(rates) // 2]
        model = trained(_take(train, drawn), rate) if rate else None
    else:
        scores, model, rate = _best(trained, train, validation, rates, subject.kind)
    if model is None:
        return Evaluation({}, {}, {}, stamps=tuple(stamps))
    found = accuracies(predict(model, validation[0], subject.kind), validation[1])
    found |= {f"rate{rate:g}_top1": score for rate, score in scores.items()}
    if not subject.test:
        return Evaluation({}, found, {"rate": rate}, stamps=tuple(stamps))
    logits = predict(model, subject.images("test"), subject.kind)
    return Evaluation(
        accuracies(logits, subject.features.test_labels),
        found,
        {"rate": rate},
        {"top1": logits.argmax(1).numpy()},
        tuple(stamps),
    )


def check(settings: dict) -> None:
    """Raise UserError if there is no rate, nothing to train on, or a setting is out of range."""
    refuse_outside(ID, settings, RANGES)


def _best(
    trained: Callable[[Labelled, float], nn.Module | None],
    train: Labelled,
    choosing: Labelled,
    rates: list[float],
    kind: str,
) -> tuple[dict[float, float], nn.Module | None, float | None]:
    """Return every rate's top-1 on the images that choose, and the best one's model and rate."""
    scores, best, chosen = {}, None, None
    for rate in rates:
        model = trained(train, rate)
        if model is not None:
            scores[rate] = accuracies(predict(model, choosing[0], kind), choosing[1])["top1"]
            if chosen is None or scores[rate] > scores[chosen]:
                best, chosen = model, rate
    return scores, best, chosen


def _take(images: Labelled, rows: Tensor) -> Labelled:
    rows = rows.flatten()
    return images[0][rows.numpy()], images[1][rows]


def train_at(
    rate: float,
    backbone: nn.Module,
    images: Labelled,
    num_classes: int,
    kind: str,
    settings: dict,
    seed: int,
) -> nn.Module | None:
    """Return the network trained at one rate, or None if its loss was not finite.

    All rates see the same images in the same order through the same views.
    """
    torch.manual_seed(stream(seed, "evaluate", ID, "forward"))  # dropped paths, where there are any
    generator = torch.Generator().manual_seed(stream(seed, "evaluate", ID, "order"))
    pixels, labels = images
    device = device_of(backbone)
    classifier = nn.Linear(backbone.num_features, num_classes).to(device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    model = nn.Sequential(backbone, classifier).float().to(memory_format=torch.channels_last)
    model.train()
    groups = parameter_groups(
        backbone, classifier, settings["weight_decay"], settings["layer_decay"]
    )
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    view = crop_and_flip(settings["crop_padding"], settings["flip"])
    size = min(settings["batch_size"], len(labels))
    steps = max(1, settings["images_per_rate"] // size)
    order = orders(len(labels), steps * size, generator).view(steps, size)
    broke = torch.zeros((), dtype=torch.bool, device=device)
    for step, rows in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"] * share_of_rate(step, steps, settings["warmup"])
        shown = show(pixels[rows.numpy()], kind, device, view, generator)
        loss = F.cross_entropy(model(shown), labels[rows].to(device))
        broke |= ~loss.detach().isfinite()
        if device.type != "cuda" and broke:  # on a card to look is to wait for it
            return None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return None if broke else model.eval()


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """Return the share of the rate at a step from 0: a linear rise, then half a cosine to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def parameter_groups(
    backbone: nn.Module, classifier: nn.Linear, weight_decay: float, layer_decay: float
) -> list[dict]:
    """Return the optimizer's groups, each with its `weight_decay` and `scale` of the rate.

    With timm's layers of the backbone, 0 to L - 1, and the classifier as layer L, layer i has the
    scale layer_decay^(L - i). Norms, biases and what the backbone itself exempts have no weight
    decay.
    """
    exempt = getattr(backbone, "no_weight_decay", lambda: ())()
    found = param_groups_layer_decay(
        backbone, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay
    )
    for group in found:
        group["lr_scale"] *= layer_decay  # timm's last layer has 1, and the classifier is above it
    found += [
        {"params": [classifier.weight], "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": [classifier.bias], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    merged: dict[tuple[float, float], dict] = {}
    for group in found:
        scale, decay = group["lr_scale"], group["weight_decay"]
        key = merged.setdefault(
            (scale, decay), {"params": [], "weight_decay": decay, "scale": scale}
        )
        key["params"] += group["params"]
    return list(merged.values())
