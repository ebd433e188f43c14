"""Losses on logits against slow loops, the penalty on a known slope, whose turn it is, spectra."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bench import adversarial, backbones
from bench.adversarial import Discriminator, Readout, Turns
from bench.layers import fix_batch_norm, is_fixed
from bench.rehearsal import CONVOLUTIONAL

LOGITS = torch.linspace(-20, 20, 1001, dtype=torch.float64)


def slope(loss, logits: Tensor) -> Tensor:
    """Return the size of the gradient on each logit, of a sum and not a mean."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf) * len(leaf), leaf)
    return gradient.abs()


def test_gradients_on_the_logit_are_sigma_and_one_less_sigma() -> None:
    sigma = 1 / (1 + torch.exp(-LOGITS))
    other = 1 / (1 + torch.exp(LOGITS))  # 1 - sigma, without cancellation
    assert (slope(adversarial.minimax_loss, LOGITS) - sigma).abs().max() < 1e-12
    assert (slope(adversarial.non_saturating_loss, LOGITS) - other).abs().max() < 1e-12
    assert float(slope(adversarial.minimax_loss, LOGITS[:1])) < 1e-8  # where D is sure
    assert float(slope(adversarial.non_saturating_loss, LOGITS[:1])) > 1 - 1e-8


def test_losses_equal_the_papers_sentences_in_slow_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 7, generator=generator, dtype=torch.float64) * 3

    def mean(values) -> float:
        values = list(values)
        return sum(values) / len(values)

    def sigma(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    expected = -mean(math.log(sigma(x)) for x in real.tolist())
    expected -= mean(math.log(1 - sigma(x)) for x in fake.tolist())
    assert float(adversarial.discriminator_loss(real, fake)) == pytest.approx(expected, rel=1e-12)
    minimax = mean(math.log(1 - sigma(x)) for x in fake.tolist())
    assert float(adversarial.minimax_loss(fake)) == pytest.approx(minimax, rel=1e-12)
    non_saturating = -mean(math.log(sigma(x)) for x in fake.tolist())
    assert float(adversarial.non_saturating_loss(fake)) == pytest.approx(non_saturating, rel=1e-12)
    hinge = mean(max(0, 1 - x) for x in real.tolist()) + mean(max(0, 1 + x) for x in fake.tolist())
    assert float(adversarial.hinge_loss(real, fake)) == pytest.approx(hinge, rel=1e-12)


def test_losses_are_finite_where_the_discriminator_is_sure() -> None:
    sure = torch.tensor([-1e4, 1e4])
    for loss in (adversarial.minimax_loss, adversarial.non_saturating_loss):
        assert torch.isfinite(loss(sure))
    assert torch.isfinite(adversarial.discriminator_loss(sure, sure))


class Linear(nn.Module):
    """A critic of slope |w| everywhere."""

    def __init__(self, size: int, norm: float) -> None:
        super().__init__()
        weight = torch.randn(3, size, size, dtype=torch.float64)
        self.weight = nn.Parameter(weight * norm / weight.norm())

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weight).sum((1, 2, 3))


def test_penalty_of_a_linear_critic_is_that_of_its_slope() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    for norm in (0.25, 1.0, 3.0):
        critic = Linear(4, norm)
        penalty = adversarial.gradient_penalty(critic, real, fake)
        assert float(penalty.detach()) == pytest.approx((norm - 1) ** 2, abs=1e-12)
        (gradient,) = torch.autograd.grad(penalty, critic.weight)
        expected = 2 * (norm - 1) * critic.weight / norm  # of (|w| - 1)^2
        assert torch.allclose(gradient, expected, atol=1e-12)


def test_penalty_lies_between_the_pairs() -> None:
    seen: list[Tensor] = []

    def critic(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.square().sum((1, 2, 3))

    torch.manual_seed(0)
    real, fake = torch.zeros(64, 3, 2, 2), torch.ones(64, 3, 2, 2)
    adversarial.gradient_penalty(critic, real, fake)
    shares = seen[0].flatten(1)
    assert (shares.max(1).values - shares.min(1).values).max() < 1e-6  # one share per image
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert shares.std() > 0.2


def test_turns_count_and_survive_a_checkpoint() -> None:
    turns = Turns()
    moves = [turns.generator_moves(after=3) for _ in range(8)]
    assert moves == [False, False, True] * 2 + [False, False]
    again = Turns()
    again.load_state_dict(turns.state_dict(), strict=True)
    assert (again.discriminator_steps, again.generator_steps) == (2, 2)
    assert again.generator_moves(after=3)


def test_readout_reads_pooled_features_or_the_whole_last_map() -> None:
    backbone = backbones.build(CONVOLUTIONAL, 32).eval()
    images = torch.randn(2, 3, 32, 32)
    pooled = Readout(backbone, 5).eval()
    assert torch.equal(pooled(images), pooled.head(backbone(images)))
    flat = Readout(backbone, 5, 32).eval()
    maps = backbone.forward_features(images)
    assert flat.head.in_features == maps[0].numel() > backbone.num_features
    assert torch.equal(flat(images), flat.head(maps.flatten(1)))
    assert Discriminator(backbone, 32)(images).shape == (2,)


def test_normal_init_is_the_source_s() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(64, 64, 4), nn.BatchNorm2d(512), nn.Linear(300, 300))
    adversarial.normal_init(module, 0.02)
    conv, norm, linear = module
    for layer, mean in ((conv, 0), (norm, 1), (linear, 0)):
        assert (
            abs(float(layer.weight.detach().mean()) - mean) < 5 * 0.02 / layer.weight.numel() ** 0.5
        )
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
        assert not layer.bias.any()


