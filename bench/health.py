"""Diagnostics of features: collapse, effective rank, alignment, uniformity. Never a ranking."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from bench.backbones import to_input
from bench.identity import stream

IMAGES = 512


def feature_std(features: Tensor) -> float:
    """Return the median over dimensions of the std of length-1 features; 1/sqrt(D) when spread."""
    return float(normalize(features.double()).std(0).median())


def is_collapsed(features: Tensor) -> bool:
    """Return whether `feature_std` is under 0.1 / sqrt(D)."""
    return feature_std(features) < 0.1 / features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023, Eq. 1): exp of the entropy of the singular values."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(1e-12) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def alignment(features0: Tensor, features1: Tensor) -> float:
    """Return the mean squared distance of two views of an image (Wang & Isola 2020, alpha 2)."""
    pairs = normalize(features0.double()) - normalize(features1.double())
    return float(pairs.square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """Return log mean exp(-2 d^2) over pairs (Wang & Isola 2020, t = 2); lower is more uniform."""
    return float((-2 * torch.pdist(normalize(features.double())).square()).exp().mean().log())


@torch.no_grad()
def health(backbone: nn.Module, images: np.ndarray, seed: int) -> dict[str, float]:
    """Return the diagnostics of `backbone` on 512 training images and the harness's own view.

    The view, the same for all methods: a crop of 80 % of the side, resized back. The random state
    of torch and the training mode are left as they were.
    """
    generator = np.random.Generator(np.random.PCG64(stream(seed, "evaluate", "health")))
    index = np.sort(generator.permutation(len(images))[:IMAGES])
    device = next(p for p in backbone.parameters()).device
    dtype = next(p for p in backbone.parameters()).dtype
    shown = to_input(torch.from_numpy(np.array(images[index]))).to(device, dtype)
    margin = max(1, shown.shape[-1] // 10)
    cropped = shown[..., margin:-margin, margin:-margin]
    view = interpolate(cropped, shown.shape[-2:], mode="bilinear", antialias=True)
    modes = [(module, module.training) for module in backbone.modules()]
    state = torch.get_rng_state()
    backbone.eval()
    features0, features1 = backbone(shown).float().cpu(), backbone(view).float().cpu()
    for module, training in modes:
        module.training = training
    torch.set_rng_state(state)
    if not (features0.isfinite().all() and features1.isfinite().all()):
        return {"finite": 0.0}
    return {
        "finite": 1.0,
        "feature_std": feature_std(features0),
        "collapsed": float(is_collapsed(features0)),
        "effective_rank": effective_rank(features0),
        "alignment": alignment(features0, features1),
        "uniformity": uniformity(features0),
    }
