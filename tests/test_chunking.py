"""Gradient caching: a whole batch's gradient from chunks, and all else moved once a step."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several
import torch
import torch.distributed as dist
from bench_plugins import moco_v2, simclr
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.backbones import build
from bench.engine import Interrupted, Trainer
from bench.errors import Diverged, Unsupported, UserError
from bench.layers import fix_batch_norm, group_batch_norm
from bench.losses import nt_xent
from bench.saving import images_per_chunk

BATCH, SIZE = 24, 32
IMAGES = np.random.default_rng(0).integers(0, 256, (96, 3, SIZE, SIZE), dtype=np.uint8)
HEADLESS = simclr.Config(head="none", temperature=0.5)
OPTIONS = {"lr": 0.1}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def backbone(name: str = "test_resnet", **args: Any) -> nn.Module:
    torch.manual_seed(0)
    args |= {"patch_size": 8} if "vit" in name else {}
    return build({"name": name, "args": args, "stem": None}, SIZE)


def contrastive(name: str = "test_resnet", **args: Any) -> nn.Module:
    return simclr.SimCLR(backbone(name, **args), HEADLESS)


class Small(nn.Module):
    """Two layers with BatchNorm."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU()]
        layers += [nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def small() -> nn.Module:
    return simclr.SimCLR(Small(), HEADLESS)


def queued() -> nn.Module:
    config = moco_v2.Config(head_features=8)
    return moco_v2.MoCo(backbone(), config, queue_size=2 * BATCH, momentum=0.9)


def jitter(images: Tensor, draws: Any) -> Tensor:
    return (images + 0.3 * draws.uniform(-1, 1)[:, None, None, None]).clamp(0, 1)


def trainer(folder: Path, **more: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    settings = {"steps": 1, "batch_size": BATCH, "seed": 0, "folder": folder} | more
    return Trainer(IMAGES, None, None, **settings)


def gradient(model: nn.Module, folder: Path, *, clip: float | None = None, **more: Any) -> Tensor:
    """Return the gradient that the first step of `fit` leaves, all parameters in one vector."""
    engine = trainer(folder, **more)
    engine.fit(model, views=(jitter, jitter), max_grad_norm=clip, **OPTIONS)
    return gradients_of(model)


def gradients_of(model: nn.Module) -> Tensor:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([values.double().flatten() for values in found])


def views_of_the_first_step(folder: Path) -> tuple[Tensor, ...]:
    return next(trainer(folder, precision="fp64").batches((jitter, jitter))).views


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("precision", "most", "chunk"), [("fp32", 1e-5, 8), ("fp64", 1e-9, 2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: contrastive("test_vit"),  # LayerNorm
        lambda: fix_batch_norm(contrastive()),  # BatchNorm as in evaluation
        lambda: fix_batch_norm(queued()),
    ],
    ids=["layer_norm", "fixed_batch_norm", "queue"],
)
def test_the_gradient_is_that_of_the_whole_batch(
    tmp_path: Path, make: Any, precision: str, most: float, chunk: int
) -> None:
    whole = gradient(make(), tmp_path / "whole", precision=precision)
    found = gradient(make(), tmp_path / "chunks", precision=precision, chunk=chunk)
    assert whole.norm() > 1e-3
    assert distance(found, whole) < most


def test_batch_norm_is_that_of_one_chunk_and_its_statistics_move_once(tmp_path: Path) -> None:
    chunk, model = 8, small().double()
    views = views_of_the_first_step(tmp_path / "seen")
    start = {name: b.clone() for name, b in model.named_buffers()}
    parts, statistics = [], []
    for piece in zip(*(view.split(chunk) for view in views), strict=True):
        for name in start:  # other tensors: those before belong to a graph
            place, _, last = name.rpartition(".")
            model.get_submodule(place)._buffers[last] = start[name].clone()
        parts.append(model.embed(*piece))
        statistics.append({name: b.clone() for name, b in model.named_buffers()})
    nt_xent(*(torch.cat(column) for column in zip(*parts, strict=True)), 0.5).backward()
    expected = gradients_of(model)

    again = small()
    found = gradient(again, tmp_path / "chunks", precision="fp64", chunk=chunk)
    assert distance(found, expected) < 1e-9
    whole = gradient(small(), tmp_path / "whole", precision="fp64")
    assert distance(found, whole) > 1e-3  # the batch's statistics are others
    for name, buffer in again.named_buffers():
        states = torch.stack([state[name] for state in statistics])
        assert torch.allclose(buffer.double(), states.double().mean(0), rtol=1e-12), name
    assert int(again.backbone.layers[1].num_batches_tracked) == 1


def test_queue_and_moving_average_move_once_a_step_with_all_keys(tmp_path: Path) -> None:
    model, calls = queued(), []

    def after_step(*embeddings: Tensor) -> None:
        assert not any(e.requires_grad for e in embeddings)
        key, weight = (next(m.parameters()) for m in (model.key_encoder, model.backbone))
        moved = key.lerp(weight, 1 - model.momentum)
        model.after_step(*embeddings)
        assert torch.allclose(key, moved)
        calls.append(embeddings)

    views = (jitter, jitter)
    trainer(tmp_path, steps=3, chunk=6).fit(model, views=views, after_step=after_step, **OPTIONS)
    assert [tuple(e.shape) for e in calls[0]] == [(BATCH, 8), (BATCH, 8)]
    assert int(model.pointer) == 3 * BATCH % len(model.queue)
    newest = torch.cat([calls[2][1], calls[1][1]])  # the third step's keys over the first's
    assert torch.equal(model.queue, newest)
    assert int(model.backbone.bn1.num_batches_tracked) == 3


class Recorded(simclr.SimCLR):
    """Keeps what `embed` returned and whether a graph was made."""

    def embed(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, Tensor]:
        outputs = super().embed(view0, view1)
        self.record.append((torch.is_grad_enabled(), torch.cat(outputs).detach().clone()))
        return outputs


def test_both_passes_draw_the_same_dropout_and_paths(tmp_path: Path) -> None:
    args = {"proj_drop_rate": 0.3, "drop_path_rate": 0.3}
    model = Recorded(backbone("test_vit", **args), HEADLESS)
    model.record = []
    trainer(tmp_path, chunk=8).fit(model, views=(jitter, jitter), **OPTIONS)
    first = [outputs for tracked, outputs in model.record if not tracked]
    second = [outputs for tracked, outputs in model.record if tracked]
    assert len(first) == 2  # the last chunk is embedded once, and before the others' second time
    assert len(second) == 3
    assert all(torch.equal(one, two) for one, two in zip(first, second[1:], strict=True))

    again = Recorded(backbone("test_vit", **args), HEADLESS)
    again.record = []
    trainer(tmp_path / "b", chunk=8, seed=1).fit(again, views=(jitter, jitter), **OPTIONS)
    assert not torch.equal(again.record[0][1], first[0])


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    def train(folder: Path, stop: int | None = None) -> nn.Module:
        engine = trainer(folder, steps=4, chunk=8)

        def after_step(*embeddings: Tensor) -> None:
            engine.stop_signal = 15 if engine.step_index + 1 == stop else None

        model = contrastive("test_resnet", drop_path_rate=0.2)
        views = (jitter, jitter)
        return engine.fit(model, views=views, after_step=after_step, **OPTIONS)

    whole = train(tmp_path / "whole").state_dict()
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", stop=2)
    resumed = train(tmp_path / "stopped").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_clipping_sees_the_whole_gradient(tmp_path: Path) -> None:
    whole = gradient(contrastive("test_vit"), tmp_path / "a", precision="fp64", clip=1e-3)
    found = gradient(contrastive("test_vit"), tmp_path / "b", precision="fp64", clip=1e-3, chunk=6)
    assert float(whole.norm()) == pytest.approx(1e-3, rel=1e-3)
    assert distance(found, whole) < 1e-9


def test_half_precision_is_no_further_than_its_rounding(tmp_path: Path) -> None:
    exact = gradient(contrastive("test_vit"), tmp_path / "a", precision="fp64")
    whole = gradient(contrastive("test_vit"), tmp_path / "b", precision="bf16")
    found = gradient(contrastive("test_vit"), tmp_path / "c", precision="bf16", chunk=6)
    assert 1e-4 < distance(whole, exact) < 0.2
    assert distance(found, exact) < 1.5 * distance(whole, exact)


@pytest.mark.parametrize("defer", [False, True])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, defer: bool) -> None:
    model = contrastive("test_vit")
    seen, usual = [], model.loss

    def loss(*embeddings: Tensor) -> Tensor:
        seen.append(1)
        return usual(*embeddings) * (float("nan") if len(seen) == 2 else 1.0)

    model.loss = loss
    engine = trainer(tmp_path, steps=4, chunk=6, defer_finite_check=defer)
    with pytest.raises(Diverged) as caught:
        engine.fit(model, views=(jitter, jitter), **OPTIONS)
    assert caught.value.step == 1


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).square().mean()


