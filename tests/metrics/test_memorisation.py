"""Copies among samples are found, at 1, 10 and 100 %; samples of their own are not accused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import manager
from bench.engine import Trainer
from bench.metrics import memorisation

N = 800


def images(count: int, seed: int) -> Tensor:
    """Return smooth images (N, 3, 8, 8) in [-1, 1] of six latent numbers, and a little noise."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(6, 3, 4, 4, generator=generator)
    basis = nn.functional.interpolate(basis, 8, mode="bilinear")
    generator.manual_seed(2 + seed)
    latent = torch.randn(count, 6, generator=generator)
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    return (0.3 * torch.einsum("nk,kchw->nchw", latent, basis) + 0.02 * noise).clamp(-1, 1)


TRAIN, HELD_OUT, TEST = images(1500, 0), images(500, 1), images(3000, 2)


def found(samples: Tensor) -> memorisation.Copies:
    return memorisation.copies(
        samples.flatten(1),
        memorisation.mirrored(TRAIN),
        memorisation.mirrored(HELD_OUT),
        TEST.flatten(1),
    )


def planted(share: float, *, flip: bool = False, noise: float = 0.0) -> Tensor:
    samples = images(N, 3)
    count = round(share * N)
    copies = TRAIN[:count].flip(3) if flip else TRAIN[:count]
    samples[:count] = copies + noise * torch.randn(copies.shape, generator=torch.Generator())
    return samples


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_planted_copies_are_found(share: float, flip: bool) -> None:
    """Of 800 samples 8, 80 and all, beside 3,000 test images as data sets have them."""
    result = found(planted(share, flip=flip))
    assert result.accused
    assert result.leading >= round(share * N)
    assert result.near == pytest.approx(share, abs=0.01)
    assert result.leading_p < 1e-4
    if share >= 0.1:
        assert result.shift_p < 0.01


def test_noisy_copies_are_found() -> None:
    result = found(planted(0.1, noise=0.02))
    assert result.accused
    assert result.near > 0.03


@pytest.mark.parametrize(("share", "noise"), [(0.05, 0.0), (0.05, 0.02), (0.2, 0.1)])
def test_copies_among_poor_samples_are_found_whose_auc_is_below_one_half(
    share: float, noise: float
) -> None:
    """Poor samples are about as far from either set: they pull the AUC down, and hide no copies."""
    far = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    samples = (images(N, 3) + 0.3 * far).clamp(-1, 1)
    assert not found(samples).accused
    count = round(share * N)
    blur = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    samples[:count] = TRAIN[:count] + noise * blur
    result = found(samples)
    assert result.auc < 0.5
    assert result.accused


def test_a_shift_of_many_is_found_where_none_leads() -> None:
    """Half-way between a training image and an honest one: no copy, and too near by far."""
    samples = images(N, 3)
    rows = memorisation.mirrored(TRAIN)
    index = torch.cdist(samples.flatten(1), rows).argmin(1)
    result = found((samples + rows[index].view_as(samples)) / 2)
    assert result.auc > 0.7
    assert result.accused


def test_a_duplicate_in_the_data_hides_no_copies() -> None:
    """Three test images are training images as well: none of 2 % copies leads any more."""
    test = torch.cat([TRAIN[-3:], TEST])
    sets = (memorisation.mirrored(TRAIN), memorisation.mirrored(HELD_OUT), test.flatten(1))
    result = memorisation.copies(planted(0.02).flatten(1), *sets)
    assert result.leading == 0
    assert result.accused
    assert not memorisation.copies(images(N, 3).flatten(1), *sets).accused


def test_samples_of_their_own_are_not_accused() -> None:
    """At 5 % Mann-Whitney rejects 5 %: of 300 draws 15, within four standard deviations; the other
    test at most that. At the level that accuses, none of them."""
    rejected, accused = np.zeros(2), 0
    for draw in range(300):
        sets = [images(60, 10 + 4 * draw + part).flatten(1) for part in range(4)]
        result = memorisation.copies(*sets)
        rejected += [result.leading_p < 0.05, result.shift_p < 0.05]
        accused += result.accused
    deviation = math.sqrt(300 * 0.05 * 0.95)
    assert rejected[0] <= 15 + 4 * deviation
    assert abs(rejected[1] - 15) <= 4 * deviation
    assert accused == 0
    result = found(images(N, 3))
    assert not result.accused
    assert result.auc == pytest.approx(0.5, abs=0.05)  # four standard deviations
    assert result.near < 0.01
    assert result.place == pytest.approx(result.usual_place, abs=0.02)


