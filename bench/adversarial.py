"""Adversarial games: losses on logits, networks that read a backbone, whose turn it is.

A logit is l of D = sigma(l), above 0 where the discriminator takes an image for a real one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad, relu, softplus
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization
from torch.nn.utils.parametrize import remove_parametrizations as remove

from bench.layers import is_fixed

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return -E log D(x) - E log(1 - D(G(z))) of logits (B,) (Goodfellow et al. 2014, Eq. 1).

    As softplus of the logits, which is exact where D is 0 or 1 in floating point.
    """
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_loss(fake: Tensor) -> Tensor:
    """Return E log(1 - D(G(z))), what the generator minimises in the minimax game (Eq. 1).

    Its gradient on a logit l is -sigma(l), which vanishes where the discriminator is sure.
    """
    return -softplus(fake).mean()


def non_saturating_loss(fake: Tensor) -> Tensor:
    """Return -E log D(G(z)) (Section 3); its gradient on a logit l is -(1 - sigma(l))."""
    return softplus(-fake).mean()


GENERATOR_LOSSES = {"minimax": minimax_loss, "non_saturating": non_saturating_loss}


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) of logits (B,) (Lim & Ye 2017)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return E (|d critic / d x| - 1)^2 at x between pairs (Gulrajani et al. 2017, Eq. 3).

    Args:
        critic: images (B, 3, H, W) to values (B,), of each image alone: BatchNorm would mix them.
        real, fake: images (B, 3, H, W); x lies uniformly on the line between row i of each.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slopes.flatten(1).norm(dim=1) - 1).square().mean()


def shifted(images: Tensor, most: int, *, parts: int = 8) -> Tensor:
    """Return the images (B, 3, H, W) moved by random whole pixels, up to `most` along each axis.

    For discriminators whose kernels do not divide by their strides, as a ResNet's: pixels of one
    phase get more gradient than their neighbours, and generators then draw that grid. Moved at
    random, real images and samples alike, all phases get the same on average. Edges are repeated.

    Args:
        parts: of the batch, each of which moves as one.
    """
    if most == 0:
        return images
    side = images.shape[2:]
    padded = pad(images, (most,) * 4, mode="replicate")
    moves = torch.randint(2 * most + 1, (parts, 2)).tolist()  # from the CPU's generator: no waiting
    moved = [
        part[:, :, y : y + side[0], x : x + side[1]]
        for part, (y, x) in zip(padded.chunk(parts), moves, strict=False)
    ]
    return torch.cat(moved)


