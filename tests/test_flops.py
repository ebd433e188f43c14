"""FLOPs of operators that torch's own formulas miscount, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import flops
from bench.passes import PassCounter


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_step_of_a_convolution_in_groups_is_three_passes(groups: int, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(8, 8, 3, padding=1, groups=groups, bias=False)
    images = torch.randn(2, 8, 6, 6, requires_grad=True)
    by_hand = 2 * 2 * 8 * (8 // groups) * 9 * 36  # 2 FLOPs, B, C_in, C_out of a group, k^2, H W

    with flops.counter() as counter:
        out = layer(images)
    assert counter.get_total_flops() == by_hand
    with flops.counter() as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * by_hand

    still = layer(images.detach())
    with flops.counter() as counter:
        still.sum().backward()
    assert counter.get_total_flops() == by_hand  # of the weight alone


def test_passes_of_a_transformer_count_though_its_root_is_not_called() -> None:
    import timm

    net = timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8)
    counts = {"with_grad": 0.0, "without_grad": 0.0}
    PassCounter(net, 32, counts)
    images = torch.randn(4, 3, 32, 32)
    net(images)
    net.forward_features(images)
    with torch.no_grad():
        net.forward_intermediates(images, intermediates_only=True)
    assert counts == {"with_grad": 8.0, "without_grad": 4.0}
