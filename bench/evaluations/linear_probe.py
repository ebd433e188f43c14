"""Linear probe: l2-regularised logistic regression on frozen features, chosen on validation.

Thirteen strengths of l2 are solved together on standardised features of the training images, for
every stage; the winner on validation is refitted on training and validation images and tested once.
Two columns: the last stage, and the best stage by validation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.evaluations import Evaluation
from bench.evaluations.logistic import Standardiser, solve, standardiser
from bench.evaluations.settings import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    refuse_no_interval,
    refuse_outside,
)
from bench.features import Features

ID = "linear_probe"
VERSION = 1
SETTINGS = {
    "l2_low": 1e-7,
    "l2_high": 1e1,
    "l2_count": 13,
    "extend_decades": 2,
    "extensions": 2,
    "gradient_norm": 1e-4,
    "max_iterations": 1000,
}
RANGES = {
    "l2_low": POSITIVE,
    "l2_high": POSITIVE,
    "l2_count": COUNT,
    "extend_decades": COUNT,
    "extensions": NOT_NEGATIVE,
    "gradient_norm": POSITIVE,
    "max_iterations": COUNT,
}


def check(settings: dict, name: str = ID) -> None:
    """Raise UserError if no l2 can be chosen, or none solved; `name` is that in messages."""
    refuse_outside(name, settings, RANGES)
    refuse_no_interval(name, settings)


def evaluate(features: Features, settings: dict, seed: int) -> Evaluation:
    """Return top-1 (and top-5 above five classes) of the last and of the best stage."""
    return probe(features, settings, standardiser)


def probe(
    features: Features, settings: dict, scaling: Callable[[Tensor], Standardiser]
) -> Evaluation:
    """Return the outcome with features (N, D) mapped as `scaling` of the fitted images says."""
    stamps: list[str] = []
    winners = {
        stage: _select(features, stage, settings, scaling, stamps)
        for stage in reversed(features.train)
    }
    best = max(winners, key=lambda stage: winners[stage][1])  # ties: the later stage
    chosen = {
        "last": {"l2": winners["last"][0]},
        "best": {"stage": best, "l2": winners[best][0]},
    }
    validation = {f"{stage}_top1": score for stage, (_, score) in reversed(winners.items())}
    validation["best_top1"] = winners[best][1]
    if features.test is None:
        return Evaluation({}, validation, chosen, stamps=tuple(stamps))
    metrics, predictions = {}, {}
    logits = {
        stage: _refit(features, stage, winners[stage][0], settings, scaling, stamps)
        for stage in dict.fromkeys(("last", best))
    }
    for column, stage in (("last", "last"), ("best", best)):
        top = logits[stage].topk(min(5, logits[stage].shape[1])).indices
        hits = top == features.test_labels[:, None]
        metrics[f"{column}_top1"] = 100.0 * int(hits[:, 0].sum()) / len(hits)
        if len(features.class_names) > 5:
            metrics[f"{column}_top5"] = 100.0 * int(hits.any(1).sum()) / len(hits)
        predictions[column] = top[:, 0].numpy()
    return Evaluation(metrics, validation, chosen, predictions, tuple(stamps))


def grid(settings: dict) -> list[float]:
    """Return the strengths of l2, ascending."""
    exponents = torch.linspace(
        _decade(settings["l2_low"]), _decade(settings["l2_high"]), settings["l2_count"]
    )
    return [float(f"{10**e:.6g}") for e in exponents.tolist()]


def _decade(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log10())


def _select(
    features: Features,
    stage: str,
    settings: dict,
    scaling: Callable[[Tensor], Standardiser],
    stamps: list[str],
) -> tuple[float, float]:
    """Return the l2 that is best on validation, and its accuracy in percent; ties: the larger."""
    scale = scaling(features.train[stage])
    if scale.dead:
        stamps.append(f"{stage}: {scale.dead} dead features dropped")
    train, validation = scale(features.train[stage]), scale(features.validation[stage])
    scores: dict[float, float] = {}
    unfinished: set[float] = set()
    strengths = grid(settings)
    for _ in range(settings["extensions"] + 1):
        solution = solve(
            train,
            features.train_labels,
            num_classes=len(features.class_names),
            l2=strengths,
            tolerance=settings["gradient_norm"],
            max_iterations=settings["max_iterations"],
        )
        guesses = solution.logits(validation).argmax(2)  # (L, N)
        hits = (guesses == features.validation_labels).float().mean(1) * 100
        scores |= dict(zip(strengths, hits.tolist(), strict=True))
        unfinished |= {
            l2 for l2, done in zip(strengths, solution.converged.tolist(), strict=True) if not done
        }
        winner = max(scores, key=lambda l2: (scores[l2], l2))
        if min(scores) < winner < max(scores):
            break
        strengths = _beyond(winner, winner == max(scores), settings["extend_decades"])
    else:
        stamps.append(f"{stage}: the best l2 = {winner:g} stands at the edge of the grid")
    if winner in unfinished:
        stamps.append(f"{stage}: not converged at l2 = {winner:g}")
    return winner, scores[winner]


def _beyond(edge: float, upwards: bool, decades: int) -> list[float]:
    sign = 1 if upwards else -1
    return [float(f"{edge * 10 ** (sign * step):.6g}") for step in range(1, decades + 1)]


def _refit(
    features: Features,
    stage: str,
    l2: float,
    settings: dict,
    scaling: Callable[[Tensor], Standardiser],
    stamps: list[str],
) -> Tensor:
    """Return test logits (N, C) of the probe fitted on training and validation images."""
    both = torch.cat([features.train[stage], features.validation[stage]])
    labels = torch.cat([features.train_labels, features.validation_labels])
    scale = scaling(both)
    solution = solve(
        scale(both),
        labels,
        num_classes=len(features.class_names),
        l2=[l2],
        tolerance=settings["gradient_norm"],
        max_iterations=settings["max_iterations"],
    )
    if not solution.converged.all():
        stamps.append(f"{stage}: refit not converged at l2 = {l2:g}")
    return solution.logits(scale(features.test[stage]))[0]
