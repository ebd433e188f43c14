"""Latent diffusion: two stages in one budget, resumed to the same bytes, and the scale between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_plugins import latent_diffusion as ldm
from torch import Tensor

from bench import Unsupported, backbones, cards, rehearsal
from bench.engine import Interrupted, Trainer
from bench.errors import UserError

CONFIG = replace(ldm.SMALL, decoder_width=4, width=8, latent_channels=2, first_base_lr=2e-2)
NARROW = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}


def stored() -> np.ndarray:
    """Return 64 images of 16 px, flat or in two halves."""
    generator = np.random.Generator(np.random.PCG64(0))
    images = np.tile(generator.integers(0, 120, (64, 1, 1, 1)), (1, 3, 16, 16)).astype(np.uint8)
    images[::2, :, :, 8:] += 120
    return images


def trainer(folder: Path, steps: int) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(stored(), None, None, steps=steps, batch_size=16, seed=0, folder=folder)


def pretrain(engine: Trainer, config: ldm.Config = CONFIG, kind: dict = NARROW) -> ldm.LDM:
    torch.manual_seed(0)
    return ldm.pretrain(engine.place(backbones.build(kind, 16)), config, engine)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ldm.LDM:
    return pretrain(trainer(tmp_path_factory.mktemp("long"), 160))


def shown() -> Tensor:
    return torch.from_numpy(stored()).float() / 127.5 - 1


def test_first_stage_reconstructs_and_the_second_leaves_it_as_it_was(tmp_path: Path) -> None:
    """The first half of the budget alone gives the autoencoder of the whole."""
    whole = pretrain(trainer(tmp_path / "whole", 24))
    engine = trainer(tmp_path / "half", 24)
    first: dict[str, Tensor] = {}
    batches = engine.batches

    def noted(views, until: float = 1.0):
        yield from batches(views, until)
        if until < 1:
            first.update({n: v.clone() for n, v in engine._modules["model"].state_dict().items()})

    engine.batches = noted
    pretrain(engine)
    after = whole.state_dict()
    own = [name for name in first if name.startswith("autoencoder.")]
    assert all(torch.equal(first[name], after[name]) for name in own)
    moved = [n for n in first if n.startswith("network.") and not torch.equal(first[n], after[n])]
    assert len(moved) > 10
    assert float(first["scale"]) == 0 < float(after["scale"])


def test_trained_it_reconstructs_better_than_the_mean_image(trained: ldm.LDM) -> None:
    images = shown()
    with torch.no_grad():
        again = ldm.reconstruct(trained, images)
    error = (again - images).abs().mean()
    assert float(error) < 0.6 * float((images - images.mean(0)).abs().mean())


def test_scaled_latents_have_unit_deviation(trained: ldm.LDM) -> None:
    """The scale was measured on one batch of 16 of these 64 images."""
    with torch.no_grad():
        latents, _, _ = trained.eval().autoencoder.encode(shown())
    assert float((latents * trained.scale).std()) == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("stop", [3, 6, 9], ids=["first stage", "between", "second stage"])
def test_resumed_in_either_stage_it_ends_in_the_same_bytes(tmp_path: Path, stop: int) -> None:
    whole = pretrain(trainer(tmp_path / "whole", 12)).state_dict()
    engine = trainer(tmp_path / "parts", 12)
    step, engine.stop_signal = engine.step, None

    def stopping(loss: Tensor, optimizer: object) -> None:
        step(loss, optimizer)
        if engine.step_index == stop - 1:
            engine.stop_signal = 15

    engine.step = stopping
    with pytest.raises(Interrupted):
        pretrain(engine)
    again = trainer(tmp_path / "parts", 12)
    assert again.step_index == stop
    resumed = pretrain(again).state_dict()
    assert resumed.keys() == whole.keys()
    different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert different == []


def test_samples_and_pictures_are_images(trained: ldm.LDM, tmp_path: Path) -> None:
    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return ldm.generate(trained, 5, None, ldm.Sampling(steps=5))

    assert sample(0).shape == (5, 3, 16, 16)
    assert float(sample(0).abs().max()) <= 1
    assert not sample(0).requires_grad
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    found = ldm.picture(trained, trainer(tmp_path, 1), ldm.Sampling(steps=20))
    assert found["denoising"].shape == (8, 9, 3, 16, 16)


def test_a_vit_encodes_in_its_patches(tmp_path: Path) -> None:
    config = replace(CONFIG, encoder="vit")
    model = pretrain(trainer(tmp_path, 2), config, rehearsal.TRANSFORMER)
    assert model.autoencoder.side == 2  # patches of 8 of 16 px
    assert ldm.generate(model, 2, None, ldm.Sampling(steps=2)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("encoder", "kind"), [("vit", NARROW), ("conv", rehearsal.TRANSFORMER)], ids=["vit", "conv"]
)
def test_a_backbone_of_the_other_kind_is_unsupported(tmp_path: Path, encoder, kind) -> None:
    with pytest.raises(Unsupported, match=f"encoder '{encoder}' on"):
        pretrain(trainer(tmp_path, 2), replace(CONFIG, encoder=encoder), kind)


def test_unknown_choices_are_refused_in_one_line() -> None:
    card = ldm.describe()
    assert cards.problems(card) == []
    with pytest.raises(UserError, match="conv or vit"):
        cards.config_from(card, "small", {"encoder": "vq"})
    with pytest.raises(UserError, match="between 0 and 1"):
        cards.config_from(card, "small", {"first_stage": "1.0"})


def test_gray_data_have_gray_samples(tmp_path: Path) -> None:
    engine = Trainer(stored()[:, :1], None, None, steps=4, batch_size=16, seed=0, folder=tmp_path)
    model = pretrain(engine)
    images = ldm.generate(model, 3, None, ldm.Sampling(steps=2))
    assert images.shape == (3, 3, 16, 16)
    assert torch.equal(images[:, :1].expand_as(images), images)
    assert float(images.std()) > 0
