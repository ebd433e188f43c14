"""Speed as ratios within one run: rounds alternate A B A B, medians are compared.

`pytest tests/perf --override-ini addopts=-q`; the extra `peers` brings the peers. Figures are
kept in docs/performance.md with the machine named.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from bench_plugins import simclr
from torch import Tensor

from bench import augment, data, heap
from bench.backbones import build
from bench.evaluations import knn, linear_probe
from bench.evaluations.logistic import solve, standardiser
from bench.features import embed
from bench.losses import nt_xent
from bench.seeing import see
from bench.store import to_unit_range

BATCH, SIZE = 128, 32
CONFIG = simclr.Config(blur=0.0)


def ratio(benchmark: Any, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> float:
    """Return how many times faster `ours` is, the median over pairs of alternate rounds.

    The same by CPU time stands beside it: on a busy machine wall time measures the others.
    """
    ours(), theirs()
    pairs = []
    for _ in range(rounds):
        (wall, cpu), (their_wall, their_cpu) = _seconds(ours), _seconds(theirs)
        pairs.append((their_wall / wall, their_cpu / cpu))
    walls, cpus = zip(*pairs, strict=True)
    found, by_cpu = statistics.median(walls), statistics.median(cpus)
    benchmark.extra_info.update(ratio=found, by_cpu=by_cpu, rounds=walls, rounds_by_cpu=cpus)
    benchmark.pedantic(ours, rounds=3)
    spread = f"rounds {min(walls):.2f} to {max(walls):.2f}"
    print(f"\n{benchmark.name}: {found:.2f} ({spread}; {by_cpu:.2f} by CPU time)")
    return found


def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@pytest.fixture(autouse=True)
def _as_in_a_run() -> None:
    torch.set_num_threads(1)
    heap.keep_freed_memory()  # for both sides: they share the process


class Training:
    """A SimCLR step on one core, from uint8 images or from views that are ready."""

    def __init__(
        self,
        name: str = "test_resnet",
        batch: int = BATCH,
        *,
        bf16: bool = False,
        stem: dict[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        backbone = build({"name": name, "args": {}, "stem": stem}, SIZE)
        self.model = simclr.SimCLR(backbone, CONFIG).to(memory_format=torch.channels_last)
        self.bf16 = bf16
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, fused=True)
        self.view = simclr.view(CONFIG)
        generator = torch.Generator().manual_seed(0)
        shape = (batch, 3, SIZE, SIZE)
        self.images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        self.ready = self.views()

    def views(self) -> Sequence[Tensor]:
        unit = to_unit_range(self.images)
        return see([self.view] * 2, unit, augment.Draws.of(unit, 1))

    def update(self, views: Sequence[Tensor]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model.loss(*self.model.embed(*views))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def whole(self) -> None:
        self.update(self.views())

    def bare(self) -> None:
        self.update(self.ready)


@pytest.mark.parametrize(
    ("name", "least"),
    [("test_resnet", 0.84), ("test_convnext", 0.84), ("test_vit", 0.75), ("resnet10t", 0.95)],
)
def test_the_step_on_ready_made_views_over_views_and_step(
    benchmark: Any, name: str, least: float
) -> None:
    training = Training(name)
    assert ratio(benchmark, training.whole, training.bare, 15) >= least


@pytest.mark.parametrize(
    ("batch", "ours", "theirs", "least"),
    [
        (128, "fp32", "fp32", 2.1),
        (256, "fp32", "fp32", 2.1),
        (128, "bf16", "fp32", 2.5),
        (128, "bf16", "bf16", None),  # stands beside the one above
    ],
)
def test_step_against_lightly_s_per_sample_views(
    benchmark: Any, batch: int, ours: str, theirs: str, least: float | None
) -> None:
    loss_module = pytest.importorskip("lightly.loss")
    transforms = pytest.importorskip("lightly.transforms")
    from PIL import Image

    if ours == "bf16" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("bf16 pays with AMX, which this processor does not have")
    training = Training(batch=batch, bf16=ours == "bf16")
    transform = transforms.SimCLRTransform(input_size=SIZE, gaussian_blur=0.0)
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in training.images]
    criterion = loss_module.NTXentLoss(temperature=CONFIG.temperature)
    peer = Training(batch=batch)
    peer.model = peer.model.to(memory_format=torch.contiguous_format)
    peer.optimizer = torch.optim.SGD(peer.model.parameters(), lr=0.1, momentum=0.9)

    def their_step() -> None:
        made = [transform(picture) for picture in pictures]
        view0, view1 = (torch.stack(column) for column in zip(*made, strict=True))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=theirs == "bf16"):
            heads = [peer.model.head(peer.model.backbone(view)) for view in (view0, view1)]
            loss = criterion(*heads)
        peer.optimizer.zero_grad()
        loss.backward()
        peer.optimizer.step()

    z0, z1 = torch.randn(2, 16, 8)
    same = nt_xent(z0, z1, CONFIG.temperature)
    assert torch.allclose(same, criterion(z0, z1), atol=1e-5)  # the same loss is timed
    found = ratio(benchmark, training.whole, their_step, 7)
    assert least is None or found >= least


@pytest.mark.parametrize(("classes", "least"), [(10, 0.95), (1000, 4.0)])
def test_neighbours_against_lightly(benchmark: Any, classes: int, least: float) -> None:
    peer = pytest.importorskip("lightly.utils.benchmarking")
    generator = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(20_000, 128, generator=generator))
    queries = torch.nn.functional.normalize(torch.randn(2_000, 128, generator=generator))
    labels = torch.randint(0, classes, (20_000,), generator=generator)

    def ours() -> Tensor:
        return knn.votes(queries, bank, labels, classes, [200], 0.07)[200]

    def theirs() -> Tensor:
        parts = queries.split(512)
        found = [peer.knn_predict(p, bank.T, labels, classes, 200, 0.07)[:, 0] for p in parts]
        return torch.cat(found)

    assert torch.equal(ours(), theirs())
    assert ratio(benchmark, ours, theirs, 7) >= least


def test_thirteen_probes_against_scikit_learn(benchmark: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    dataset = data.load("fashion-mnist", image_size=32)
    torch.manual_seed(0)
    spec = {"name": "resnet10t", "args": {}, "stem": None}
    backbone = build(spec, 32)
    train = embed(backbone, dataset.images["train"][:5000])["last"]  # (5000, 512)
    test = embed(backbone, dataset.images["test"][:5000])["last"]
    scale = standardiser(train)
    x, y = scale(train), scale(test)
    labels, truth = (
        torch.from_numpy(np.array(dataset.labels[split][:5000])) for split in ("train", "test")
    )
    values = linear_probe.grid(linear_probe.SETTINGS)
    scores: dict[str, float] = {}

    def ours() -> None:
        guesses = solve(x, labels, num_classes=10, l2=values).logits(y).argmax(2)
        scores["ours"] = 100 * float((guesses == truth).float().mean(1).max())

    def theirs() -> None:
        best = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for l2 in values:
                model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=1000)
                model.fit(x.numpy(), labels.numpy())
                best = max(best, 100 * model.score(y.numpy(), truth.numpy()))
        scores["theirs"] = best

    found = ratio(benchmark, ours, theirs, 3)
    assert scores["ours"] >= scores["theirs"] - 0.2
    assert found >= 4.0
