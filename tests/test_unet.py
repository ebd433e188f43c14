"""U-Nets: shapes at any size, the paper's parameters, and what reaches the output."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench import Unsupported, backbones, rehearsal
from bench.unet import (
    BackboneUNet,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    UNet,
    group_norm,
    map_shapes,
    sinusoids,
)


def backbone(size: int, kind: dict | None = None) -> nn.Module:
    torch.manual_seed(0)
    return backbones.build(kind or rehearsal.CONVOLUTIONAL, size)


def unet(size: int = 16, kind: dict | None = None) -> BackboneUNet:
    return BackboneUNet(backbone(size, kind), size, width=8, embedding=12, attention=size // 4)


def open_last(network: nn.Module) -> nn.Module:
    """Let layers that start at zero pass something on."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def test_the_paper_s_network_for_cifar10_has_its_35_7_million_parameters() -> None:
    """Ho et al., Appendix B; reimplementations count 35,746,307."""
    with torch.device("meta"):
        parts = [UNet(3, 32), TimeEmbedding(128, 512)]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 35_746_307


def test_sinusoids_are_the_transformer_s() -> None:
    found = sinusoids(torch.tensor([0, 3, 999]), 8)
    for row, t in zip(found.tolist(), (0, 3, 999), strict=True):
        angles = [t / 10000 ** (k / 3) for k in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row == pytest.approx(expected, abs=2e-4)
    with pytest.raises(ValueError, match="got 7"):
        sinusoids(torch.zeros(1), 7)


@pytest.mark.parametrize("channels", [4, 20, 24, 48, 128, 384])
def test_group_norm_divides_any_width(channels) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4
    assert group_norm(128).num_groups == 32


def test_attention_is_that_of_the_double_loop() -> None:
    torch.manual_seed(0)
    layer = open_last(SelfAttention(4)).double()
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    query, key, value = layer.qkv(layer.norm(x))[0].flatten(1).T.split(4, dim=1)  # (6, 4) each
    mixed = torch.zeros(6, 4, dtype=torch.float64)
    for i in range(6):
        weights = [math.exp(float((query[i] @ key[j]).detach()) / math.sqrt(4)) for j in range(6)]
        for j in range(6):
            mixed[i] += weights[j] / sum(weights) * value[j].detach()
    expected = x + layer.out(mixed.T.reshape(1, 4, 2, 3))
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_a_block_starts_as_its_shortcut_and_takes_the_embedding() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(8, 8, 5), torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 5)), x)
    open_last(block)
    first, second = block(x, torch.zeros(2, 5)), block(x, torch.ones(2, 5))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("kind", [rehearsal.CONVOLUTIONAL, rehearsal.TRANSFORMER])
@pytest.mark.parametrize("size", [16, 24])
def test_both_networks_start_at_zero_and_return_images(kind, size) -> None:
    images, embedding = torch.randn(2, 3, size, size), torch.randn(2, 12)
    paper = UNet(3, size, width=8, multipliers=(1, 2), blocks=1, attention=8, embedding=12)
    for network in (unet(size, kind), paper):
        assert torch.equal(network(images, embedding), torch.zeros_like(images))
        assert open_last(network)(images, embedding).abs().sum() > 0


def test_the_embedding_decides_how_much_of_the_image_passes() -> None:
    """Late steps are nearly all noise: with a gain of 1 the untrained network says all of it."""
    network, images = unet(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        network.gain[-1].bias.fill_(1.0)
    embedding = torch.randn(2, 12)
    assert torch.allclose(network(images, embedding), images)
    with torch.no_grad():
        network.gain[-1].weight.normal_()
    ratio = network(images, embedding) / images  # (2, 3, 16, 16)
    assert torch.allclose(ratio, ratio[..., :1, :1].expand_as(ratio), rtol=1e-3)
    assert not torch.allclose(ratio[0, :, 0, 0], ratio[1, :, 0, 0])


def test_odd_sides_come_back() -> None:
    images, embedding = torch.randn(2, 3, 14, 14), torch.randn(2, 12)
    paper = UNet(3, 14, width=8, multipliers=(1, 1, 1), blocks=1, attention=7, embedding=12)
    assert paper(images, embedding).shape == images.shape
    assert unet(14)(images, embedding).shape == images.shape


def test_every_parameter_of_the_backbone_is_trained_and_the_embedding_matters() -> None:
    network = open_last(unet()).eval()
    images, embedding = torch.randn(2, 3, 16, 16), torch.randn(2, 12, requires_grad=True)
    network(images, embedding).square().sum().backward()
    assert embedding.grad.abs().sum() > 0
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_noise_of_single_pixels_reaches_the_output() -> None:
    """A checkerboard of the finest grain, which a stem of stride 2 averages away."""
    network = open_last(unet()).eval()
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = 1.0 - 2 * ((rows + columns) % 2)
    embedding = torch.randn(1, 12)
    out = [network(sign * board.expand(1, 3, 16, 16), embedding) for sign in (1, -1)]
    difference = (out[0] - out[1])[0]  # (3, 16, 16)
    assert (difference * board).mean((1, 2)).abs().min() > 1e-4


class Mapless(nn.Module):
    """A backbone that gives features only."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.mean((2, 3))


def test_a_backbone_without_maps_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="Mapless gives no maps"):
        BackboneUNet(Mapless(), 16, width=8, embedding=12)


def test_looking_for_the_maps_changes_no_buffer_and_no_mode() -> None:
    net = backbone(16).train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    shapes = map_shapes(net, 16)
    assert [side for _, side in shapes] == sorted((side for _, side in shapes), reverse=True)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
