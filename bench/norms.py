"""BatchNorm's running statistics, estimated anew on given images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics to their mean over `batches`; modes and weights stay.

    Args:
        batches: each float (B, 3, H, W) in [-1, 1], on the module's device.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return
    modes = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    module.train()
    for images in batches:
        module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, training in modes:
        part.training = training
