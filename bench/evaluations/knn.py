"""Weighted nearest neighbours by cosine similarity (Wu et al. 2018, Section 3.4).

Each of the k most similar training images votes for its class with exp(similarity / temperature).
The bank is the training set without validation, both to choose k and to test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.evaluations import Evaluation
from bench.evaluations.settings import COUNT, POSITIVE, refuse_outside
from bench.features import Features

ID = "knn"
VERSION = 1
SETTINGS = {"k": [1, 5, 10, 20, 50, 100, 200], "k_beside": 20, "temperature": 0.07}
SIMILARITIES = 1 << 24  # held at once: 64 MiB


def check(settings: dict) -> None:
    """Raise UserError if there is no k, or no neighbour to count."""
    refuse_outside(ID, settings, {"k": COUNT, "k_beside": COUNT, "temperature": POSITIVE})


def evaluate(features: Features, settings: dict, seed: int) -> Evaluation:
    """Return top-1 with k chosen on validation (ties: the smaller), and with k = 20 beside it."""
    bank = torch.nn.functional.normalize(features.train["last"])
    labels, classes = features.train_labels, len(features.class_names)
    ks = sorted({min(k, len(bank)) for k in [*settings["k"], settings["k_beside"]]})
    beside = min(settings["k_beside"], len(bank))
    candidates = sorted({min(k, len(bank)) for k in settings["k"]})

    def predict(queries: Tensor) -> dict[int, Tensor]:
        return votes(queries, bank, labels, classes, ks, settings["temperature"])

    best, validation = candidates[0], {}
    if len(features.validation_labels):  # a parity track has none, and one k
        guesses = predict(features.validation["last"])
        scores = {k: accuracy(guesses[k], features.validation_labels) for k in ks}
        best = max(candidates, key=lambda k: (scores[k], -k))
        validation = {f"k{k}_top1": scores[k] for k in ks} | {"top1": scores[best]}
    if features.test is None:
        return Evaluation({}, validation, {"k": best})
    tested = predict(features.test["last"])
    columns = {"top1": tested[best], "k20_top1": tested[beside]}
    metrics = {name: accuracy(p, features.test_labels) for name, p in columns.items()}
    predictions = {name: p.numpy() for name, p in columns.items()}
    return Evaluation(metrics, validation, {"k": best}, predictions)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return top-1 accuracy in percent."""
    return 100.0 * int((predictions == labels).sum()) / len(labels)


def votes(
    queries: Tensor, bank: Tensor, labels: Tensor, classes: int, ks: list[int], temperature: float
) -> dict[int, Tensor]:
    """Return the predicted classes (N,) of `queries` (N, D) for every k, from one pass.

    Args:
        bank: (M, D), rows of length 1.
        ks: ascending, none above M.
    """
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    chunk = max(64, SIMILARITIES // len(bank))
    for rows in torch.nn.functional.normalize(queries).split(chunk):
        similarity, index = (rows @ bank.T).topk(ks[-1])  # (B, K), most similar first
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        neighbours = labels[index]
        total, start = weights.new_zeros(len(rows), classes), 0
        for k in ks:
            total.scatter_add_(1, neighbours[:, start:k], weights[:, start:k])
            found[k].append(total.argmax(1))
            start = k
    return {k: torch.cat(parts) for k, parts in found.items()}