class Mixed(simclr.SimCLR):
    """Returns both views in one tensor: chunks of it are another order than the batch's."""

    def embed(self, view0: Tensor, view1: Tensor) -> tuple[Tensor]:
        return (torch.cat(super().embed(view0, view1)),)

    def loss(self, both: Tensor) -> Tensor:
        return nt_xent(*both.chunk(2), 0.5)


def test_what_cannot_be_chunked_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="chunks need embed and loss; Whole has not both"):
        trainer(tmp_path, chunk=8).fit(Whole(), **OPTIONS)
    with pytest.raises(Unsupported, match=r"--chunk 8 needs a method that trains by engine\.fit"):
        next(trainer(tmp_path, chunk=8).batches())
    mixed = Mixed(backbone(), HEADLESS)
    with pytest.raises(Unsupported, match=r"a tensor of shape \(16, 96\) for a chunk of 8 images"):
        trainer(tmp_path, chunk=8).fit(mixed, views=(jitter, jitter), **OPTIONS)
    with pytest.raises(UserError, match="chunk 7 does not divide a batch of 24 images"):
        trainer(tmp_path, chunk=7).fit(contrastive(), views=(jitter, jitter), **OPTIONS)
    with pytest.raises(UserError, match="a chunk of 3 images cannot be shared by 2 processes"):
        images_per_chunk(3, 24, world=2)


