"""Every plugin that is installed here, and one with a loop of its own, keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import backbones, checks, manager, rehearsal
from bench.data import load
from bench.engine import Trainer

GAN = Path(__file__).parents[1] / "own_loop_gan.py"
# {method: {check: why it fails}}; a check that passes although it stands here fails.
EXPECTED: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("name", [*manager.installed(), str(GAN)], ids=manager.method_name)
def test_plugin_keeps_the_contract(name: str) -> None:
    found = checks.run_checks(name, expected_failures=EXPECTED.get(manager.method_name(name)))
    failed = [f"{check.id}: {check.detail}" for check in found if check.status == "failed"]
    assert not failed
    assert [check.id for check in found] == list(checks.RULES)


def test_expected_failures_are_of_installed_plugins() -> None:
    assert set(EXPECTED) <= {*manager.installed(), GAN.stem}


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
