"""Speed of the Frechet distance against torchmetrics', and of its root against scipy's.

Rounds alternate as in `test_ratios`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_ratios import ratio

from bench.metrics import frechet

ROWS, WIDTH = 4000, 2048


def features(seed: int) -> torch.Tensor:
    """Return correlated float32 features of full rank, (4000, 2048)."""
    mixture = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    generator = torch.Generator().manual_seed(1 + seed)
    return (1 + 0.2 * seed) * torch.randn(ROWS, WIDTH, generator=generator) @ mixture


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows.double()
    return rows.mean(0), torch.cov(rows.T)


def test_the_whole_distance_against_torchmetrics(benchmark: Any) -> None:
    """From features to the number: both compute the covariances, which takes half of our time."""
    peer = pytest.importorskip("torchmetrics.image.fid")
    torch.set_num_threads(1)
    x, y = features(0), features(1)
    found: dict[str, float] = {}

    def ours() -> None:
        found["ours"] = frechet.distance(x, y)

    def theirs() -> None:
        found["theirs"] = float(peer._compute_fid(*moments(x), *moments(y)))

    faster = ratio(benchmark, ours, theirs, 3)
    assert found["ours"] == pytest.approx(found["theirs"], rel=1e-8)
    assert faster >= 1.8


def test_its_root_against_torchmetrics(benchmark: Any) -> None:
    """From two covariances to the trace of the root of their product."""
    peer = pytest.importorskip("torchmetrics.image.fid")
    torch.set_num_threads(1)
    (m1, s1), (m2, s2) = moments(features(0)), moments(features(1))

    def ours() -> float:
        return frechet.root_trace(s1, s2)[0]

    def theirs() -> float:
        return float(peer._compute_fid(m1, s1, m2, s2))

    exact = (float((m1 - m2).square().sum() + s1.trace() + s2.trace()) - theirs()) / 2
    assert ours() == pytest.approx(exact, rel=1e-8)
    assert ratio(benchmark, ours, theirs, 3) >= 2.5


def test_its_root_against_scipy(benchmark: Any) -> None:
    """From two covariances to the trace of the root of their product."""
    from scipy.linalg import sqrtm

    torch.set_num_threads(1)
    s1, s2 = (moments(features(seed))[1] for seed in range(2))
    a, b = s1.numpy(), s2.numpy()
    found: dict[str, float] = {}

    def ours() -> None:
        found["ours"], found["error"] = frechet.root_trace(s1, s2)

    def theirs() -> None:
        found["theirs"] = float(np.trace(sqrtm(a @ b).real))

    faster = ratio(benchmark, ours, theirs, 3)
    assert found["ours"] == pytest.approx(found["theirs"], rel=1e-9)
    assert found["error"] < 1e-9 * found["ours"]
    assert faster >= 10
