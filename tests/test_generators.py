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


def test_a_generator_without_norms_has_biases() -> None:
    layers = ConvGenerator(100, 8, 32, norm=False).layers
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layers)
    weighted = [m for m in layers if isinstance(m, nn.Linear | nn.ConvTranspose2d)]
    assert all(m.bias is not None for m in weighted)


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


def test_truncated_latents_are_bounded_and_distributed_as_given_the_bound() -> None:
    torch.manual_seed(0)
    for bound in (0.1, 0.5, 2.0):
        drawn = generators.truncated_normal(torch.empty(20000), bound)
        assert drawn.abs().max() <= bound
        refused = torch.randn(400000)  # the paper's way: draw again whatever is beyond
        kept = refused[refused.abs() <= bound]
        assert float(drawn.std()) == pytest.approx(float(kept.std()), rel=0.03)
    whole = generators.truncated_normal(torch.empty(20000))
    assert whole.abs().max() > 3
    assert float(whole.std()) == pytest.approx(1, rel=0.03)


def test_attention_begins_as_the_identity_and_equals_a_slow_loop() -> None:
    torch.manual_seed(0)
    attention = generators.SelfAttention(16)
    maps = torch.randn(2, 16, 4, 6)
    with torch.no_grad():
        assert torch.equal(attention(maps), maps)
        attention.gain.fill_(0.7)
        found = attention(maps)
        for image, got in zip(maps, found, strict=True):
            query, key, value = (
                layer(image[None])[0] for layer in (attention.query, attention.key, attention.value)
            )
            key = torch.stack([key[:, i : i + 2, j : j + 2].amax((1, 2)) for i, j in pairs()])
            value = torch.stack([value[:, i : i + 2, j : j + 2].amax((1, 2)) for i, j in pairs()])
            for row in range(4):
                for column in range(6):
                    shares = (key @ query[:, row, column]).softmax(0)
                    mixed = attention.out((shares @ value)[None, :, None, None])[0, :, 0, 0]
                    expected = image[:, row, column] + 0.7 * mixed
                    assert torch.allclose(got[:, row, column], expected, atol=1e-5)


def pairs() -> list[tuple[int, int]]:
    return [(i, j) for i in (0, 2) for j in (0, 2, 4)]


def test_a_block_doubles_the_side_and_depends_on_its_condition() -> None:
    torch.manual_seed(0)
    block = generators.ConditionalBlock(6, 4, 3)
    maps, condition = torch.randn(2, 6, 4, 4), torch.randn(2, 3)
    out = block(maps, condition)
    assert out.shape == (2, 4, 8, 8)
    assert not torch.allclose(out, block(maps, -condition), atol=1e-3)


def test_standing_statistics_are_the_mean_over_samples() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return self.norm(maps)

    drawn: list[torch.Tensor] = []

    def draw(count: int) -> tuple[torch.Tensor]:
        drawn.append(torch.randn(count, 2, 3, 3) * 2 + 5)
        return (drawn[-1],)

    torch.manual_seed(0)
    generator = Shifted()
    generator.norm.running_mean.fill_(-40)
    generators.standing_statistics(generator, draw, batches=3)
    assert len(drawn) == 3
    assert torch.allclose(generator.norm.running_mean, torch.cat(drawn).mean((0, 2, 3)), atol=1e-4)
