"""MoCo v1 and v2: the papers' sentences against slow versions of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from bench_plugins import moco_v1, moco_v2
from torch import Tensor, nn

from bench import augment
from bench.engine import Trainer
from bench.layers import split_batch_norm
from bench.losses import info_nce, unit

VERSIONS = pytest.mark.parametrize("version", [moco_v1, moco_v2], ids=["v1", "v2"])


class Net(nn.Module):
    """A backbone with BatchNorm in it."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))


def model(
    version: ModuleType, *, queue: int = 12, symmetric: bool = False, groups: int = 1
) -> nn.Module:
    torch.manual_seed(0)
    config = replace(version.SMALL, symmetric=symmetric)
    moco = version.MoCo(Net(), config, queue, 0.9).double().train()
    return split_batch_norm(moco, groups)


def views(count: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, 3, 16, 16, generator=generator).double()


def slow_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> float:
    """Equation 1, query by query."""
    total = 0.0
    for query, key in zip(queries.tolist(), keys.tolist(), strict=True):
        products = [
            sum(a * b for a, b in zip(query, other, strict=True)) / temperature
            for other in [key, *queue.tolist()]
        ]
        total += np.log(np.sum(np.exp(products))) - products[0]
    return total / len(queries)


@VERSIONS
def test_loss_matches_the_loop_of_equation_1(version: ModuleType) -> None:
    moco = model(version)
    queries, keys = moco.embed(*views())
    expected = slow_loss(queries.detach(), keys, moco.queue, version.SMALL.temperature)
    assert float(moco.loss(queries, keys).detach()) == pytest.approx(expected, abs=1e-12)


def test_only_version_2_has_a_hidden_layer() -> None:
    linear = {
        v: [m for m in model(v).head.modules() if isinstance(m, nn.Linear)]
        for v in VERSIONS.args[1]
    }
    assert [len(linear[moco_v1]), len(linear[moco_v2])] == [1, 2]
    assert linear[moco_v1][0].weight.shape == (128, 6)


@VERSIONS
def test_training_follows_the_source_s_order_of_operations(version: ModuleType) -> None:
    """Queries, key encoder's average, keys, logits, enqueue; here written out literally."""
    ours, literal = model(version), model(version)
    update = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.5)
    plain = torch.optim.SGD([p for p in literal.parameters() if p.requires_grad], lr=0.5)
    pointer = 0
    for step in range(4):
        view0, view1 = views(seed=step)
        torch.manual_seed(step)
        embeddings = ours.embed(view0, view1)
        loss = ours.loss(*embeddings)
        update.zero_grad()
        loss.backward()
        update.step()
        ours.after_step(*(e.detach() for e in embeddings))

        torch.manual_seed(step)
        queries = unit(literal.head(literal.backbone(view0)))
        with torch.no_grad():
            encoder = [*literal.backbone.parameters(), *literal.head.parameters()]
            for slow, fast in zip(literal.key_encoder.parameters(), encoder, strict=True):
                slow.copy_(0.9 * slow + 0.1 * fast)
            order = torch.randperm(len(view1))
            shuffled = unit(literal.key_encoder(view1[order]))
            keys = torch.empty_like(shuffled)
            keys[order] = shuffled
        theirs = info_nce(queries, keys, literal.queue.clone(), literal.temperature)
        plain.zero_grad()
        theirs.backward()
        plain.step()
        with torch.no_grad():
            for key in keys:
                literal.queue[pointer] = key
                pointer = (pointer + 1) % len(literal.queue)
        assert float(loss.detach()) == pytest.approx(float(theirs.detach()), abs=1e-12)
        assert torch.allclose(ours.queue, literal.queue, rtol=0, atol=1e-12)
    assert int(ours.pointer) == pointer


@VERSIONS
def test_symmetric_adds_the_losses_of_both_directions(version: ModuleType) -> None:
    """As in the authors' demo: the sum, one update, both directions' keys into the queue."""
    both, one = model(version, symmetric=True), model(version)
    view0, view1 = views()
    embeddings = both.embed(view0, view1)
    loss = both.loss(*embeddings)
    forward, backward = one.embed(view0, view1), one.embed(view1, view0)
    assert torch.allclose(loss, one.loss(*forward) + one.loss(*backward), rtol=0, atol=1e-12)
    before = copy.deepcopy(list(both.key_encoder.parameters()))
    both.after_step(*(e.detach() for e in embeddings))
    assert int(both.pointer) == 8
    assert torch.allclose(both.queue[:8], torch.cat([forward[1], backward[1]]), rtol=0, atol=1e-12)
    assert torch.equal(both.queue[8:], one.queue[8:])
    assert all(map(torch.equal, before, both.key_encoder.parameters()))  # of equal encoders


