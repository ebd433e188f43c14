"""Layers and updates that more than one method uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bench.distributed import gather, world_size
from bench.errors import Unsupported


def projection_mlp(
    in_features: int,
    hidden_features: int,
    out_features: int,
    *,
    depth: int = 2,
    norm: bool = False,
    out_norm: bool = False,
) -> nn.Sequential:
    """Return `depth` linear layers with ReLU between them: (B, in_features) to (B, out_features).

    Args:
        depth: linear layers, 1 or more; 1 is a linear map.
        norm: BatchNorm before each ReLU.
        out_norm: BatchNorm after the last layer, scaled but not shifted.

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"a head has 1 linear layer or more, got depth {depth}")
    widths = [in_features, *[hidden_features] * (depth - 1)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Linear(before, after, bias=not norm))  # BatchNorm shifts by itself
        layers += [nn.BatchNorm1d(after)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-1], out_features, bias=not out_norm))
    if out_norm:
        layers.append(nn.BatchNorm1d(out_features))
        layers[-1].bias.requires_grad_(False)
    return nn.Sequential(*layers)


@torch.no_grad()
def ema_update(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move `average` towards `module`: momentum * average + (1 - momentum) * module, in place.

    Buffers are copied. `average` is a deep copy of `module`, so that their tensors pair up.
    """
    averages, copies = _tensors(average)
    parameters, buffers = _tensors(module)
    torch._foreach_lerp_(averages, parameters, 1.0 - momentum)
    if copies:  # LayerNorm has none, and torch refuses an empty list
        torch._foreach_copy_(copies, buffers)


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters and the buffers, each once, in an order that the structure decides.

    `module.parameters()` and `module.buffers()` take longer than the average itself.
    """
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        each = waiting.pop()
        if each is not None:
            for found, own in ((parameters, each._parameters), (buffers, each._buffers)):
                for tensor in own.values():
                    if tensor is not None:
                        found[id(tensor)] = tensor
            waiting += each._modules.values()
    return list(parameters.values()), list(buffers.values())


def ema_momentum(momentum: float, half_life_epochs: float | None, steps_per_epoch: int) -> float:
    """Return `momentum`, or the one that forgets half of the past in `half_life_epochs` if given.

    One momentum per step is another memory wherever an epoch has another number of steps.
    """
    if half_life_epochs is None:
        return momentum
    return 0.5 ** (1 / (half_life_epochs * steps_per_epoch))


def queue_length(most: int, num_images: int, keys_per_step: int) -> int:
    """Return the keys that a queue holds: whole steps, at most `most`, at least one step.

    At most half as many as there are training images, so that few queries meet an older key of
    their own image among the negatives.
    """
    return max(1, min(most, num_images // 2) // keys_per_step) * keys_per_step


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Write the keys of all processes over the oldest of the queue, in place.

    Args:
        queue: (K, D), a buffer; K is not below the keys of all processes.
        pointer: int64 scalar, a buffer; the row of the oldest key, moved on.
        keys: (B, D), this process's.
    """
    keys = gather(keys)
    rows = (pointer + torch.arange(len(keys), device=keys.device)) % len(queue)
    queue.index_copy_(0, rows, keys.to(queue.dtype))
    pointer.add_(len(keys)).remainder_(len(queue))


def group_batch_norm(module: nn.Module) -> nn.Module:
    """Let every BatchNorm in `module` normalise over the images of all processes.

    Several processes then train like one that sees the whole batch, on CPU and CUDA alike
    (`nn.SyncBatchNorm` refuses CPU tensors). State-dict keys stay. Returns `module`, changed in
    place, unless it is itself a BatchNorm; with one process nothing changes.
    """
    if world_size() == 1:
        return module
    return _replace_batch_norm(module, _normalise_over_processes)


def split_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Let every BatchNorm in `module` normalise `groups` consecutive parts of a batch apart.

    One process then computes what `groups` processes without exchange would; the running
    statistics follow the mean over the parts. State-dict keys stay. Returns `module`, changed in
    place, unless it is itself a BatchNorm; with one group nothing changes.

    Raises:
        ValueError: groups below 1.
        Unsupported: in training, by a batch that does not divide into the groups.
    """
    if groups < 1:
        raise ValueError(f"a batch splits into 1 group or more, got {groups}")
    if groups == 1:
        return module
    return _replace_batch_norm(module, partial(_normalise_groups, groups=groups))


def fix_batch_norm(module: nn.Module) -> nn.Module:
    """Let every BatchNorm in `module` scale and shift its channels, and never normalise them.

    For networks that must see each image alone, in the place of networks without BatchNorm: the
    running statistics stay at mean 0 and variance 1, so that evaluation computes the same.
    State-dict keys stay. Returns `module`, changed in place, unless it is itself a BatchNorm.
    """
    module = _replace_batch_norm(module, _scale_and_shift)
    for layer in module.modules():
        if is_fixed(layer):
            layer.reset_running_stats()
    return module


def is_fixed(layer: nn.Module) -> bool:
    """Return whether the layer is a BatchNorm that `fix_batch_norm` replaced."""
    return isinstance(layer, RegroupedBatchNorm) and layer.normalise is _scale_and_shift


def groups_per_process(groups: int) -> int:
    """Return the groups into which each process splits its part of the batch.

    Raises:
        Unsupported: the processes cannot share the groups evenly; another number of groups would
            be another training.
    """
    processes = world_size()
    if groups % processes:
        raise Unsupported(f"{groups} BatchNorm groups do not divide among {processes} processes")
    return groups // processes


def _replace_batch_norm(
    module: nn.Module, normalise: Callable[[RegroupedBatchNorm, Tensor], Tensor]
) -> nn.Module:
    if isinstance(module, _BatchNorm):
        flat = isinstance(module, nn.BatchNorm2d)  # what asks for that class finds it again
        return (RegroupedBatchNorm2d if flat else RegroupedBatchNorm)(module, normalise)
    for name, child in module.named_children():
        setattr(module, name, _replace_batch_norm(child, normalise))
    return module


class RegroupedBatchNorm(_BatchNorm):
    """The BatchNorm `norm`, with its parameters and buffers, over other images than the batch.

    Args:
        norm: of any dimension; timm's BatchNorm with activation keeps its activation.
        normalise: `normalise(self, images)`, used in training: returns the normalised images and
            updates the running statistics.
    """

    def __init__(
        self, norm: _BatchNorm, normalise: Callable[[RegroupedBatchNorm, Tensor], Tensor]
    ) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.track_running_stats = norm.track_running_stats
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop = getattr(norm, "drop", nn.Identity())  # timm.layers.BatchNormAct2d
        self.act = getattr(norm, "act", nn.Identity())
        self.normalise = normalise
        self.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return self.act(self.drop(self.normalise(self, images)))
        return self.act(self.drop(super().forward(images)))

    def rate(self) -> float:
        """Count one more batch; return the share that its statistics take in the running ones."""
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            return 1.0 / float(self.num_batches_tracked)
        return self.momentum

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept (B, C) and (B, C, ...)."""


class RegroupedBatchNorm2d(RegroupedBatchNorm, nn.BatchNorm2d):
    """The same in the place of an `nn.BatchNorm2d`."""


def _normalise_over_processes(norm: RegroupedBatchNorm, images: Tensor) -> Tensor:
    """Normalise (B, C, ...) by the mean and variance over all processes' images."""
    own_var, own_mean = _Moments.apply(images)  # (C,) each
    count = torch.full_like(own_mean[:1], images.numel() / images.shape[1])
    counts, means, variances = gather(torch.cat([count, own_mean, own_var]).unsqueeze(0)).split(
        [1, len(own_mean), len(own_var)], dim=1
    )  # one exchange per layer
    shares = counts / counts.sum()  # (processes, 1)
    mean = (shares * means).sum(0)
    # The variance around the common mean: within processes, and between their means. Unlike the
    # mean of squares less the square of the mean, nothing large cancels.
    var = (shares * (variances + (means - mean) ** 2)).sum(0)

    if norm.running_mean is not None:
        rate, total = norm.rate(), counts.sum()
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
            unbiased = var * total / (total - 1)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), rate)

    shape = [1, -1, *[1] * (images.ndim - 2)]
    scale = torch.rsqrt(var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = None if norm.bias is None else norm.bias.view(shape)
    normal = _Standardise.apply(images, mean.view(shape), scale.view(shape), shift)
    return normal.to(images.dtype)


def _wide(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))


class _Moments(torch.autograd.Function):
    """Variance and mean of (B, C, ...) by channels; backward keeps the images in their precision.

    Both in float32 or more, as the gradients through them. Written out, autograd would keep bf16
    images in float32.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(images)
        ctx.axes = [0, *range(2, images.ndim)]
        return torch.var_mean(_wide(images), ctx.axes, correction=0)

    @staticmethod
    def backward(ctx: Any, of_var: Tensor, of_mean: Tensor) -> Tensor:
        (images,) = ctx.saved_tensors
        wide, count = _wide(images), images.numel() // images.shape[1]
        shape = [1, -1, *[1] * (images.ndim - 2)]
        spread = wide - wide.mean(ctx.axes, keepdim=True)
        gradient = (2.0 / count) * of_var.view(shape) * spread + of_mean.view(shape) / count
        return gradient.to(images.dtype)


class _Standardise(torch.autograd.Function):
    """(images - mean) * scale + shift in float32 or more, of which backward keeps the images alone.

    They are kept for their variance anyway. Written out, the product would keep their difference
    from the mean beside them: one more map for each layer.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, mean: Tensor, scale: Tensor, shift: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(images, mean, scale)
        ctx.shifted = None if shift is None else shift.shape
        normal = (_wide(images) - mean).mul_(scale)
        return normal if shift is None else normal.add_(shift)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, mean, scale = ctx.saved_tensors
        inner = gradient * scale
        return (
            inner.to(images.dtype),
            -inner.sum_to_size(mean.shape),
            (gradient * (_wide(images) - mean)).sum_to_size(scale.shape),
            None if ctx.shifted is None else gradient.sum_to_size(ctx.shifted),
        )


def _normalise_groups(norm: RegroupedBatchNorm, images: Tensor, *, groups: int) -> Tensor:
    """Normalise each of `groups` consecutive parts of (B, C, ...) by its own statistics."""
    if len(images) % groups:
        raise Unsupported(f"a batch of {len(images)} images does not split into {groups} groups")
    if images.numel() == groups * images.shape[1]:
        raise Unsupported(
            f"{groups} BatchNorm groups of {len(images)} images have one value per channel each, "
            "which has no variance; take a larger batch, or fewer groups"
        )
    running = norm.running_mean is not None
    means = norm.running_mean.repeat(groups, 1) if running else [None] * groups
    variances = norm.running_var.repeat(groups, 1) if running else [None] * groups
    rate = norm.rate() if running else 0.0
    normal = [
        F.batch_norm(part, mean, var, norm.weight, norm.bias, True, rate, norm.eps)
        for part, mean, var in zip(images.chunk(groups), means, variances, strict=True)
    ]
    if running:
        norm.running_mean.copy_(means.mean(0))
        norm.running_var.copy_(variances.mean(0))
    return torch.cat(normal)


def _scale_and_shift(norm: RegroupedBatchNorm, images: Tensor) -> Tensor:
    """Compute in training what evaluation does: the running statistics stay as they are."""
    mean, var = norm.running_mean, norm.running_var
    return F.batch_norm(images, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)
