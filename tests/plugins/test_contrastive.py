"""SimCLR and MoCo v2: the papers' sentences, and two processes equal to one in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from bench_plugins import moco_v2, simclr
from torch import Tensor, nn

from bench import Unsupported
from bench.engine import Trainer
from bench.layers import group_batch_norm, split_batch_norm
from bench.losses import info_nce, unit
from bench.probe import fork_server

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 3, 16, 16), dtype=np.uint8)
STEPS, BATCH = 3, 8


class Net(nn.Module):
    """A backbone with BatchNorm in it."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))


SMALL_MOCO = replace(moco_v2.SMALL, optimizer="sgd", lr=0.1, warmup_epochs=0.0, queue_size=16)
SMALL_SIMCLR = replace(simclr.SMALL, optimizer="sgd", lr=0.1, warmup_epochs=0.0)


def train(rank: int, world: int, folder: str, method: str, groups: int) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    place = Path(folder)
    if world > 1:
        where = f"file://{place / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    engine = Trainer(
        IMAGES,
        None,
        None,
        steps=STEPS,
        batch_size=BATCH,
        seed=0,
        folder=place,
        precision="fp64",
        rank=rank,
        world=world,
    )
    torch.manual_seed(0)
    losses: list[Tensor] = []
    if method == "contrastive":
        model = group_batch_norm(simclr.SimCLR(Net(), SMALL_SIMCLR))
        config, view, after = SMALL_SIMCLR, simclr.view(SMALL_SIMCLR), None
        args = simclr.recipe(config)
    else:
        model = moco_v2.MoCo(Net(), SMALL_MOCO, 16, 0.9)
        split_batch_norm(model, moco_v2.groups_here(replace(SMALL_MOCO, batch_norm_groups=groups)))
        config, view, after = SMALL_MOCO, moco_v2.view(SMALL_MOCO), model.after_step
        args = moco_v2.recipe(config)
    original = model.loss

    def recorded(*embeddings: Tensor) -> Tensor:
        losses.append(original(*embeddings))
        return losses[-1]

    model.loss = recorded
    engine.fit(model, views=(view, view), after_step=after, **args)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    state = {
        "losses": torch.stack(losses).detach(),
        "parameters": dict(model.named_parameters()),
        "gradients": gradients,
        "buffers": {n: b for n, b in model.named_buffers() if b.is_floating_point()},
    }
    torch.save(state, place / f"{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def trained(folder: Path, world: int, method: str, groups: int = 2) -> list[dict[str, Any]]:
    place = folder / f"world{world}"
    place.mkdir()
    context = fork_server()
    processes = [
        context.Process(target=train, args=(rank, world, str(place), method, groups))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * world
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("method", ["contrastive", "queue"])
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    """The queue's method: BatchNorm in two groups, which two processes share; the same shuffle.

    Running statistics are compared too: they are part of the backbone that is judged.
    """
    (whole,) = trained(tmp_path, 1, method)
    first, second = trained(tmp_path, 2, method)
    mean = (first["losses"] + second["losses"]) / 2
    assert torch.allclose(mean, whole["losses"], rtol=0, atol=1e-9)
    for part in ("gradients", "parameters", "buffers"):
        assert first[part].keys() == whole[part].keys()
        for name, expected in whole[part].items():
            assert torch.allclose(first[part][name], expected, rtol=0, atol=1e-9), name
    for part in ("parameters", "buffers"):
        assert all(torch.equal(second[part][n], value) for n, value in first[part].items())


def test_groups_that_the_processes_cannot_share_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe decides the groups, whatever the number of processes: a run id has one result."""
    monkeypatch.setattr(moco_v2, "world_size", lambda: 2)
    assert moco_v2.groups_here(replace(SMALL_MOCO, batch_norm_groups=8)) == 4
    with pytest.raises(Unsupported, match="1 BatchNorm groups do not divide among 2 processes"):
        moco_v2.groups_here(replace(SMALL_MOCO, batch_norm_groups=1))


def model(queue: int = 12, momentum: float = 0.9) -> moco_v2.MoCo:
    torch.manual_seed(0)
    return moco_v2.MoCo(Net(), SMALL_MOCO, queue, momentum).double().train()


def test_training_follows_the_source_s_order_of_operations() -> None:
    """Queries, key encoder's average, keys, logits, enqueue; here written out literally."""
    ours, literal = model(), model()
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randn(2, 4, 3, 16, 16, generator=generator).double() for _ in range(4)]
    update = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.5)
    plain = torch.optim.SGD([p for p in literal.parameters() if p.requires_grad], lr=0.5)
    pointer = 0
    for step, (view0, view1) in enumerate(steps):
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


def test_queue_wraps_around() -> None:
    moco = model(queue=6)
    keys = unit(torch.randn(4, 128, dtype=torch.float64))
    moco.after_step(keys, keys)
    moco.after_step(keys, keys)
    assert int(moco.pointer) == 2
    assert torch.equal(moco.queue[[4, 5, 0, 1]], keys)
    assert torch.equal(moco.queue[[2, 3]], keys[2:])


def test_keys_carry_no_gradient() -> None:
    moco = model()
    queries, keys = moco.embed(*torch.randn(2, 4, 3, 16, 16, dtype=torch.float64))
    assert queries.requires_grad
    assert not keys.requires_grad
    assert not any(p.requires_grad for p in moco.key_encoder.parameters())


def test_queue_holds_at_most_half_of_the_images_in_whole_batches() -> None:
    engine = SimpleNamespace(num_images=1167, batch_size=128)
    assert moco_v2.queue_size(moco_v2.SMALL, engine) == 512
    assert moco_v2.queue_size(replace(moco_v2.SMALL, queue_size=300), engine) == 256
    steps_of_half_life = 0.7 * 9
    assert moco_v2.momentum(moco_v2.SMALL, engine) ** steps_of_half_life == pytest.approx(0.5)
    assert moco_v2.momentum(moco_v2.Config(), engine) == 0.999


def test_both_views_pass_as_one_batch() -> None:
    net = simclr.SimCLR(Net(), simclr.SMALL).train()
    view0, view1 = torch.randn(2, 4, 3, 16, 16)
    apart = copy.deepcopy(net)
    z0, _ = net.embed(view0, view1)
    features = apart.backbone(torch.cat([view0, view1]))
    assert torch.allclose(z0, apart.head(features)[:4])
    assert not torch.allclose(z0, apart.head(apart.backbone(view0)), atol=1e-3)


@pytest.mark.parametrize(("head", "linear_layers"), [("none", 0), ("linear", 1), ("mlp", 2)])
def test_head_is_none_linear_or_mlp(head: str, linear_layers: int) -> None:
    net = simclr.SimCLR(Net(), replace(simclr.SMALL, head=head))
    assert sum(isinstance(m, nn.Linear) for m in net.head.modules()) == linear_layers
    width = 6 if head == "none" else 128
    assert net.embed(*torch.randn(2, 4, 3, 16, 16))[0].shape == (4, width)
    with pytest.raises(ValueError, match="expected none, linear or mlp"):
        simclr.SimCLR(Net(), replace(simclr.SMALL, head="deep"))