def test_orthogonal_init_is_orthogonal_in_any_layout() -> None:
    module = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Linear(5, 7))
    module = adversarial.orthogonal_init(module.to(memory_format=torch.channels_last))
    rows = module[0].weight.detach().flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-5)
    columns = module[1].weight.detach()
    assert torch.allclose(columns.T @ columns, torch.eye(5), atol=1e-5)


def largest_singular_values(module: nn.Module) -> list[float]:
    found = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            found.append(float(torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).detach()))
        elif is_fixed(layer):
            found.append(float(torch.linalg.matrix_norm(layer.weight.diag(), ord=2).detach()))
    return found


def test_every_layer_has_a_spectral_norm_of_one_and_keeps_its_keys() -> None:
    torch.manual_seed(0)
    backbone = fix_batch_norm(backbones.build(CONVOLUTIONAL, 32))
    plain = backbone.state_dict().keys()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(5)
    assert max(largest_singular_values(backbone)) > 2
    adversarial.normalise_spectra(backbone).train()
    images = torch.randn(2, 3, 32, 32)
    for _ in range(50):
        backbone(images)
    backbone.eval()
    norms = largest_singular_values(backbone)
    assert len(norms) > 10
    assert max(norms) <= 1 + 1e-2
    assert min(norms) > 0.9
    features = backbone(images)
    kept = adversarial.keep_spectra(backbone)
    assert kept.state_dict().keys() == plain
    assert torch.allclose(kept(images), features, atol=1e-6)


def test_fixed_batch_norm_sees_each_image_alone_and_evaluates_as_it_trains() -> None:
    torch.manual_seed(0)
    backbone = backbones.build(CONVOLUTIONAL, 32)
    keys = backbone.state_dict().keys()
    plain = copy.deepcopy(backbone)
    fix_batch_norm(backbone).train()
    images = torch.randn(4, 3, 32, 32)
    together = backbone(images)
    alone = torch.cat([backbone(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(plain.train()(images), together, atol=1e-2)
    assert backbone.state_dict().keys() == keys
    rebuilt = backbones.build(CONVOLUTIONAL, 32)  # what the judge loads the weights into
    rebuilt.load_state_dict(backbone.state_dict(), strict=True)
    assert torch.allclose(rebuilt.eval()(images), together, atol=1e-5)


def test_shifted_images_are_moved_by_whole_pixels_part_by_part() -> None:
    torch.manual_seed(0)
    images = torch.zeros(16, 1, 12, 12)
    images[:, :, 5, 6] = 1
    seen = set()
    for _ in range(20):
        moved = adversarial.shifted(images, 2)
        assert moved.shape == images.shape
        places = [tuple(image[0].nonzero()[0].tolist()) for image in moved]
        assert places[::2] == places[1::2]  # 8 parts of 2 images
        seen |= set(places)
    assert seen == {(y, x) for y in range(3, 8) for x in range(4, 9)}
    assert adversarial.shifted(images, 0) is images


def test_shifts_even_out_the_gradient_that_strides_leave() -> None:
    torch.manual_seed(0)
    backbone = backbones.build(CONVOLUTIONAL, 32).eval()

    def unevenness(most: int) -> float:
        total = torch.zeros(32, 32)
        for _ in range(8):
            images = torch.randn(16, 3, 32, 32, requires_grad=True)
            outputs = backbone(adversarial.shifted(images, most)).square().sum()
            (gradient,) = torch.autograd.grad(outputs, images)
            total += gradient.square().sum((0, 1))
        inner = total[8:24, 8:24].unfold(0, 8, 8).unfold(1, 8, 8).mean((0, 1))  # by phase
        return float(inner.std() / inner.mean())

    assert unevenness(4) < unevenness(0) / 2
