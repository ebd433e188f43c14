"""Two processes train as one does: the same losses and parameters in float64, equal ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.engine import Trainer
from bench.errors import Diverged
from bench.layers import group_batch_norm

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(24) % 4
STEPS, BATCH_SIZE = 3, 8


class Classifier(nn.Module):
    """A convolutional classifier that keeps its losses; `norm` says which layers have BatchNorm.

    No image reaches `idle`; `rare` is in the graph where a process has images of class 3.
    """

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers = [nn.BatchNorm2d(4)] if norm else []
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(144, 6), *([nn.BatchNorm1d(6)] if norm else []))
        self.classify = nn.Linear(6, 4)
        self.idle, self.rare = nn.Linear(2, 2), nn.Linear(6, 1)
        self.losses: list[Tensor] = []
        self.met: list[bool] = []

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.head(self.backbone(images))
        loss = cross_entropy(self.classify(features), labels)
        chosen = labels == 3
        self.met.append(bool(chosen.any()))
        if self.met[-1]:
            loss = loss + (chosen * self.rare(features).squeeze(1).sin()).mean()
        self.losses.append(loss.detach())
        return loss


def jitter(images: Tensor, draws: Any) -> Tensor:
    """A view whose numbers are drawn for the whole batch and sliced by process."""
    return (images + 0.1 * draws.uniform()[:, None, None, None].to(images)).clamp(0, 1)


def train(rank: int, world: int, folder: str, settings: dict[str, Any]) -> None:
    """Train in this process, one of `world`; leave `<rank>.pt` in `folder`."""
    torch.set_num_threads(1)
    place = Path(folder)
    if world > 1:
        where = f"file://{place / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    engine = Trainer(
        IMAGES,
        LABELS,
        4,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        seed=0,
        folder=place,
        precision="fp64",
        rank=rank,
        world=world,
    )
    # Processes begin from other weights; `prepare` makes them equal to the first one's.
    torch.manual_seed(rank)
    model = Classifier(settings["norm"])
    model = group_batch_norm(model) if settings["group"] else model
    engine.fit(model, views=(jitter,), **settings["recipe"])
    state = {"losses": torch.stack(model.losses), "model": model.state_dict(), "met": model.met}
    torch.save(state, place / f"{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def trained(folder: Path, world: int, **settings: Any) -> list[dict[str, Any]]:
    """Return what each of `world` processes ended with."""
    place = folder / f"world{world}"
    place.mkdir()
    several.run(train, world, world, str(place), settings)
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(world)]


def largest_difference(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Return the largest difference between two states, parameters and buffers alike."""
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


SGD = {"optimizer": "sgd", "lr": 0.5, "weight_decay": 1e-2}
ADAMW = {"optimizer": "adamw", "lr": 0.05, "max_grad_norm": 0.1, "schedule": "constant"}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"norm": True, "group": True, "recipe": SGD}, id="grouped BatchNorm"),
        pytest.param({"norm": False, "group": False, "recipe": SGD}, id="no BatchNorm"),
        pytest.param({"norm": False, "group": False, "recipe": ADAMW}, id="clipped AdamW"),
    ],
)
def test_two_processes_train_as_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    (whole,) = trained(tmp_path, 1, **settings)
    first, second = trained(tmp_path, 2, **settings)
    assert whole["losses"].shape == (STEPS,)
    assert whole["losses"].dtype == torch.float64
    mean = (first["losses"] + second["losses"]) / 2
    assert torch.allclose(mean, whole["losses"], rtol=0, atol=1e-9)
    assert largest_difference(first["model"], whole["model"]) < 1e-9
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    assert first["met"] != second["met"]  # so a gradient was one process's alone


def test_batch_norm_per_process_is_another_training(tmp_path: Path) -> None:
    """The control: what `group_batch_norm` makes equal is not equal without it."""
    settings = {"norm": True, "group": False, "recipe": SGD}
    (whole,) = trained(tmp_path, 1, **settings)
    first, second = trained(tmp_path, 2, **settings)
    assert largest_difference(first["model"], whole["model"]) > 1e-3
    parameters = [name for name, _ in Classifier(norm=True).named_parameters()]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in parameters)


def diverge(rank: int, world: int, folder: str) -> None:
    """Train into a loss that is no number; leave the step at which this process was stopped."""
    torch.set_num_threads(1)
    place = Path(folder)
    where = f"file://{place / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    engine = Trainer(
        IMAGES, LABELS, 4, steps=6, batch_size=8, seed=0, folder=place, rank=rank, world=world
    )
    engine._finite.defer = True  # as on CUDA
    engine._log_every, engine.checkpoint_seconds = 4, (1e9, 0.0)[rank]  # clocks differ
    model = engine.prepare(nn.Linear(3, 1))
    update = engine.optimizer(model, "sgd", lr=0.1, name="model")

    def train() -> None:
        for batch in engine.batches():
            loss = model(batch.views[0].mean((2, 3))).mean()
            engine.step(loss / (0 if engine.step_index == 1 else 1), update)

    with pytest.raises(Diverged, match="at step 1"):
        train()
    torch.save(engine.step_index, place / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_stop_together_where_a_loss_is_no_number(tmp_path: Path) -> None:
    """A process that stopped at its own checkpoint would leave the others waiting for it."""
    several.run(diverge, 2, 2, str(tmp_path))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [4, 4]