class Readout(nn.Module):
    """A backbone and one linear layer: images (B, 3, H, W) to (B, out_features).

    Args:
        image_size: if given, the layer reads the backbone's last feature map, flattened and not
            pooled, at this image size.
    """

    def __init__(
        self, backbone: nn.Module, out_features: int, image_size: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.flat = image_size is not None and hasattr(backbone, "forward_features")
        width = backbone.num_features
        if self.flat:
            width = math.prod(map_shape(backbone, image_size))
        self.head = nn.Linear(width, out_features)

    def forward(self, images: Tensor) -> Tensor:
        if self.flat:
            return self.head(self.backbone.forward_features(images).flatten(1))
        return self.head(self.backbone(images))


class Discriminator(Readout):
    """A backbone and one linear layer: images (B, 3, H, W) to logits (B,); see `Readout`."""

    def __init__(self, backbone: nn.Module, image_size: int | None = None) -> None:
        super().__init__(backbone, 1, image_size)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze(1)


class ProjectionDiscriminator(nn.Module):
    """Images (B, 3, H, W) and labels (B,) to logits (B,): (w + e(y)) f(x) + b, f summed over space
    (Miyato & Koyama 2018, Eq. 4)."""

    def __init__(self, backbone: nn.Module, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(backbone.num_features, 1)
        self.embedding = nn.Linear(num_classes, backbone.num_features, bias=False)  # of one-hot
        shape = map_shape(backbone, image_size)  # (C, h, w), or (h, w, C)
        places = math.prod(shape) // backbone.num_features
        self.places = places if len(shape) == 3 else 1  # the backbone's is the mean

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.places * self.backbone(images)
        classes = one_hot(labels, self.embedding.in_features).to(features.dtype)
        return self.score(features).squeeze(1) + (self.embedding(classes) * features).sum(1)


@torch.no_grad()
def map_shape(backbone: nn.Module, image_size: int) -> tuple[int, ...]:
    """Return the shape of the backbone's last feature map, (C, h, w), (h, w, C) as timm's Swin has
    it, or of tokens (N, D)."""
    weight, training = next(backbone.parameters()), backbone.training
    found = backbone.eval().forward_features(weight.new_zeros(1, 3, image_size, image_size))
    backbone.train(training)
    return tuple(found.shape[1:])


class Game(nn.Module):
    """What a game was played with; the discriminator's backbone is what was trained."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    @property
    def backbone(self) -> nn.Module:
        return self.discriminator.backbone


class Turns(nn.Module):
    """Counts the players' steps, so that a resumed game goes on where it was.

    Attributes:
        discriminator_steps: since the generator's last.
        generator_steps: all of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.discriminator_steps = self.generator_steps = 0

    def generator_moves(self, after: int) -> bool:
        """Count a step of the discriminator; return whether it was the last of `after`."""
        self.discriminator_steps += 1
        if self.discriminator_steps < after:
            return False
        self.discriminator_steps = 0
        self.generator_steps += 1
        return True

    def get_extra_state(self) -> Any:  # no buffer: reading it in each step would make CUDA wait
        return torch.tensor([self.discriminator_steps, self.generator_steps])

    def set_extra_state(self, state: Any) -> None:
        self.discriminator_steps, self.generator_steps = state.tolist()


@torch.no_grad()
def normal_init(module: nn.Module, std: float = 0.02) -> nn.Module:
    """Draw weights anew as DCGAN's source does, in place: of convolutions, linear layers and
    embeddings from N(0, std^2), of BatchNorm from N(1, std^2); biases are 0."""
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            layer.weight.normal_(0, std)
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            layer.weight.normal_(1, std)
        else:
            continue
        if getattr(layer, "bias", None) is not None:
            layer.bias.zero_()
    return module


@torch.no_grad()
def orthogonal_init(module: nn.Module) -> nn.Module:
    """Draw the weights of convolutions, linear layers and embeddings anew, in place: orthogonal as
    matrices of out x rest (Saxe et al. 2014)."""
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            drawn = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
            layer.weight.copy_(nn.init.orthogonal_(drawn))
    return module


INITIALISE = {"orthogonal": orthogonal_init, "normal": normal_init}


class _ChannelNorm(nn.Module):
    """Scales (C,) divided by the largest: the spectral norm of a diagonal matrix is its maximum."""

    def forward(self, scales: Tensor) -> Tensor:
        return scales / scales.abs().max().clamp_min(1e-12)


def normalise_spectra(module: nn.Module) -> nn.Module:
    """Divide every layer's weight by its largest singular value (Miyato et al. 2018), in place.

    Convolutions (as matrices of out x rest), linear layers, and the scales that `fix_batch_norm`
    left; one power iteration per forward pass in training. Embeddings, BatchNorm and LayerNorm
    stay.
    """
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spectral_norm(layer)
        elif is_fixed(layer):
            register_parametrization(layer, "weight", _ChannelNorm())
    return module


def keep_spectra(module: nn.Module) -> nn.Module:
    """Undo `normalise_spectra` and keep the divided weights: keys are those before it again."""
    module.eval()  # no further power iteration: the weights of evaluation
    for layer in list(module.modules()):
        if is_parametrized(layer, "weight"):
            remove(layer, "weight", leave_parametrized=True)
    return module
