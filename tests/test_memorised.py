"""Copies among samples are found, at 1, 10 and 100 %; samples of their own are not accused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import manager, memorised
from bench.engine import Trainer

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


TRAIN, HELD_OUT, TEST = images(1500, 0), images(500, 1), images(N, 2)


def found(samples: Tensor) -> memorised.Copies:
    return memorised.copies(
        samples.flatten(1),
        memorised.mirrored(TRAIN),
        memorised.mirrored(HELD_OUT),
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
    result = found(planted(share, flip=flip))
    assert result.leading >= round(share * N)
    assert result.leading_p < 0.01
    if share >= 0.1:
        assert result.shift_p < 0.01


def test_noisy_copies_are_found() -> None:
    assert found(planted(0.1, noise=0.02)).leading_p < 0.01


def test_samples_of_their_own_are_not_accused() -> None:
    """Both tests reject 5 % at 5 %: of 200 draws 10, within four standard deviations."""
    accused = np.zeros(2)
    for draw in range(200):
        sets = [images(60, 10 + 4 * draw + part).flatten(1) for part in range(4)]
        result = memorised.copies(*sets)
        accused += [result.leading_p < 0.05, result.shift_p < 0.05]
    assert (accused <= 10 + 4 * math.sqrt(200 * 0.05 * 0.95)).all()
    result = found(images(N, 3))
    assert result.place == pytest.approx(result.usual_place, abs=0.02)


def test_the_probability_of_leading_is_the_share_of_orders() -> None:
    """By drawing orders of 4 samples and 3 test images: the first two are samples."""
    generator = np.random.default_rng(0)
    kinds = np.array([1, 1, 1, 1, 0, 0, 0])
    drawn = np.mean([generator.permutation(kinds)[:2].sum() == 2 for _ in range(20_000)])
    exact = memorised.leading_probability(2, 4, 3)
    assert exact == pytest.approx(4 / 7 * 3 / 6)
    assert drawn == pytest.approx(exact, abs=0.02)  # five standard deviations
    assert memorised.leading_probability(0, 4, 3) == 1


def test_nearest_is_the_loop_and_zero_at_a_copy() -> None:
    points, others = TEST[:5].flatten(1), TRAIN[:40].flatten(1)
    slow = [min(float((p - o).double().norm()) for o in others) for p in points]
    assert memorised.nearest(points, others, rows=2).tolist() == pytest.approx(slow, abs=1e-6)
    assert memorised.nearest(others, others).tolist() == [0.0] * 40
    both = torch.cat([points, others])
    assert memorised.places(points, both, both).tolist() == [0.5] * 5


def test_sets_that_do_not_fit_are_refused() -> None:
    rows = TEST.flatten(1)
    with pytest.raises(ValueError, match=r"got \(800, 192\), \(800, 192\), \(0, 192\)"):
        memorised.copies(rows, rows, rows[:0], rows)
    with pytest.raises(ValueError, match="of one D"):
        memorised.copies(rows, rows[:, :5], rows, rows)


def test_a_plugin_that_returns_its_training_images_is_found(tmp_path: Path) -> None:
    """Through its hooks: what `pretrain` saw, given out by `generate`."""
    pixels = ((TRAIN + 1) * 127.5).round().to(torch.uint8).numpy()
    engine = Trainer(pixels, None, None, steps=10, batch_size=100, seed=0, folder=tmp_path)
    plugin = manager.load(str(Path(__file__).parent / "defects" / "copies_training.py"))
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
