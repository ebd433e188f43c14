"""Generators: sides, ranges, latents, and lines between them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Unsupported, generators
from bench.generators import ConvGenerator


@pytest.mark.parametrize(
    ("size", "start"),
    [(28, (7, 2)), (32, (4, 3)), (48, (6, 3)), (64, (4, 4)), (96, (6, 4)), (224, (7, 5))],
)
def test_sides_double_up_to_the_image(size: int, start: tuple[int, int]) -> None:
    side, doublings = generators.first_side(size)
    assert (side, doublings) == start
    assert side * 2**doublings == size


@pytest.mark.parametrize("size", [7, 31, 34, 62])
def test_sides_that_no_doubling_reaches_are_refused(size: int) -> None:
    with pytest.raises(Unsupported, match=f"{size} pixels"):
        generators.first_side(size)


@pytest.mark.parametrize("size", [28, 48])
def test_images_have_the_side_and_range_of_the_data(size: int) -> None:
    generator = ConvGenerator(5, 4, size)
    images = generators.sample(generator, generators.latents(generator, 3))
    assert images.shape == (3, 3, size, size)
    assert images.abs().max() <= 1


def test_the_paper_s_generator_has_the_paper_s_widths() -> None:
    layers = ConvGenerator(100, 128, 64).layers
    widths = [m.num_features for m in layers if isinstance(m, nn.BatchNorm2d)]
    assert widths == [1024, 512, 256, 128]  # Figure 1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layers[-2:])


def test_latents_are_normal_or_uniform() -> None:
    torch.manual_seed(0)
    normal = generators.latents(ConvGenerator(50, 4, 28), 400)
    assert abs(float(normal.mean())) < 0.05
    assert float(normal.std()) == pytest.approx(1, abs=0.05)
    uniform = generators.latents(ConvGenerator(50, 4, 28, kind="uniform"), 400)
    assert uniform.abs().max() <= 1
    assert float(uniform.std()) == pytest.approx(3**-0.5, abs=0.02)
    with pytest.raises(ValueError, match="normal or uniform"):
        generators.latents(ConvGenerator(5, 4, 28, kind="cauchy"), 1)


def test_lines_run_between_their_ends() -> None:
    torch.manual_seed(0)
    generator = ConvGenerator(5, 4, 28)
    images = generators.interpolate(generator, rows=2, columns=5)
    assert images.shape == (2, 5, 3, 28, 28)
    torch.manual_seed(0)
    ConvGenerator(5, 4, 28)
    start, end = generators.latents(generator, 2), generators.latents(generator, 2)
    middle = generators.sample(generator, (start + end) / 2)
    assert torch.allclose(images[:, 2], middle, atol=1e-5)
    assert torch.allclose(images[:, 0], generators.sample(generator, start), atol=1e-5)
