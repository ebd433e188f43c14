"""SimCLR's sentences; and SimCLR and MoCo, two processes equal to one in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from bench_plugins import moco_v1, moco_v2, simclr
from torch import Tensor, nn

from bench.engine import Trainer
from bench.layers import group_batch_norm, groups_per_process, split_batch_norm
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


PLAIN = {"optimizer": "sgd", "lr": 0.1, "warmup_epochs": 0.0}


def train(rank: int, world: int, folder: str, method: str) -> None:
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
    if method == "batch":
        plugin, config, after = simclr, replace(simclr.SMALL, **PLAIN), None
        model = group_batch_norm(simclr.SimCLR(Net(), config))
    else:
        plugin = {"v1": moco_v1, "v2": moco_v2, "symmetric": moco_v2}[method]
        config = replace(plugin.SMALL, **PLAIN, symmetric=method == "symmetric")
        model = plugin.MoCo(Net(), config, 16, 0.9)
        split_batch_norm(model, groups_per_process(2))
        after = model.after_step
    view = plugin.view(config)
    original = model.loss

    def recorded(*embeddings: Tensor) -> Tensor:
        losses.append(original(*embeddings))
        return losses[-1]

    model.loss = recorded
    engine.fit(model, views=(view, view), after_step=after, **plugin.recipe(config))
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


def trained(folder: Path, world: int, method: str) -> list[dict[str, Any]]:
    place = folder / f"world{world}"
    place.mkdir()
    context = fork_server()
    processes = [
        context.Process(target=train, args=(rank, world, str(place), method))
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


@pytest.mark.parametrize("method", ["batch", "v1", "v2", "symmetric"])
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    """MoCo: BatchNorm in two groups, which two processes share; the same shuffle.

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


def test_both_views_pass_as_one_batch() -> None:
    net = simclr.SimCLR(Net(), simclr.SMALL).train()
    view0, view1 = torch.randn(2, 4, 3, 16, 16)
    apart = copy.deepcopy(net)
    z0, _ = net.embed(view0, view1)
    features = apart.backbone(torch.cat([view0, view1]))
    assert torch.allclose(z0, apart.head(features)[:4])
    assert not torch.allclose(z0, apart.head(apart.backbone(view0)), atol=1e-3)


def test_every_recipe_and_head_leaves_a_module_as_head() -> None:
    """What a study reads beside the backbone; without a projection it is the identity."""
    for config in (simclr.Config(), *simclr.describe().recipes.values()):
        for head in ("none", "linear", "mlp"):
            assert isinstance(simclr.SimCLR(Net(), replace(config, head=head)).head, nn.Module)


@pytest.mark.parametrize(("head", "linear_layers"), [("none", 0), ("linear", 1), ("mlp", 2)])
def test_head_is_none_linear_or_mlp(head: str, linear_layers: int) -> None:
    net = simclr.SimCLR(Net(), replace(simclr.SMALL, head=head))
    assert sum(isinstance(m, nn.Linear) for m in net.head.modules()) == linear_layers
    width = 6 if head == "none" else 128
    assert net.embed(*torch.randn(2, 4, 3, 16, 16))[0].shape == (4, width)
    with pytest.raises(ValueError, match="expected none, linear or mlp"):
        simclr.SimCLR(Net(), replace(simclr.SMALL, head="deep"))
