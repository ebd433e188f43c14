"""Optimizers of torch and timm, and learning rates as functions of the budget."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from bench.errors import UnknownName

KINDS = ("sgd", "lars", "adam", "adamw", "rmsprop")
SCHEDULES = ("cosine", "constant", "multistep")
BUCKET = 2**22  # elements per flat bucket of the gradient average


@dataclass(frozen=True)
class Schedule:
    """A learning rate's course over one stage of the budget.

    Attributes:
        kind: cosine, constant or multistep.
        lr: the rate after warm-up.
        warmup_epochs: epochs of linear warm-up from 0.
        milestones: shares of the stage at which multistep multiplies by `gamma`.
    """

    kind: str
    lr: float
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = (0.6, 0.8)
    gamma: float = 0.1

    def at(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the rate of step `step` (from 0) of a stage of `steps` steps."""
        warmup = min(steps, round(self.warmup_epochs * steps_per_epoch))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.kind == "cosine":
            share = (step - warmup) / max(1, steps - warmup)
            return self.lr * 0.5 * (1 + math.cos(math.pi * share))
        if self.kind == "multistep":
            return self.lr * self.gamma ** sum(step >= m * steps for m in self.milestones)
        return self.lr


def parameter_groups(
    module: nn.Module, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Return the trainable parameters; norms and biases without decay if asked."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if decay_norm_and_bias:
        return [{"params": trainable, "weight_decay": weight_decay}]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build(
    kind: str, groups: list[dict[str, Any]], lr: float, args: dict[str, Any]
) -> torch.optim.Optimizer:
    """Return the optimizer `kind` over `groups`, fused where torch offers it.

    Raises:
        UnknownName: no such kind, or an argument that the optimizer does not take.
    """
    if kind not in KINDS:
        raise UnknownName("optimizer", kind, KINDS)
    if kind == "lars":
        from timm.optim import Lars as factory  # You et al. 2017

        # Matrices and filters are adapted whatever their decay, as SimCLR's LARS does it.
        groups = [{**g, "always_adapt": all(p.ndim > 1 for p in g["params"])} for g in groups]
    else:
        factory = {
            "sgd": torch.optim.SGD,
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }[kind]
    known = [p for p in inspect.signature(factory).parameters if p not in ("params", "lr")]
    for name in args:
        if name not in known:
            raise UnknownName(f"argument of {kind}", name, known)
    settings = dict(args)
    if kind in ("sgd", "lars"):
        settings.setdefault("momentum", 0.9)
    if "betas" in settings:
        settings["betas"] = tuple(settings["betas"])
    if "fused" in known and not settings.get("foreach"):
        settings.setdefault("fused", True)
    return factory(groups, lr=lr, **settings)


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients that exist, in the parameters' order."""
    return [p.grad for p in parameters if p.grad is not None]


def average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Average gradients over `world` processes in flat buckets, all under way at once.

    A parameter without a gradient here counts as zero, so that all processes reduce the same; it
    has none afterwards where no process had one, and the optimizer leaves it as it is.
    """
    idle = [i for i, parameter in enumerate(parameters) if parameter.grad is None]
    for i in idle:
        parameters[i].grad = torch.zeros_like(parameters[i])
    shares = torch.ones(len(parameters), device=parameters[0].device)  # who had a gradient
    if idle:
        shares[idle] = 0
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for gradient in [*gradients(parameters), shares]:
        if size + gradient.numel() > BUCKET and buckets[-1]:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.numel()
    flat = [torch.cat([g.reshape(-1) for g in bucket]) for bucket in buckets if bucket]
    for work in [dist.all_reduce(bucket, async_op=True) for bucket in flat]:
        work.wait()
    for bucket, values in zip(buckets, flat, strict=False):
        values.div_(world)
        parts = values.split([g.numel() for g in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    if idle and not isinstance(shares, FakeTensor):  # the others need not wait for the answer
        for i, share in zip(idle, shares[idle].tolist(), strict=True):
            if share == 0:
                parameters[i].grad = None
