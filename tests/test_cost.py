"""The study of memory: which steps it compares, and what it makes of their estimates."""

from __future__ import annotations

import pytest

from bench import claim, manager
from bench.memory import CATEGORIES, Estimate, Step
from bench.studies import NAMES, cost


def pretended(step: Step) -> Estimate:
    """150 bytes an image, the square of the whole batch over 1,000; a queue has no gradient."""
    per_image = 150 if step.plugin == cost.SETTINGS["end_to_end"] else 100
    activations = per_image * step.batch_per_card + step.batch_size**2 // 1000
    parts = dict.fromkeys(CATEGORIES, 0) | {"parameters": 2_000, "activations": activations}
    return Estimate(**parts, total=2_000 + activations)


def test_the_study_compares_what_one_card_of_eight_holds():
    observed = cost.compare(cost.SETTINGS | {"claimed_gb": 1e-4}, pretended)
    shared = 2_000 + 256**2 // 1000
    small, queue = shared + 150 * 32, shared + 100 * 32
    large = 2_000 + 150 * 512 + 4096**2 // 1000
    assert observed.values["memory_ratio"] == pytest.approx(small / queue)
    assert observed.values["memory_against_93"] == pytest.approx(100 * (large / 1e5 - 1))
    alone = 2_000 + 150 * 512 + 512**2 // 1000
    assert observed.shown["memory_against_93_alone"] == pytest.approx(100 * (alone / 1e5 - 1))


@pytest.mark.parametrize("name", ["moco-memory", "simclr-93g"])
def test_the_study_has_what_the_registered_claims_ask_for(name):
    (contrast,) = claim.load_claim(name).contrasts
    assert contrast.study == cost.ID in NAMES
    assert contrast.quantity in cost.compare(cost.SETTINGS, pretended).values


def test_its_methods_are_installed():
    assert {cost.SETTINGS["end_to_end"], cost.SETTINGS["queue"]} <= set(manager.installed())
