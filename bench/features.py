"""Features of a frozen backbone over a data set's splits, in fp32, in eval mode."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from bench import backbones
from bench.data import Dataset, Split

PIXELS = 16  # side to which the floor of raw pixels averages an image


@dataclass(frozen=True)
class Features:
    """What evaluations see.

    Attributes:
        train, validation, test: float32 (N, D) by stage, on the CPU; the last stage is "last".
            `validation` is empty in a parity track, where all images are trained on; `test` is None
            where the test split must not be opened.
        train_labels, validation_labels, test_labels: int64 (N,).
        class_names: one per class.
        extras: what else is known of the training images, int64 (N,) by name: what the data set
            numbers beside the classes, as "background" numbers photographs.
    """

    train: dict[str, Tensor]
    validation: dict[str, Tensor]
    test: dict[str, Tensor] | None
    train_labels: Tensor
    validation_labels: Tensor
    test_labels: Tensor | None
    class_names: tuple[str, ...]
    extras: dict[str, Tensor] = field(default_factory=dict)


class Rows:
    """Some images of an array that may lie on disk, copied only as they are looked at."""

    def __init__(self, images: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice) -> np.ndarray:
        return self.images[self.rows[some]]


@torch.no_grad()
def embed(
    backbone: nn.Module, images: np.ndarray | Rows, *, kind: str = "rgb", batch_size: int = 256
) -> dict[str, Tensor]:
    """Return the stages' features of uint8 images (N, C, H, W).

    Those of noisy images are the mean over the fixed noises of `backbones.to_input`.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    backbone.eval()
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    parts: dict[str, list[Tensor]] = {}
    one_pass = None
    draws = 1 if backbones.noise_step(kind) is None else backbones.NOISE_DRAWS
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size]))  # may be read-only
        seen: dict[str, Tensor] = {}
        for draw in range(draws):
            shown = backbones.to_input(batch.to(device), kind, draw)
            shown = shown.contiguous(memory_format=torch.channels_last)
            if one_pass is None:
                one_pass = backbones.is_one_pass(backbone, shown[:2])
            for name, values in backbones.stages(backbone, shown, one_pass=one_pass).items():
                seen[name] = seen[name] + values.float() if draw else values.float()
        for name, values in seen.items():
            parts.setdefault(name, []).append((values / draws).cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def _repeats(stages: dict[str, Tensor]) -> set[str]:
    """Return the stages that are the last one under another name, as a ResNet's final map is."""
    last = stages["last"]
    return {
        name
        for name, values in stages.items()
        if name != "last"
        and values.shape == last.shape
        and torch.allclose(values, last, rtol=1e-4, atol=1e-6)
    }


def extract(
    backbone: nn.Module,
    dataset: Dataset,
    split: Split,
    *,
    kind: str = "rgb",
    batch_size: int = 256,
    test: bool = True,
) -> Features:
    """Return the features of the split's training, validation and (if `test`) test images.

    The backbone is left in eval mode. A stage that repeats the last one is left out.
    """
    backbone.float().to(memory_format=torch.channels_last)
    return _features(
        dataset, split, test, lambda x: embed(backbone, x, kind=kind, batch_size=batch_size)
    )


def coarse(images: np.ndarray | Rows, channels: int | None = None) -> Tensor:
    """Return uint8 images (N, C, H, W) as float32 in [0, 1], averaged over areas to at most 16x16.

    Args:
        channels: 1 to average over colours, as for samples that stand beside a gray data set.
    """
    parts = []
    for start in range(0, len(images), 4096):
        values = torch.from_numpy(np.array(images[start : start + 4096])).float().div_(255)
        if channels == 1:
            values = values.mean(1, keepdim=True)
        if values.shape[-1] > PIXELS:
            values = torch.nn.functional.interpolate(values, (PIXELS, PIXELS), mode="area")
        parts.append(values)
    return torch.cat(parts)


def raw_pixels(dataset: Dataset, split: Split, *, test: bool = True) -> Features:
    """Return the floor's features: images averaged over areas to at most 16x16, flattened."""

    def pixels(images: np.ndarray | Rows) -> dict[str, Tensor]:
        return {"last": coarse(images).flatten(1)}

    return _features(dataset, split, test, pixels)


def _features(dataset: Dataset, split: Split, test: bool, measure) -> Features:
    source = "val" if split.own else "train"
    held = Rows(dataset.images[source], split.val)
    labels = {
        key: torch.from_numpy(np.array(value)).long() for key, value in dataset.labels.items()
    }
    train = measure(Rows(dataset.images["train"], split.train))
    repeats = _repeats(train)  # on training images alone, so that all splits have the same stages

    def others(images: np.ndarray | Rows) -> dict[str, Tensor]:
        return {name: values for name, values in measure(images).items() if name not in repeats}

    return Features(
        train={name: values for name, values in train.items() if name not in repeats},
        validation=others(held) if len(held) else {},
        test=others(dataset.images["test"]) if test else None,
        train_labels=labels["train"][split.train],
        validation_labels=labels[source][split.val],
        test_labels=labels["test"] if test else None,
        class_names=dataset.class_names,
        extras={
            name: torch.from_numpy(dataset.extras[name]["train"][split.train]).long()
            for name in dataset.extra_names
        },
    )
