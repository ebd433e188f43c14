"""A whole SimCLR step against stable-pretraining's, written of the parts that its README names.

Rounds alternate as in `test_ratios`. Both train the same network with SGD in fp32; theirs has no
Trainer, callbacks or logger around it, and its loader works in the process that trains.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from test_ratios import CONFIG, SIZE, Training, ratio
from torch import nn

BATCH = 256
STEMS = {"plain": None, "no max-pool": {"kernel": 3, "stride": 2, "max_pool": False}}


def their_step(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Return a step of stable-pretraining on the backbone and the head of `model`."""
    spt = pytest.importorskip("stable_pretraining")
    from stable_pretraining import forward
    from stable_pretraining.data import transforms

    def view(scale: tuple[float, float], *more: Any) -> Any:
        return transforms.Compose(
            transforms.RGB(),
            transforms.RandomResizedCrop((SIZE, SIZE), scale=scale),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            transforms.RandomGrayscale(p=0.2),
            *more,
            transforms.ToImage(**spt.data.static.CIFAR10),
        )

    solarize = transforms.RandomSolarize(threshold=0.5, p=0.2)
    both = transforms.MultiViewTransform([view((0.2, 1.0)), view((0.08, 1.0), solarize)])
    pictures = [(Image.fromarray(x.permute(1, 2, 0).numpy()), 0) for x in images]
    dataset = spt.data.FromTorchDataset(pictures, names=["image", "label"], transform=both)
    loader = torch.utils.data.DataLoader(
        dataset=dataset, batch_size=len(images), drop_last=True, shuffle=True
    )
    module = spt.Module(
        backbone=model.backbone,
        projector=model.head,
        forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=CONFIG.temperature),
        optim={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
    ).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        for batch in loader:
            loss = module(batch, stage="fit")["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


@pytest.mark.parametrize(("stem", "least"), [("plain", 2.2), ("no max-pool", 1.5)])
def test_step_against_stable_pretraining(benchmark: Any, stem: str, least: float) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    training, peer = (Training(batch=BATCH, stem=STEMS[stem]) for _ in range(2))
    peer.model.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no Trainer takes what it logs
        step = their_step(peer.model, training.images)
        assert ratio(benchmark, training.whole, step, 7) >= least