class Peak(TorchDispatchMode):
    """The most bytes of tensor storage that were alive at once, made while this was on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_the_counter_of_memory_counts() -> None:
    with Peak() as peak:
        kept = torch.zeros(1000)  # 4,000 bytes
        torch.ones(2000).add_(1)  # 8,000 bytes, gone again
        (kept * 2).sum()  # 4,000 bytes and a scalar
    assert peak.most == 12_000


def test_memory_falls_with_the_chunk(tmp_path: Path) -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
            self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.backbone(view) for view in views)

        def loss(self, *embeddings: Tensor) -> Tensor:
            return nt_xent(*embeddings, 0.5)

    def peak(chunk: int | None) -> int:
        engine = trainer(tmp_path / str(chunk), chunk=chunk)
        fixed = engine._draw((jitter, jitter))
        engine._draw = lambda views: fixed  # views are not what is measured
        with Peak() as memory:
            engine.fit(Convolutions(), views=(jitter, jitter), **OPTIONS)
        return memory.most

    activations = 2 * BATCH * (16 * SIZE**2 + 16 * (SIZE - 2) ** 2) * 4  # kept for backward
    whole = peak(None)
    assert activations < whole < 3 * activations
    halves, sixths = peak(BATCH // 2), peak(BATCH // 6)
    assert halves < 0.6 * whole
    assert sixths < 0.25 * whole


def shared(own: int, folder: str) -> None:
    """Train as process `own` of two, as `test_two_processes` asks."""
    torch.set_num_threads(1)
    where = f"file://{Path(folder) / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=where, rank=own, world_size=2)
    settings = {"precision": "fp64", "rank": own, "world": 2}
    place = Path(folder) / f"run{own}"
    torch.save(
        {
            "fixed": gradient(fix_batch_norm(small()), place, chunk=8, **settings),
            "one_chunk": gradient(group_batch_norm(small()), place / "a", chunk=24, **settings),
            "grouped": gradient(group_batch_norm(small()), place / "b", chunk=8, **settings),
        },
        Path(folder) / f"{own}.pt",
    )
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    several.run(shared, 2, str(tmp_path))
    pair = [torch.load(tmp_path / f"{own}.pt", weights_only=True) for own in range(2)]
    for name in pair[0]:
        assert torch.equal(pair[0][name], pair[1][name]), name  # averaged: the same everywhere

    fixed = gradient(fix_batch_norm(small()), tmp_path / "fixed", precision="fp64")
    assert distance(pair[0]["fixed"], fixed) < 1e-9
    alone = gradient(small(), tmp_path / "alone", precision="fp64")
    assert distance(pair[0]["one_chunk"], alone) < 1e-9
    # A chunk's BatchNorm sees its images on both processes: 4 of each half of the batch.
    views = views_of_the_first_step(tmp_path / "seen")
    rows = torch.arange(BATCH).view(2, 3, 4).transpose(0, 1).reshape(3, 8)
    model = small().double()
    embedded = [model.embed(*(view[part] for view in views)) for part in rows]
    back = rows.flatten().argsort()
    nt_xent(*(torch.cat(c)[back] for c in zip(*embedded, strict=True)), 0.5).backward()
    assert distance(pair[0]["grouped"], gradients_of(model)) < 1e-9
