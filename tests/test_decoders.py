"""The decoder reaches any image size by doublings."""

from __future__ import annotations

import pytest
import torch

from bench.decoders import Decoder, doublings


@pytest.mark.parametrize(
    ("size", "sides"),
    [(32, [4, 8, 16, 32]), (28, [4, 7, 14, 28]), (4, [4]), (3, [3]), (96, [3, 6, 12, 24, 48, 96])],
)
def test_sides_double_up_to_the_image(size, sides) -> None:
    assert doublings(size) == sides


@pytest.mark.parametrize("size", [28, 32])
def test_decoder_returns_images_of_the_size_asked_for(size) -> None:
    sides = doublings(size)
    decoder = Decoder(5, sides, width=4, outputs=3, blocks=2)
    images = decoder(torch.randn(2, 5, sides[0], sides[0]))
    assert images.shape == (2, 3, size, size)
    images.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
