"""Recipes against the papers' and sources' numbers, at the batch that those state."""

from __future__ import annotations

import pytest
import torch
from bench_plugins import moco_v1, moco_v2, random_init, rotnet, simclr, supervised

from bench.augment import Draws
from bench.optimizers import Schedule

METHODS = (moco_v1, moco_v2, rotnet, simclr, supervised)


def rates(plugin, config, *, batch: int, epochs: int) -> list[float]:
    """Return the rate at the start of each epoch, an epoch being one step."""
    fit = plugin.recipe(config)
    lr = fit["lr"] if fit["lr"] is not None else fit["base_lr"] * batch / 256
    names = ("milestones", "gamma")
    steps = {name: fit[name] for name in names if name in fit}
    schedule = Schedule(fit["schedule"], lr, fit["warmup_epochs"], **steps)
    return [schedule.at(epoch, epochs, 1) for epoch in range(epochs)]


def table(*pieces: tuple[int, float]) -> list[float]:
    """Return a rate per epoch from (last epoch, rate), as RotNet's configurations list them."""
    found: list[float] = []
    for end, rate in pieces:
        found += [rate] * (end - len(found))
    return found


def test_rotnet_s_rates_are_the_source_s_tables() -> None:
    imagenet = table((15, 0.1), (30, 0.01), (45, 1e-3), (50, 1e-4))
    assert rates(rotnet, rotnet.Config(), batch=192, epochs=50) == pytest.approx(imagenet)
    cifar = table((60, 0.1), (120, 0.02), (160, 0.004), (200, 0.0008))
    assert rates(rotnet, rotnet.CIFAR10, batch=128, epochs=200) == pytest.approx(cifar)
    assert rotnet.CIFAR10.weight_decay == rotnet.Config().weight_decay == 5e-4


def test_moco_s_rates_are_the_source_s() -> None:
    steps = table((120, 0.03), (160, 0.003), (200, 0.0003))
    assert rates(moco_v1, moco_v1.Config(), batch=256, epochs=200) == pytest.approx(steps)
    for version in (moco_v1, moco_v2):
        demo = rates(version, version.CIFAR10, batch=512, epochs=200)
        assert demo[0] == pytest.approx(0.06)
        assert demo[100] == pytest.approx(0.03)


def test_supervised_on_cifar_is_the_usual_recipe() -> None:
    fit = supervised.recipe(supervised.CIFAR10)
    assert (fit["momentum"], fit["nesterov"], fit["weight_decay"]) == (0.9, False, 5e-4)
    found = rates(supervised, supervised.CIFAR10, batch=128, epochs=200)
    assert (found[0], found[100]) == pytest.approx((0.1, 0.05))


@pytest.mark.parametrize("plugin", [rotnet, supervised])
def test_padding_takes_the_place_of_the_resized_crop(plugin) -> None:
    """Of one bright column, a shifted image keeps the brightness; a resized one blurs it."""
    images = torch.zeros(64, 3, 32, 32)
    images[:, :, :, 16] = 1
    padded = plugin.view(plugin.CIFAR10)(images, Draws.of(images, 0))
    assert set(padded.unique().tolist()) == {0.0, 1.0}
    resized = plugin.view(plugin.Config())(images, Draws.of(images, 0))
    assert len(resized.unique()) > 10


def test_colour_recipe_differs_from_the_gray_one_by_crop_and_flip_alone() -> None:
    for plugin in METHODS:
        recipes = plugin.describe().recipes
        gray, colour = recipes["small"], recipes["small_color"]
        changed = {k for k, value in vars(colour).items() if vars(gray)[k] != value}
        assert changed == ({"flip"} if plugin is rotnet else {"flip", "crop_area"})
        assert colour.flip
        assert plugin is rotnet or colour.crop_area == (0.3, 1.0)


def test_the_floor_is_searched_over_both_initialisations() -> None:
    assert random_init.describe().search == {"rescaled": ("choice", False, True)}
