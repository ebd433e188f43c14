"""Classifier-free guidance: no guidance is the conditional model, and labels decide the class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_plugins import ddpm_cond
from torch import Tensor, nn

from bench import backbones, cards
from bench.diffusion import pure_noise, sample
from bench.engine import Trainer
from bench.errors import UserError

CONFIG = replace(ddpm_cond.SMALL, width=8, lr=4e-3)
NARROW = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}


def pretrain(folder: Path, steps: int) -> ddpm_cond.ConditionalDDPM:
    """Train on 64 flat images of 16 px: dark with label 0, bright with label 1."""
    folder.mkdir(exist_ok=True)
    generator = np.random.Generator(np.random.PCG64(0))
    labels = np.arange(64) % 2
    levels = generator.integers(0, 60, 64) + 190 * labels
    images = np.tile(levels.astype(np.uint8)[:, None, None, None], (1, 3, 16, 16))
    engine = Trainer(images, labels, 2, steps=steps, batch_size=16, seed=0, folder=folder)
    torch.manual_seed(0)
    return ddpm_cond.pretrain(engine.place(backbones.build(NARROW, 16)), CONFIG, engine)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ddpm_cond.ConditionalDDPM:
    return pretrain(tmp_path_factory.mktemp("long"), 150)


def generate(model: nn.Module, labels: Tensor, **settings) -> Tensor:
    torch.manual_seed(0)
    sampling = ddpm_cond.Sampling(**({"steps": 20} | settings))
    return ddpm_cond.generate(model, len(labels), labels, sampling)


def test_no_guidance_is_the_conditional_model_bit_for_bit(trained) -> None:
    labels = torch.arange(6) % 2
    torch.manual_seed(0)
    start = pure_noise(trained.average, 6, 3, 16)
    plain = sample(trained.average.eval(), trained.schedule, start, labels, steps=20)
    assert torch.equal(generate(trained, labels, guidance=0.0), plain)
    assert not torch.equal(generate(trained, labels, guidance=0.5), plain)


class Stub(nn.Module):
    """Says 1 + the label everywhere; the null token is 10."""

    num_classes = 10

    def forward(self, noisy: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.ones_like(noisy) * (1.0 + labels.view(-1, 1, 1, 1))


def test_guidance_is_the_lecture_s_formula() -> None:
    labels = torch.tensor([0, 3])
    found = ddpm_cond.guided(Stub(), 2.0, torch.zeros(2, 3, 2, 2), torch.zeros(2), labels)
    for value, label in zip(found[:, 0, 0, 0].tolist(), (0, 3), strict=True):
        assert value == (2 + 1) * (1 + label) - 2 * (1 + 10)


def test_labels_are_dropped_at_the_configured_rate() -> None:
    """Of 20,000 labels: 0.1 within five binomial standard deviations; the others stay."""
    given: list[Tensor] = []

    def network(noisy: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        given.append(labels)
        return torch.zeros_like(noisy)

    model = object.__new__(ddpm_cond.ConditionalDDPM)
    nn.Module.__init__(model)
    network.num_classes = 7
    model.label_drop, model.schedule, model.channels = 0.1, ddpm_cond.linear_schedule(), 3
    object.__setattr__(model, "network", network)
    labels = torch.arange(20_000) % 7
    torch.manual_seed(0)
    model(torch.zeros(20_000, 3, 1, 1), labels)
    dropped = given[0] == 7
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=5 * (0.09 / 20_000) ** 0.5)
    assert torch.equal(given[0][~dropped], labels[~dropped])


def levels(model: nn.Module, label: int, guidance: float) -> Tensor:
    """Return the brightness of samples with this label, each from the same noise every time."""
    return generate(model, torch.full((32,), label), guidance=guidance).mean((1, 2, 3))


def test_the_label_decides_what_is_sampled_and_guidance_more_so(trained) -> None:
    """From the same noise, the bright class is brighter, and further off under guidance."""
    plain, much = (levels(trained, 1, w) - levels(trained, 0, w) for w in (0.0, 2.0))
    assert float((plain > 0).float().mean()) > 0.9
    assert float((much > plain).float().mean()) > 0.9


def test_without_a_label_samples_lie_between_the_classes(trained) -> None:
    """The null token is the third row of the embedding: trained, and no class."""
    dark, bright, null = (float(levels(trained, label, 0.0).mean()) for label in (0, 1, 2))
    assert dark < null < bright


def test_picture_has_a_row_for_each_class(trained) -> None:
    found = ddpm_cond.picture(trained, None, ddpm_cond.Sampling(steps=20))["denoising"]
    assert found.shape == (2, 9, 3, 16, 16)
    assert float(found.abs().max()) <= 1


def test_card_says_that_it_uses_labels_and_wants_them() -> None:
    card = ddpm_cond.describe()
    assert card.uses_labels
    assert card.conditional
    assert cards.problems(card) == []
    with pytest.raises(UserError, match="expected 0 or more, below 1"):
        cards.config_from(card, "small", {"label_drop": "1.0"})
