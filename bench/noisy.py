"""How noisy the images are that a backbone trained on noise is shown: chosen on validation.

A network that learnt to predict noise knows images at every level of it, and what a probe finds in
its features depends on the level (Baranchuk et al. 2022; Xiang et al. 2023). The harness chooses it
for every such method in the same way, on validation labels alone, before any protocol runs.
Protocols of scarce labels have the constant level instead: a choice would have seen other labels.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench import features
from bench.evaluations.knn import accuracy, votes

if TYPE_CHECKING:
    from bench.data import Dataset, Split
    from bench.evaluations import Protocol, Subject

STEPS = (0, 25, 50, 100, 200, 400)  # of the linear schedule of 1,000, from least noise to most
USUAL = 50  # where there is no validation split to choose on, or no label for a choice
MOST = 2000  # training and validation images that the choice looks at
NEIGHBOURS = 20


def resolve(kind: str, backbone: nn.Module, dataset: Dataset, split: Split) -> str:
    """Return "noisy(t)" for the input kind "noisy", any other kind as it is.

    t is the one of STEPS at which nearest neighbours (k = 20, at most 2,000 training images) name
    most of at most 2,000 validation images rightly, by the best stage; ties: the least noise.
    """
    if kind != "noisy":
        return kind
    if not len(split.val):
        return f"noisy({USUAL})"
    scores = {step: _score(f"noisy({step})", backbone, dataset, split) for step in STEPS}
    return f"noisy({max(STEPS, key=lambda step: (scores[step], -step))})"


def level(protocol: Protocol, kind: str) -> str:
    """Return the input kind at which a protocol sees a backbone whose chosen one is `kind`."""
    return f"noisy({USUAL})" if protocol.label_scarce and kind.startswith("noisy(") else kind


def seen_by(protocols: list[Protocol], subject: Subject, backbone: nn.Module) -> dict[str, Subject]:
    """Return what each protocol is shown, by its hash: the subject, or one at another level."""
    at = {subject.kind: subject}
    for kind in {level(protocol, subject.kind) for protocol in protocols} - set(at):
        found = features.extract(
            backbone, subject.dataset, subject.split, kind=kind, test=subject.test
        )
        at[kind] = dataclasses.replace(subject, features=found, kind=kind)
    return {protocol.hash: at[level(protocol, subject.kind)] for protocol in protocols}


def _score(kind: str, backbone: nn.Module, dataset: Dataset, split: Split) -> float:
    parts = []
    for source, rows in (("train", split.train), ("val" if split.own else "train", split.val)):
        some = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]
        labels = torch.from_numpy(np.array(dataset.labels[source][some])).long()
        images = features.Rows(dataset.images[source], some)
        parts.append((features.embed(backbone, images, kind=kind), labels))
    (bank, named), (queries, labels) = parts
    count = min(NEIGHBOURS, len(named))
    classes = len(dataset.class_names)
    found = [
        votes(queries[stage], F.normalize(values), named, classes, [count], 0.07)[count]
        for stage, values in bank.items()
    ]
    return max(accuracy(guesses, labels) for guesses in found)


def store_plain(
    entries: dict[str, dict[str, Any]],
    protocols: list[Protocol],
    subject: Subject,
    backbone: nn.Module,
    seed: int,
) -> None:
    """Add to the entries over features of another input than rgb which it was, and the plain
    numbers.

    `chosen` gets "input", as in noisy(50) or gray3, and "rgb": validation and metrics of the same
    protocol over images as they are.
    """
    seen = features.extract(backbone, subject.dataset, subject.split, test=subject.test)
    plain = dataclasses.replace(subject, features=seen, kind="rgb")
    for protocol in protocols:
        if protocol.hash not in entries or protocol.needs != "features":
            continue
        found = protocol.evaluate(plain, seed)
        numbers = {"validation": found.validation, "metrics": found.metrics}
        shown = level(protocol, subject.kind)
        entries[protocol.hash]["chosen"] |= {"input": shown, "rgb": numbers}
