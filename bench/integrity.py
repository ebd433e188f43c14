"""Is the backbone what it is said to be, and are its features functions of the image alone?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from bench import backbones
from bench.data import Dataset, Split
from bench.evaluations.logistic import solve, standardiser
from bench.features import Features, embed
from bench.identity import stream

SAMPLE = 64
TOLERANCE = 1e-4  # of the features' std
ROUNDING = (
    32 * torch.finfo(torch.float32).eps
)  # of the largest feature: all that a collapsed one has
SHUFFLES = 5
SHUFFLED_IMAGES = 5000  # enough training images to find a leak


class IntegrityError(Exception):
    """The artifact is not a backbone of the given architecture with the recorded bytes."""


def load_backbone(
    spec: dict[str, Any], image_size: int, path: Path, sha256: str, *, device: str = "cpu"
) -> nn.Module:
    """Return the backbone of `spec` with the weights at `path`; keys, shapes, types must match.

    Args:
        device: where it then is, and with it all that evaluations compute by it.

    Raises:
        IntegrityError: no file, other bytes than recorded, or weights of another backbone.
    """
    if not path.is_file():
        raise IntegrityError(f"{path.name} is missing")
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise IntegrityError(f"{path.name} hashes to {actual[:10]}, recorded is {sha256[:10]}")
    backbone = backbones.build(spec, image_size)
    try:
        weights = load(content)
    except SafetensorError as error:
        raise IntegrityError(f"{path.name} is no safetensors file: {error}") from None
    _load_strictly(backbone, weights)
    return backbone.to(device)


def loader(spec: dict[str, Any], path: Path, sha256: str, device: str) -> Callable[[], nn.Module]:
    """Return what makes a copy of a run's backbone each time that it is called."""
    where = (spec["backbone"], spec["image_size"], path, sha256)
    return partial(load_backbone, *where, device=device)


def _load_strictly(backbone: nn.Module, weights: dict[str, Tensor]) -> None:
    expected = backbone.state_dict()
    faults = [f"missing {key}" for key in expected if key not in weights]
    faults += [f"unexpected {key}" for key in weights if key not in expected]
    faults += [
        f"{key} is {_form(weights[key])}, expected {_form(expected[key])}"
        for key in expected
        if key in weights and _form(weights[key]) != _form(expected[key])
    ]
    if faults:
        shown = ", ".join(faults[:5]) + (f" and {len(faults) - 5} more" if faults[5:] else "")
        raise IntegrityError(f"the weights do not fit the backbone: {shown}")
    if any(not w.isfinite().all() for w in weights.values() if w.is_floating_point()):
        raise IntegrityError("the weights hold non-finite numbers")
    backbone.load_state_dict(weights, strict=True)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def weights_sha256(backbone: nn.Module) -> str:
    """Return the sha256 of the backbone's weights as a safetensors file."""
    state = {name: t.detach().cpu().contiguous() for name, t in backbone.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


def check(
    backbone: nn.Module,
    sha256: str,
    dataset: Dataset,
    split: Split,
    features: Features,
    *,
    seed: int,
    kind: str = "rgb",
) -> list[str]:
    """Return what is wrong, a line each; nothing when the row is sound.

    Checked: the weights are what they were before the evaluations; features do not depend on batch
    size or order; a probe of shuffled labels finds nothing (validation only, or training images
    set aside where there is none).
    """
    faults = []
    if weights_sha256(backbone) != sha256:
        faults.append("the backbone's weights changed during evaluation")
    faults += batch_dependence(backbone, dataset.images["train"][split.train[:SAMPLE]], kind)
    fault = shuffled_probe(features, seed)
    return [*faults, fault] if fault else faults


def batch_dependence(backbone: nn.Module, images: np.ndarray, kind: str) -> list[str]:
    """Return a line per stage and cause if features change with the batch's size or order."""
    whole = embed(backbone, images, kind=kind, batch_size=len(images))
    small = embed(backbone, images, kind=kind, batch_size=7)
    turned = embed(backbone, images[::-1], kind=kind, batch_size=len(images))
    found = []
    for stage, values in whole.items():  # (B, D)
        std = values.std(0).square().mean().sqrt()
        limit = TOLERANCE * std + ROUNDING * values.abs().max()
        for what, other in (("size", small[stage]), ("order", turned[stage].flip(0))):
            difference = (values - other).abs().max()
            if not difference <= limit:
                share = f"{float(difference / std):.1e} of their std"
                found.append(f"{stage} features depend on the batch's {what}: {share}")
    return found


def shuffled_probe(
    features: Features, seed: int, probe: Callable[[Features], float] | None = None
) -> str:
    """Return a line if a probe on shuffled labels beats chance by over 3 binomial sigma.

    Labels are shuffled on both sides. With validation labels as they are, good features would fail:
    each tight cluster gets some class from the shuffled training labels, and all of its images are
    right at once. Of five shuffles the mean counts: a sound row fails less than once in a million.

    Args:
        probe: from features (without a test split) to validation accuracy, 0 to 1.
    """
    if len(features.validation_labels) == 0:  # a parity track
        features = _set_aside(features, seed)
    held = features.validation_labels
    scores = []
    for draw in range(SHUFFLES):
        generator = torch.Generator().manual_seed(stream(seed, "evaluate", "shuffled", draw))
        rows = torch.randperm(len(features.train_labels), generator=generator)[:SHUFFLED_IMAGES]
        order = torch.randperm(len(rows), generator=generator)
        turned = torch.randperm(len(held), generator=generator)
        shuffled = replace(
            features,
            train={"last": features.train["last"][rows]},
            train_labels=features.train_labels[rows][order],
            validation={"last": features.validation["last"]},
            validation_labels=held[turned],
            test=None,
            test_labels=None,
        )
        scores.append((probe or probe_once)(shuffled))
    score = sum(scores) / len(scores)
    share = float(torch.bincount(held).max()) / len(held)
    if score > share + 3 * (share * (1 - share) / len(held)) ** 0.5:
        return (
            f"probes of shuffled labels reach {100 * score:.1f} % on validation where "
            f"{100 * share:.1f} % is chance: labels leak"
        )
    return ""


def _set_aside(features: Features, seed: int) -> Features:
    """Return the features with some training images, at most a tenth, in place of validation."""
    generator = torch.Generator().manual_seed(stream(seed, "evaluate", "shuffled", "aside"))
    order = torch.randperm(len(features.train_labels), generator=generator)
    count = min(SHUFFLED_IMAGES, max(1, len(order) // 10))
    aside, rest = order[:count], order[count : count + SHUFFLED_IMAGES]
    last = features.train["last"]
    return replace(
        features,
        train={"last": last[rest]},
        train_labels=features.train_labels[rest],
        validation={"last": last[aside]},
        validation_labels=features.train_labels[aside],
    )


def probe_once(features: Features) -> float:
    """Return the validation accuracy, 0 to 1, of a probe of the last stage at one l2."""
    scale = standardiser(features.train["last"])
    solution = solve(
        scale(features.train["last"]),
        features.train_labels,
        num_classes=len(features.class_names),
        l2=[1e-2],
        max_iterations=100,
    )
    guesses = solution.logits(scale(features.validation["last"]))[0].argmax(1)
    return float((guesses == features.validation_labels).float().mean())