@VERSIONS
def test_keys_carry_no_gradient(version: ModuleType) -> None:
    moco = model(version, symmetric=True)
    embeddings = moco.embed(*views())
    assert [e.requires_grad for e in embeddings] == [True, False, True, False]
    assert not any(p.requires_grad for p in moco.key_encoder.parameters())


@VERSIONS
def test_shuffling_changes_which_images_share_statistics(version: ModuleType) -> None:
    """In two groups of four: the keys are those of the shuffled groups, not of the batch's own."""
    moco = model(version, groups=2)
    _, images = views(8)
    torch.manual_seed(3)
    order = torch.randperm(8)
    assert {*order[:4].tolist()} not in ({0, 1, 2, 3}, {4, 5, 6, 7})
    torch.manual_seed(3)
    _, keys = moco.embed(images, images)

    slow = model(version).key_encoder
    with torch.no_grad():
        for group in order.chunk(2):
            assert torch.allclose(keys[group], unit(slow(images[group])), rtol=0, atol=1e-12)
        unshuffled = unit(torch.cat([slow(part) for part in images.chunk(2)]))
    assert not torch.allclose(keys, unshuffled, atol=1e-3)


def test_version_1_drops_colour_before_it_jitters_every_image() -> None:
    """main_moco.py without --aug-plus: crop, grayscale (0.2), jitter (always), flip."""
    images = torch.rand(400, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    config = moco_v1.Config(crop_area=(1.0, 1.0))
    draws = augment.Draws.of(images, 0)
    literal = augment.compose(
        augment.random_resized_crop(scale=(1.0, 1.0)),
        augment.grayscale(p=0.2),
        augment.color_jitter(0.4, 0.4, 0.4, 0.4, p=1.0),
        augment.horizontal_flip(p=0.5),
    )
    seen = moco_v1.view(config)(images, draws)
    assert torch.equal(seen, literal(images, augment.Draws.of(images, 0)))
    gray = (seen.amax(1) - seen.amin(1)).amax((1, 2)) < 1e-5
    assert 40 < int(gray.sum()) < 120  # 80 expected, standard deviation 8
    changed = (seen.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs() > 1e-6
    assert int(changed.sum()) == 400

    demo = moco_v1.view(replace(moco_v1.CIFAR10, crop_area=(1.0, 1.0)))
    untouched = demo(images, augment.Draws.of(images, 0)).mean((1, 2, 3)) - images.mean((1, 2, 3))
    assert int((untouched.abs() < 1e-6).sum()) > 20  # 80 % jittered, 80 % of the rest in colour


def trained(version: ModuleType, folder: Path, **overrides: object) -> tuple[nn.Module, Trainer]:
    """Return the model of three steps of eight images out of 40, in float64."""
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    folder.mkdir()
    engine = Trainer(
        images, None, None, steps=3, batch_size=8, seed=0, folder=folder, precision="fp64"
    )
    torch.manual_seed(0)
    config = replace(version.SMALL, **overrides)
    return version.pretrain(Net(), config, engine), engine


@VERSIONS
def test_the_queue_holds_whole_steps_of_half_the_images(
    version: ModuleType, tmp_path: Path
) -> None:
    once, _ = trained(version, tmp_path / "once")
    twice, _ = trained(version, tmp_path / "twice", symmetric=True)
    assert len(once.queue) == 16  # 2 x 8 of at most 20
    assert len(twice.queue) == 16  # one step of both directions
    assert int(once.pointer) == 8  # after 24 keys
    assert int(twice.pointer) == 0  # after 48
    assert once.momentum ** (0.7 * 5) == pytest.approx(0.5)
    fixed, _ = trained(version, tmp_path / "fixed", half_life_epochs=None)
    assert fixed.momentum == 0.999


def test_recipes_hold_the_sources_values() -> None:
    """main_moco.py's command lines and the demo's cell of arguments."""
    card = moco_v1.describe()
    assert card.recipes.keys() == {"small", "small_color", "cifar10"}
    first = moco_v1.Config()
    assert (first.queue_size, first.momentum, first.temperature) == (65536, 0.999, 0.07)
    assert moco_v1.recipe(first) == {
        "optimizer": "sgd",
        "base_lr": 0.03,
        "lr": None,
        "weight_decay": 1e-4,
        "warmup_epochs": 0.0,
        "schedule": "multistep",
        "milestones": (120 / 200, 160 / 200),
        "gamma": 0.1,
    }
    for version in (moco_v1, moco_v2):
        demo = version.CIFAR10
        assert (demo.queue_size, demo.momentum, demo.temperature) == (4096, 0.99, 0.1)
        assert (demo.base_lr * 512 / 256, demo.weight_decay) == (0.06, 5e-4)
        assert (demo.batch_norm_groups, demo.symmetric) == (8, False)
        assert version.recipe(demo)["schedule"] == "cosine"
    assert moco_v1.describe().search == moco_v2.describe().search