def test_samples_far_from_all_data_are_not_accused() -> None:
    """Noise, one image only, blur: bad, but no copies; none lies nearer to training by itself."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(N, 3, 8, 8, generator=generator) * 2 - 1
    one = images(1, 3).expand(N, -1, -1, -1) + 0.02 * torch.randn(N, 3, 8, 8, generator=generator)
    blurred = nn.functional.avg_pool2d(images(N, 3), 3, 1, 1)
    for samples in (noise, one, blurred):
        assert not found(samples).accused


def test_mann_whitney_is_scipy_s_with_ties() -> None:
    from scipy.stats import mannwhitneyu

    generator = torch.Generator().manual_seed(0)
    for high in (6, 1000):
        own = torch.randint(0, high, (70,), generator=generator).double()
        usual = torch.randint(0, high, (90,), generator=generator).double()
        peer = mannwhitneyu(own.numpy(), usual.numpy(), alternative="less", method="asymptotic")
        auc, _, p = memorisation.mann_whitney(own, usual)
        assert p == pytest.approx(peer.pvalue, rel=1e-9)
        assert auc == pytest.approx(1 - peer.statistic / (70 * 90), rel=1e-12)
        pairs = (own[:, None] < usual).double() + 0.5 * (own[:, None] == usual).double()
        assert auc == pytest.approx(float(pairs.mean()), rel=1e-12)
    assert memorisation.mann_whitney(own * 0, usual * 0) == (0.5, 0.0, 0.5)


def test_the_probability_of_leading_is_the_share_of_orders() -> None:
    """Over all orders of 5 samples and 3 test images, how many stand before the first, second."""
    orders = list(itertools.combinations(range(8), 3))  # where the test images stand
    for depth in (1, 2, 3):
        before = [order[depth - 1] - (depth - 1) for order in orders]
        for count in range(6):
            share = sum(n >= count for n in before) / len(orders)
            found = memorisation.leading_probability(count, 5, 3, depth)
            assert found == pytest.approx(share, rel=1e-12)


def test_nearest_is_the_loop_and_zero_at_a_copy() -> None:
    points, others = TEST[:5].flatten(1), TRAIN[:40].flatten(1)
    slow = [min(float((p - o).double().norm()) for o in others) for p in points]
    assert memorisation.nearest(points, others, rows=2).tolist() == pytest.approx(slow, abs=1e-6)
    assert memorisation.nearest(others, others).tolist() == [0.0] * 40
    both = torch.cat([points, others])
    assert memorisation.places(points, both, both).tolist() == [0.5] * 5


def test_sets_that_do_not_fit_are_refused() -> None:
    rows = TEST.flatten(1)
    with pytest.raises(ValueError, match=r"got \(3000, 192\), \(3000, 192\), \(0, 192\)"):
        memorisation.copies(rows, rows, rows[:0], rows)
    with pytest.raises(ValueError, match="of one D"):
        memorisation.copies(rows, rows[:, :5], rows, rows)
    with pytest.raises(ValueError, match="a NaN"):
        memorisation.copies(rows * torch.nan, rows, rows, rows)


def test_a_plugin_that_returns_its_training_images_is_found(tmp_path: Path) -> None:
    """Through its hooks: what `pretrain` saw, given out by `generate`."""
    pixels = ((TRAIN + 1) * 127.5).round().to(torch.uint8).numpy()
    engine = Trainer(pixels, None, None, steps=10, batch_size=100, seed=0, folder=tmp_path)
    plugin = manager.load(str(Path(__file__).parents[1] / "defects" / "copies_training.py"))
    card = plugin.call("describe")
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    model = plugin.call("pretrain", backbone=backbone, config=card.defaults, engine=engine)
    torch.manual_seed(0)
    samples = plugin.call(
        "generate", model=model, num_images=100, labels=None, sampling=card.sampling
    )
    result = found(samples)
    assert (result.leading, result.place) == (100, pytest.approx(0, abs=0.1))
    assert result.leading_p < 1e-50
