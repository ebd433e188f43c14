"""The linear probe after BatchNorm's statistics are estimated again on whole images.

For backbones that were pretrained on tiles, crops or corrupted images, whose running statistics fit
those and not the images that a probe shows them. The statistics become those of one batch of
unlabelled training images, seen by every layer as its normalised predecessors leave it; see Wu &
Johnson 2021, "Rethinking 'Batch' in BatchNorm", Section 3. No weight changes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from bench.evaluations import Evaluation, Subject, linear_probe, refuse_non_finite
from bench.evaluations.settings import Range, refuse_outside
from bench.evaluations.training import device_of, show
from bench.features import extract
from bench.identity import stream

ID = "bn_recalibrated"
VERSION = 10 * linear_probe.VERSION + 1  # another probe is another protocol here too
NEEDS = "images"
SETTINGS = {"images": 1000} | linear_probe.SETTINGS


def check(settings: dict) -> None:
    """Raise UserError where `linear_probe` does, or if one image has no variance."""
    refuse_outside(ID, settings, {"images": Range(2)})
    linear_probe.check(settings, ID)


def evaluate(subject: Subject, settings: dict, seed: int) -> Evaluation:
    """Return what `linear_probe` finds in the features of the backbone with new statistics.

    Raises:
        NonFinite: the features hold a NaN or an infinity.
    """
    backbone = subject.backbone()
    images = subject.images("train")
    generator = torch.Generator().manual_seed(stream(seed, "evaluate", ID, "images"))
    rows = torch.randperm(len(images), generator=generator)[: settings["images"]]
    if not recalibrate(backbone, images[rows.numpy()], subject.kind):
        found = linear_probe.evaluate(subject.features, settings, seed)
        stamp = "no BatchNorm: the features are those of linear_probe"
        return dataclasses.replace(found, stamps=(*found.stamps, stamp))
    features = extract(
        backbone, subject.dataset, subject.split, kind=subject.kind, test=subject.test
    )
    refuse_non_finite(features)
    return linear_probe.evaluate(features, settings, seed)


@torch.no_grad()
def recalibrate(backbone: nn.Module, images: np.ndarray, kind: str) -> int:
    """Set all BatchNorm statistics to those of `images`, in one batch; return how many layers.

    Only BatchNorm is in train mode meanwhile. Memory: the largest two maps of all images at once,
    0.3 GB for 1,000 images of 64 channels and 32x32 pixels.
    """
    layers = [
        module
        for module in backbone.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return 0
    backbone.eval().float().to(memory_format=torch.channels_last)
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0  # the batch's statistics replace the old ones
    backbone(show(images, kind, device_of(backbone)))
    for layer, momentum in zip(layers, usual, strict=True):
        layer.eval()
        layer.momentum = momentum
    return len(layers)
