"""On a card: our step with its views against the bare step, a DataLoader script and lightly's way.

`pytest tests/perf/test_cuda.py --override-ini addopts=-q -s`, skipped without a card but for the
last test, which runs every part small on the processor. Images are noise: data do not change speed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_plugins import simclr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench import costs, gauge
from bench.backbones import build
from bench.losses import nt_xent

IMAGES = 50_000  # of an epoch
CONFIG = simclr.Config(blur=0.0, optimizer="sgd", base_lr=0.1)  # fused, as the scripts have it


@dataclass(frozen=True)
class Setting:
    device: str = "cuda"
    precision: str = "bf16"
    backbone: str = "resnet18"
    side: int = 32
    batch: int = 512
    images: int = IMAGES
    workers: int = 16
    steps: int = 50  # of a window
    rounds: int = 5

    @property
    def spec(self) -> dict[str, Any]:
        stem = {"kernel": 3, "stride": 1, "max_pool": False}
        return {"name": self.backbone, "args": {}, "stem": stem}

    @property
    def epoch_steps(self) -> int:
        return self.images // self.batch


def windows(setting: Setting, folder: Path) -> tuple[dict[str, list[float]], float]:
    """Return seconds of windows of the bare step and of the pipeline, in turns, after a warm-up;
    and the FLOPs of a step."""
    orders = [{"mode": mode, "steps": setting.steps} for mode in ("step", "pipeline")]
    queue = iter([*orders * (setting.rounds + 1), {"flops": 2}, {"end": True}])
    told: list[dict[str, Any]] = []
    images = gauge.stored(setting.side, {"stored_mib": 150, "num_images": setting.images})
    torch.manual_seed(0)
    engine = gauge.Gauge(
        images,
        None,
        None,
        ask=lambda: next(queue),
        tell=told.append,
        steps=100 * setting.epoch_steps,
        batch_size=setting.batch,
        seed=0,
        folder=folder,
        precision=setting.precision,
        device=setting.device,
    )
    backbone = engine.place(build(setting.spec, setting.side))
    with pytest.raises(gauge.Finished):
        simclr.pretrain(backbone, CONFIG, engine)
    seconds = [answer["seconds"] for answer in told[2:-1]]
    return {"step": seconds[0::2], "pipeline": seconds[1::2]}, told[-1]["flops"] / 2


def utilisation(setting: Setting, seconds: float, flops: float) -> str:
    """Return the share of the card's dense peak that a window of such steps used, in percent."""
    peak = costs.PEAKS.get(torch.cuda.get_device_name(), {}).get(setting.precision)
    return f"{100 * flops * setting.steps / seconds / peak:.1f} %" if peak else "no known peak"


class Noise(Dataset):
    """Images as torchvision's own data sets hold them, two views of each made one by one."""

    def __init__(self, setting: Setting, transform: Callable[[Any], Any]) -> None:
        shape = (setting.images, setting.side, setting.side, 3)
        self.images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index]))


def torchvision_views(setting: Setting) -> Callable[[Any], Any]:
    one = v2.Compose(
        [
            v2.RandomResizedCrop(setting.side, scale=(0.08, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda image: (one(image), one(image))


def lightly_views(setting: Setting) -> Callable[[Any], Any]:
    transforms = pytest.importorskip("lightly.transforms")
    return transforms.SimCLRTransform(input_size=setting.side, gaussian_blur=0.0)


def loader_epoch(setting: Setting, transform: Callable[[Any], Any]) -> float:
    """Return the seconds of an epoch of a plain script: DataLoader, autocast, a fused optimizer."""
    torch.manual_seed(0)
    device = torch.device(setting.device)
    model = simclr.SimCLR(build(setting.spec, setting.side), CONFIG)
    model = model.to(device, memory_format=torch.channels_last).train()
    update = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    loader = DataLoader(
        Noise(setting, transform),
        setting.batch,
        shuffle=True,
        drop_last=True,
        num_workers=setting.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=setting.workers > 0,
    )
    batches: Iterator[list[Tensor]] = itertools.chain.from_iterable(itertools.repeat(loader))

    def steps(count: int) -> None:
        for views in itertools.islice(batches, count):
            moved = [view.to(device, non_blocking=True) for view in views[:2]]
            with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
                loss = nt_xent(*model.embed(*moved), CONFIG.temperature)
            update.zero_grad(set_to_none=True)
            loss.backward()
            update.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    steps(min(10, setting.steps))
    begun = time.perf_counter()
    steps(setting.steps)
    return (time.perf_counter() - begun) / setting.steps * setting.epoch_steps


def said(setting: Setting, found: dict[str, Any]) -> None:
    name = torch.cuda.get_device_name() if setting.device == "cuda" else "processor"
    print(f"\n{name}, torch {torch.__version__}, {setting}: {found}")


@pytest.fixture
def card() -> Setting:
    if not torch.cuda.is_available():
        pytest.skip("no card")
    return Setting()


def test_the_pipeline_against_the_bare_step(card: Setting, tmp_path: Path) -> None:
    seconds, flops = windows(card, tmp_path)
    ratios = [a / b for a, b in zip(seconds["step"], seconds["pipeline"], strict=True)]
    used = {m: utilisation(card, statistics.median(s), flops) for m, s in seconds.items()}
    said(card, {"pipeline": statistics.median(ratios), "rounds": ratios, "utilisation": used})
    assert statistics.median(ratios) >= 0.95


@pytest.mark.parametrize("views", [torchvision_views, lightly_views])
def test_an_epoch_against_a_data_loader(card: Setting, tmp_path: Path, views: Any) -> None:
    theirs = loader_epoch(card, views(card))
    seconds, flops = windows(card, tmp_path)
    window = statistics.median(seconds["pipeline"])
    ours, used = window / card.steps * card.epoch_steps, utilisation(card, window, flops)
    said(card, {"ours, s": ours, "theirs, s": theirs, "ratio": theirs / ours, "utilisation": used})
    assert theirs >= 3 * ours


def test_every_part_runs_on_a_processor(tmp_path: Path) -> None:
    small = replace(Setting(), device="cpu", precision="fp32", backbone="test_resnet", batch=8)
    small = replace(small, images=64, workers=0, steps=2, rounds=2)
    seconds, flops = windows(small, tmp_path)
    assert [len(found) for found in seconds.values()] == [2, 2]
    assert flops > 1e6
    assert loader_epoch(small, torchvision_views(small)) > 0
