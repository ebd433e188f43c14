"""RotNet: all four rotations of an image in one batch, told apart."""

from __future__ import annotations

import torch
from bench_plugins import rotnet
from torch import nn


def test_four_rotations_of_each_image_angle_by_angle() -> None:
    images = torch.randn(3, 3, 5, 5)
    turned = rotnet.rotations(images)
    assert turned.shape == (12, 3, 5, 5)
    for angle in range(4):
        for index, image in enumerate(images):
            expected = torch.rot90(image, angle, dims=(1, 2))
            assert torch.equal(turned[3 * angle + index], expected)


class TopLeft(nn.Module):
    """Its features show which corner of the image is bright."""

    num_features = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        plane = images[:, 0]
        corners = plane[:, 0, 0], plane[:, -1, 0], plane[:, -1, -1], plane[:, 0, -1]
        return 50 * torch.stack(corners, 1)


def test_loss_is_zero_for_a_network_that_knows_the_angle() -> None:
    model = rotnet.RotNet(TopLeft())
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(4))
        model.head.bias.zero_()
    images = torch.zeros(2, 3, 4, 4)
    images[:, :, 0, 0] = 1  # turned counter-clockwise: the corner goes down, right, up
    assert float(model(images).detach()) < 1e-6
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(4).roll(1, 0))
    assert float(model(images).detach()) > 10
