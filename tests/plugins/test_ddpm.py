"""DDPM: the loss at the start, the average that samples, and both of its networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_plugins import ddpm
from torch import Tensor

from bench import backbones, cards, rehearsal
from bench.engine import Trainer
from bench.errors import UserError

CONFIG = replace(ddpm.SMALL, width=8, ema_half_life_epochs=None, ema=0.5)
NARROW = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}


def trainer(folder: Path, steps: int, channels: int = 3) -> Trainer:
    """Return an engine over 64 images of 16 px that are bright on one side."""
    folder.mkdir(exist_ok=True)
    generator = np.random.Generator(np.random.PCG64(0))
    levels = generator.integers(0, 60, (64, 1, 1, 1), dtype=np.uint8)
    images = np.tile(levels, (1, channels, 16, 16))
    images[:32, :, :, 8:] += 180
    images[32:, :, :, :8] += 180
    return Trainer(images, None, None, steps=steps, batch_size=16, seed=0, folder=folder)


def pretrain(folder: Path, steps: int, config: ddpm.Config = CONFIG) -> ddpm.DDPM:
    engine = trainer(folder, steps)
    torch.manual_seed(0)
    return ddpm.pretrain(engine.place(backbones.build(NARROW, 16)), config, engine)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ddpm.DDPM:
    return pretrain(tmp_path_factory.mktemp("long"), 200)


def test_loss_is_about_1_before_training(tmp_path: Path) -> None:
    """The mean square of 256 x 768 standard normal numbers: 1 within 0.02 but for 1 in 10^6."""
    model = pretrain(tmp_path, 0)
    with torch.no_grad():
        assert float(model(torch.rand(256, 3, 16, 16) * 2 - 1)) == pytest.approx(1, abs=0.02)


def test_training_finds_most_of_the_noise(trained: ddpm.DDPM) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        loss = float(trained.eval()(torch.rand(256, 3, 16, 16) * 2 - 1))
    assert loss < 0.5


def test_average_follows_the_trained_weights_by_its_momentum(tmp_path: Path) -> None:
    """After one step from equal weights: half of the way, since CONFIG.ema is 0.5."""
    start, model = pretrain(tmp_path / "none", 0), pretrain(tmp_path / "one", 1)
    begun = dict(start.network.named_parameters())
    average = dict(model.average.named_parameters())
    moved = 0
    for name, parameter in model.network.named_parameters():
        expected = 0.5 * begun[name] + 0.5 * parameter
        assert torch.allclose(average[name], expected, atol=1e-7), name
        moved += not torch.equal(begun[name], parameter)
    assert moved == 4  # two layers start at zero; all behind the last waits for it to leave


def test_average_samples_and_the_backbone_is_the_trained_one(trained: ddpm.DDPM) -> None:
    def sample() -> Tensor:
        torch.manual_seed(0)
        return ddpm.generate(trained, 4, None, ddpm.Sampling(steps=3))

    before = sample()
    assert before.shape == (4, 3, 16, 16)
    assert float(before.abs().max()) <= 1
    kept = {name: value.clone() for name, value in trained.state_dict().items()}
    with torch.no_grad():
        for parameter in trained.network.parameters():
            parameter.zero_()
    assert not any(p.any() for p in trained.backbone.parameters())
    assert torch.equal(sample(), before)
    trained.load_state_dict(kept)


def rough(images: Tensor) -> Tensor:
    """Return how much neighbours in a row differ, for each image (..., 3, H, W)."""
    return (images[..., 1:] - images[..., :-1]).abs().mean((-3, -2, -1))


@pytest.mark.parametrize(
    "sampling",
    [ddpm.Sampling(steps=20), ddpm.Sampling("ancestral", 50, variance="fixedsmall")],
    ids=["ddim", "ancestral"],
)
def test_samples_are_smoother_than_those_of_an_untrained_network(
    trained: ddpm.DDPM, tmp_path: Path, sampling: ddpm.Sampling
) -> None:
    """The data is two flat halves. Found: 0.65 to 0.85 of the untrained roughness."""
    found = []
    for model in (trained, pretrain(tmp_path, 0)):
        torch.manual_seed(0)
        found.append(float(rough(ddpm.generate(model, 64, None, sampling)).mean()))
    assert found[0] < 0.9 * found[1]


def test_denoising_strip_goes_from_noise_to_image(trained: ddpm.DDPM, tmp_path: Path) -> None:
    sampling = ddpm.Sampling("ancestral", 50, variance="fixedsmall")
    found = ddpm.picture(trained, trainer(tmp_path, 1), sampling)["denoising"]
    assert found.shape == (8, 9, 3, 16, 16)
    assert float(found.abs().max()) <= 1
    assert float(rough(found[:, -1]).mean()) < 0.8 * float(rough(found[:, 0]).mean())


def test_gray_images_are_noised_on_one_plane(tmp_path: Path) -> None:
    engine = trainer(tmp_path, 20, channels=1)
    seen: list[Tensor] = []
    backbone = engine.place(backbones.build(NARROW, 16))
    backbone.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model = ddpm.pretrain(backbone, CONFIG, engine)
    drawn = ddpm.generate(model, 4, None, ddpm.Sampling(steps=5))
    assert drawn.shape == (4, 3, 16, 16)
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    assert all(torch.equal(images[:, 0], images[:, 1]) for images in seen)
    assert float(seen[-1].std()) > 0.2
    chain = ddpm.picture(model, engine, ddpm.Sampling(steps=5))["denoising"]
    assert chain.shape[2] == 3


def test_both_weightings_train_and_differ(tmp_path: Path) -> None:
    simple = pretrain(tmp_path / "simple", 2)
    bound = pretrain(tmp_path / "bound", 2, replace(CONFIG, weighting="bound"))
    assert simple.weights is None
    assert float(bound.weights[0]) > 5 * float(bound.weights[500])
    pairs = zip(simple.network.parameters(), bound.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_the_paper_s_network_leaves_the_backbone_as_it_was(tmp_path: Path) -> None:
    paper = replace(CONFIG, network="paper", multipliers=(1, 2), blocks=1)
    model = pretrain(tmp_path, 2, paper)
    torch.manual_seed(0)
    drawn = backbones.build(NARROW, 16)
    for one, other in zip(model.backbone.parameters(), drawn.parameters(), strict=True):
        assert torch.equal(one, other)
    assert ddpm.generate(model, 2, None, ddpm.Sampling(steps=2)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("field", "said"),
    [("network", "backbone or paper"), ("weighting", "simple or bound"), ("variance", "fixed")],
)
def test_unknown_choices_are_refused_in_one_line(field, said) -> None:
    card = ddpm.describe()
    with pytest.raises(UserError, match=said):
        cards.config_from(card, "small", {field: "other"})


def test_defaults_are_the_paper_s() -> None:
    config = ddpm.Config()
    assert (config.steps, *config.betas) == (1000, 1e-4, 0.02)
    assert (config.lr, config.ema, config.dropout, config.max_grad_norm) == (2e-4, 0.9999, 0.1, 1)
    assert round(config.warmup_epochs * (50_000 // 128)) == pytest.approx(5000, abs=10)


def test_rehearsal_s_transformer_is_a_contracting_path_too(tmp_path: Path) -> None:
    engine = trainer(tmp_path, 1)
    backbone = engine.place(backbones.build(rehearsal.TRANSFORMER, 16))
    model = ddpm.pretrain(backbone, CONFIG, engine)
    assert ddpm.generate(model, 2, None, ddpm.Sampling(steps=2)).shape == (2, 3, 16, 16)
