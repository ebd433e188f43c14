"""Random initialisation: the features of an untrained network, the floor below every method.

Paper:   Krähenbühl et al., ICLR 2016. https://arxiv.org/abs/1511.06856 (for `rescaled`)
Source:  https://github.com/philkr/magic_init
Family:  floor
Departs: `rescaled` normalises within layers (Section 3.1) with random weights; no step between
         layers (Section 3.2), no k-means or PCA; a layer without bias keeps its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl
from bench.distributed import gather


@dataclass(frozen=True)
class Config:
    """False: the network as timm initialises it. True: its layers rescaled on training images."""

    rescaled: bool = False


class Untrained(nn.Module):
    """A backbone that no gradient has touched."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("is_rescaled", torch.tensor(False))  # a restored one must not be again


@torch.no_grad()
def rescale(backbone: nn.Module, images: Tensor) -> None:
    """Give each channel of each layer zero mean (where it has a bias) and unit variance.

    One pass, first layer to last: each layer is rescaled on what the rescaled layers before it
    make of `images`, float (B, 3, H, W). BatchNorm is as in evaluation, so an identity at first.
    """
    layers = [m for m in backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    seen: set[nn.Module] = set()
    handles = [layer.register_forward_hook(partial(_normalise_layer, seen)) for layer in layers]
    was_training = backbone.training
    backbone.eval()
    backbone(images)
    backbone.train(was_training)
    for handle in handles:
        handle.remove()


def _normalise_layer(
    seen: set[nn.Module], layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor | None:
    """Rescale the layer by its first output and return the output that it now has."""
    if layer in seen:  # a layer that is used twice has one set of weights
        return None
    seen.add(layer)
    channel = 1 if isinstance(layer, nn.Conv2d) else output.ndim - 1
    axes = [axis for axis in range(output.ndim) if axis != channel]
    variance, mean = torch.var_mean(output, axes, correction=0)  # (C,) each
    # A channel that does not vary has nothing to divide by and keeps its scale.
    std = torch.where(variance > 1e-12, variance, torch.ones_like(variance)).sqrt()
    layer.weight.div_(std.view(-1, *[1] * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.sub_(mean).div_(std)
    return layer.forward(*inputs)


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="Random initialisation",
        paper="https://arxiv.org/abs/1511.06856",
        family="floor",
        role="floor",
        defaults=Config(),
        search={"rescaled": ("choice", False, True)},
        departs="rescaled: within-layer step only; a layer without bias keeps its mean",
    )


@hookimpl
def pretrain(backbone: nn.Module, config: Config, engine: Engine) -> nn.Module:
    model = engine.prepare(Untrained(backbone))
    if config.rescaled and not model.is_rescaled:
        batch = next(iter(engine.batches()))  # one batch is all that is spent
        rescale(model.backbone, gather(batch.views[0]))
        model.is_rescaled.fill_(True)
    return model
