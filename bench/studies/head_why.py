"""What a projection head discards: probes of a transform on its input h and on its output z.

Every image is shown once, under a transform that a fixed stream draws for it; a linear probe tells
which, from the backbone's last stage h and from the head's output z on it (Chen et al., ICML 2020,
Section 4.2 and Table 3, where the probes are MLPs and the transforms partly others).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bench import data
from bench.data import Dataset, Split
from bench.errors import UserError
from bench.evaluations import linear_probe
from bench.features import Features, embed
from bench.heads import load_head
from bench.identity import protocol_hash, stream
from bench.integrity import IntegrityError, load_backbone
from bench.studies import Observation, Run

ID = "head_why"
VERSION = 1
READS_RUNS = True
HOLDS = ""  # what the runs that are read hold for
SETTINGS = {
    "brightness": [0.6, 1.4],
    "contrast": [0.6, 1.4],
    "probe": linear_probe.SETTINGS,
    "probe_version": linear_probe.VERSION,
}

Transform = Callable[[np.ndarray], np.ndarray]  # uint8 (N, C, H, W) to the same


def observe(seed: int, settings: dict, run: Run) -> Observation:
    """Return how much better h tells the transform of a test image than z does, in points.

    Raises:
        UserError: the run has no head of ours, or its files are not those that it recorded.
    """
    backbone, head = networks(run)
    stored = run.spec["data"].get("store_size")
    dataset = data.load(run.dataset, image_size=run.spec["image_size"], store_size=stored)
    if dataset.sha256 != run.spec["data"]["sha256"]:
        raise UserError(f"{run.dataset} holds other images than {run.folder.name} was trained on")
    run.note_test_read(dataset.test_sha256, protocol_hash(ID, VERSION, settings))
    split = data.split(dataset, seed)
    values, shown, correct, parts, stamps = {}, {}, {}, {}, []
    families = {"rotation": rotations(), "jitter": jitters(settings)}
    for family, transforms in families.items():
        seen = transformed(dataset, split, family, transforms)
        of_h, of_z = features(seen, backbone, head, run.input, len(transforms))
        for side, inputs in (("h", of_h), ("z", of_z)):
            name = f"{family}_{side}"
            found = linear_probe.evaluate(inputs, settings["probe"], seed)
            correct[name] = found.predictions["last"] == inputs.test_labels.numpy()
            shown[name] = found.metrics["last_top1"]
            stamps += [f"{name}: {stamp}" for stamp in found.stamps]
        values[f"{family}_h_minus_z"] = shown[f"{family}_h"] - shown[f"{family}_z"]
        parts[f"{family}_h_minus_z"] = {f"{family}_h": 1.0, f"{family}_z": -1.0}
    shown |= {"h_width": float(of_h.test["last"].shape[1])}
    shown |= {"z_width": float(of_z.test["last"].shape[1])}
    return Observation(values, shown, correct, parts, tuple(stamps))


def networks(run: Run) -> tuple[nn.Module, nn.Module]:
    """Return the run's backbone and head, loaded strictly, in eval mode."""
    head_file, name = "head.safetensors", run.folder.name
    if head_file not in run.artifacts:
        raise UserError(f"{name} kept no head; run it again with --force")
    try:
        backbone = load_backbone(
            run.spec["backbone"],
            run.spec["image_size"],
            run.folder / "backbone.safetensors",
            run.artifacts["backbone.safetensors"],
        )
        head = load_head(run.folder / head_file, run.artifacts[head_file])
    except IntegrityError as error:
        raise UserError(f"{name} cannot be read: {error}") from None
    return backbone.float().to(memory_format=torch.channels_last).eval(), head


def rotations() -> list[Transform]:
    """Return turns by 0, 90, 180 and 270 degrees, without resampling."""

    def turn(turns: int) -> Transform:
        return lambda images: np.rot90(images, turns, axes=(2, 3))

    return [turn(turns) for turns in range(4)]


def jitters(settings: dict) -> list[Transform]:
    """Return the unchanged image, then each factor of brightness, then each of contrast.

    As torchvision's: brightness multiplies pixels, contrast their distance from the mean of the
    image's gray version; both are rounded and clipped to 0..255.
    """

    def brighten(factor: float) -> Transform:
        return lambda images: _to_uint8(factor * images.astype(np.float32))

    def stretch(factor: float) -> Transform:
        def transform(images: np.ndarray) -> np.ndarray:
            pixels = images.astype(np.float32)
            means = _gray(pixels).mean(axis=(1, 2, 3), keepdims=True)
            return _to_uint8(means + factor * (pixels - means))

        return transform

    brighter = [brighten(factor) for factor in settings["brightness"]]
    return [lambda images: images, *brighter, *(stretch(f) for f in settings["contrast"])]


def _gray(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[1] == 1:
        return pixels
    weights = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1)  # ITU-R BT.601
    return (weights * pixels).sum(axis=1, keepdims=True)


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def transformed(
    dataset: Dataset, split: Split, family: str, transforms: list[Transform]
) -> dict[str, tuple[np.ndarray, Tensor]]:
    """Return {part: (images, which transform each has)} for train, validation and test.

    What an image is shown under depends on its place in the data set alone, not on run or seed.
    """
    source = "val" if split.own else "train"
    places = {
        "train": ("train", split.train),
        "validation": (source, split.val),
        "test": ("test", np.arange(len(dataset.images["test"]))),
    }
    found = {}
    for part, (array, rows) in places.items():
        generator = torch.Generator().manual_seed(stream(0, "evaluate", ID, family, array))
        drawn = torch.randint(len(transforms), (len(dataset.images[array]),), generator=generator)
        images, labels = np.array(dataset.images[array][rows]), drawn[torch.from_numpy(rows)]
        for number, transform in enumerate(transforms):
            of_this = (labels == number).numpy()
            images[of_this] = transform(images[of_this])
        found[part] = (images, labels)
    return found


@torch.no_grad()
def features(
    seen: dict[str, tuple[np.ndarray, Tensor]],
    backbone: nn.Module,
    head: nn.Module,
    kind: str,
    classes: int,
) -> tuple[Features, Features]:
    """Return h and z of the transformed images, labelled by their transforms."""
    h = {part: embed(backbone, images, kind=kind)["last"] for part, (images, _) in seen.items()}
    z = {part: torch.cat([head(rows) for rows in h[part].split(4096)]) for part in h}
    labels = {f"{part}_labels": turned for part, (_, turned) in seen.items()}
    names = tuple(str(number) for number in range(classes))
    of_h, of_z = (
        Features(
            **{part: {"last": rows} for part, rows in side.items()}, **labels, class_names=names
        )
        for side in (h, z)
    )
    return of_h, of_z
