"""Every plugin that is installed here, and one with a loop of its own, keeps the contract."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import backbones, manager, rehearsal
from bench.data import load
from bench.engine import Trainer
from bench.testing import PluginCheck, parametrize_plugin_checks

GAN = Path(__file__).parents[1] / "own_loop_gan.py"
# The contract does not depend on the width: networks beside the backbone, narrow for speed.
NARROW = {
    "began": {"width": "4"},
    "bigan": {"width": "8", "discriminator_width": "8"},
    "biggan": {"widths": "16,16,8,8"},
    "dcgan": {"width": "8"},
    "ddpm": {"width": "16"},
    "ddpm_cond": {"width": "16"},
    "gan": {"width": "8"},
    "latent_diffusion": {"width": "16", "decoder_width": "8"},
    "vae": {"width": "8"},
    "wgan": {"width": "8"},
}


@parametrize_plugin_checks([*manager.installed(), GAN], settings=NARROW)
def test_plugin_keeps_the_contract(plugin: str, check: PluginCheck) -> None:
    check(plugin)


def test_a_gan_with_two_optimizers_generates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    archive = rehearsal.write_images(tmp_path / "images.npz")
    images = load(f"npz:{archive}", image_size=32, test=False).images["train"]
    plugin = manager.load(str(GAN))
    card = plugin.call("describe")
    engine = Trainer(images, None, None, steps=3, batch_size=8, seed=0, folder=tmp_path)
    backbone = engine.place(backbones.build(rehearsal.CONVOLUTIONAL, 32))
    before = [p.clone() for p in backbone.parameters()]
    model = plugin.call("pretrain", backbone=backbone, config=card.defaults, engine=engine)
    assert engine.progress == 1
    assert model.backbone is backbone
    assert any(not torch.equal(p, q) for p, q in zip(backbone.parameters(), before, strict=True))

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return plugin.call(
            "generate", model=model, num_images=5, labels=None, sampling=card.sampling
        )

    assert sample(0).shape == (5, 3, 32, 32)
    assert sample(0).abs().max() <= 1
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
