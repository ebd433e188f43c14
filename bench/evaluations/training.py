"""What evaluations that train share: the order of images, how they are shown, accuracies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bench.augment import Draws, View, compose, horizontal_flip, pad_and_crop
from bench.backbones import from_unit

BATCH = 256  # images per pass without gradients; changes no number beyond rounding


def orders(num_images: int, draws: int, generator: torch.Generator) -> Tensor:
    """Return `draws` indices of images, int64: permutations one after another, the last one cut."""
    passes = -(-draws // num_images)
    permutations = [torch.randperm(num_images, generator=generator) for _ in range(passes)]
    return torch.cat(permutations)[:draws]


def crop_and_flip(padding: int, flip: bool) -> View | None:
    """Return the view of a crop out of the padded image and a flip, None if it changes nothing."""
    views = [pad_and_crop(padding)] if padding else []
    views += [horizontal_flip()] if flip else []
    return compose(*views) if views else None


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def show(
    images: np.ndarray,
    kind: str,
    device: torch.device,
    view: View | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return uint8 images (B, C, H, W) as a backbone is shown them, float32 (B, 3, H, W).

    Args:
        kind: the input, as `backbones.to_input` knows it.
        view: seen through this, which draws from `generator`.
    """
    unit = torch.from_numpy(np.array(images)).to(device).float().div_(255)
    if view is not None:
        unit = view(unit, Draws.of(unit, generator))
    return from_unit(unit, kind).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, kind: str) -> Tensor:
    """Return the logits (N, C) of uint8 images on the CPU; the model is left in eval mode."""
    model.eval()
    device = device_of(model)
    parts = [
        model(show(images[start : start + BATCH], kind, device)).cpu()
        for start in range(0, len(images), BATCH)
    ]
    return torch.cat(parts)


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top1, and top5 above five classes, in percent."""
    top = logits.topk(min(5, logits.shape[1])).indices
    hits = top == labels[:, None]
    found = {"top1": 100.0 * int(hits[:, 0].sum()) / len(hits)}
    if logits.shape[1] > 5:
        found["top5"] = 100.0 * int(hits.any(1).sum()) / len(hits)
    return found
