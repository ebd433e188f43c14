"""Is the backbone what it is said to be, and are its features functions of the image alone?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from bench import backbones
from bench.data import Dataset, Split
from bench.evaluations.logistic import solve, standardiser
from bench.features import Features, embed
from bench.identity import stream

SAMPLE = 64
TOLERANCE = 1e-4  # of the features' std


class IntegrityError(Exception):
    """The artifact is not a backbone of the given architecture with the recorded bytes."""


def load_backbone(spec: dict[str, Any], image_size: int, path: Path, sha256: str) -> nn.Module:
    """Return the backbone of `spec` with the weights at `path`; every key and shape must match.

    Raises:
        IntegrityError: other bytes than recorded, or keys or shapes that do not match.
    """
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise IntegrityError(f"{path.name} hashes to {actual[:10]}, recorded is {sha256[:10]}")
    backbone = backbones.build(spec, image_size)
    _load_strictly(backbone, load(content))
    return backbone


def _load_strictly(backbone: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    expected = backbone.state_dict()
    faults = [f"missing {key}" for key in expected if key not in weights]
    faults += [f"unexpected {key}" for key in weights if key not in expected]
    faults += [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if faults:
        shown = ", ".join(faults[:5]) + (f" and {len(faults) - 5} more" if faults[5:] else "")
        raise IntegrityError(f"the weights do not fit the backbone: {shown}")
    if any(not w.isfinite().all() for w in weights.values() if w.is_floating_point()):
        raise IntegrityError("the weights hold non-finite numbers")
    backbone.load_state_dict(weights, strict=True)


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
    size or order; a probe of shuffled labels finds nothing (validation only).
    """
    faults = []
    if weights_sha256(backbone) != sha256:
        faults.append("the backbone's weights changed during evaluation")
    faults += batch_dependence(backbone, dataset.images["train"][split.train[:SAMPLE]], kind)
    fault = shuffled_probe(features, seed)
    return [*faults, fault] if fault else faults


def batch_dependence(backbone: nn.Module, images: np.ndarray, kind: str) -> list[str]:
    """Return a line if features change with the batch's size or order."""
    whole = embed(backbone, images, kind=kind, batch_size=len(images))["last"]
    small = embed(backbone, images, kind=kind, batch_size=7)["last"]
    turned = embed(backbone, images[::-1], kind=kind, batch_size=len(images))["last"].flip(0)
    scale = whole.std().clamp_min(1e-12)
    found = []
    for what, other in (("size", small), ("order", turned)):
        difference = float((whole - other).abs().max() / scale)
        if not difference <= TOLERANCE:
            found.append(f"features depend on the batch's {what}: {difference:.1e} of their std")
    return found


def shuffled_probe(features: Features, seed: int) -> str:
    """Return a line if probes trained on shuffled labels beat chance by over 3 binomial sigma.

    Five shuffles are averaged, so that a sound row fails by chance less than once in a million.
    """
    labels, held = features.train_labels, features.validation_labels
    classes = len(features.class_names)
    scale = standardiser(features.train["last"])
    train, validation = scale(features.train["last"]), scale(features.validation["last"])
    scores = []
    for draw in range(5):
        generator = torch.Generator().manual_seed(stream(seed, "evaluate", "shuffled", draw))
        shuffled = labels[torch.randperm(len(labels), generator=generator)]
        solution = solve(train, shuffled, num_classes=classes, l2=[1.0], max_iterations=100)
        guesses = solution.logits(validation)[0].argmax(1)
        scores.append(float((guesses == held).float().mean()))
    score = sum(scores) / len(scores)
    share = float(torch.bincount(held, minlength=classes).max()) / len(held)
    if score > share + 3 * (share * (1 - share) / len(held)) ** 0.5:
        return (
            f"probes of shuffled labels reach {100 * score:.1f} % on validation where "
            f"{100 * share:.1f} % is chance: labels leak"
        )
    return ""
