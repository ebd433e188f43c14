"""How tight InfoNCE's bound on mutual information is, as the number of candidates doubles.

Pairs of Gaussians whose information is known. With N candidates, one drawn with x and the others
from the marginal, log N - loss bounds the information from below (van den Oord et al. 2018,
Section 2.3); the gap is what is missing. Two critics: the log density ratio itself, with which
nothing but N is measured, and a small learned one. All samples are fresh, and the candidates of a
positive independent; neither holds in the training of a method, whose logged figure is nominal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.identity import stream
from bench.studies import Observation

ID = "infonce_tight"
VERSION = 1
READS_RUNS = False
HOLDS = "Gaussians of 8 coordinates with correlation 0.9, and critics of this size"
SETTINGS = {
    "coordinates": 8,
    "correlation": 0.9,
    "candidates": [2, 4, 8, 16, 32, 64, 128, 256, 512],
    "samples": 10_000,
    "hidden": 64,
    "features": 32,
    "steps": 1000,
    "batch_size": 128,
    "lr": 2e-3,
}
CHUNK = 2**20  # candidates scored at a time

Critic = Callable[[Tensor, Tensor], Tensor]


def information(settings: dict) -> float:
    """Return the mutual information of a pair in nats: -d/2 log(1 - rho^2)."""
    return -settings["coordinates"] / 2 * math.log(1 - settings["correlation"] ** 2)


def observe(seed: int, settings: dict) -> Observation:
    """Return the smallest fall of the gap from one number of candidates to the next, by critic."""
    values, shown = {}, {"information": information(settings)}
    for name in ("optimal", "learned"):
        gaps = {}
        for count in settings["candidates"]:
            generator = torch.Generator().manual_seed(stream(seed, "evaluate", ID, name, count))
            critic = log_ratio(settings)
            if name == "learned":
                critic = learned(settings, count, generator)
            bound = estimate_bound(critic, settings, count, generator)
            gaps[count] = information(settings) - bound
        shown |= {f"{name}_gap_{count}": gap for count, gap in gaps.items()}
        falls = [before - after for before, after in pairwise(gaps.values())]
        values[f"{name}_smallest_fall"] = min(falls)
    return Observation(values, shown)


def pairs(count: int, settings: dict, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return x and y, (count, D) each, standard normal with the correlation per coordinate."""
    size, rho = (count, settings["coordinates"]), settings["correlation"]
    x, noise = torch.randn(2, *size, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def log_ratio(settings: dict) -> Critic:
    """Return log p(y|x) / p(y) of x (B, D) and y (B, N, D), as (B, N)."""
    rho = settings["correlation"]
    constant = information(settings)

    def critic(x: Tensor, y: Tensor) -> Tensor:
        cross = rho * torch.einsum("bd,bnd->bn", x, y)
        squares = rho**2 / 2 * (x.square().sum(1)[:, None] + y.square().sum(2))
        return (cross - squares) / (1 - rho**2) + constant

    return critic


def learned(settings: dict, count: int, generator: torch.Generator) -> Critic:
    """Return a separable critic trained with `count` candidates on fresh samples.

    The positives of a step share its negatives, which are drawn apart from all of them: each
    positive's candidates are independent, and the expected loss is that of the bound.
    """
    widths = (settings["coordinates"], settings["hidden"], settings["features"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        of_x, of_y = _net(*widths), _net(*widths)
    optimizer = torch.optim.Adam([*of_x.parameters(), *of_y.parameters()], lr=settings["lr"])
    for _ in range(settings["steps"]):
        x, y = pairs(settings["batch_size"], settings, generator)
        others = torch.randn(count - 1, settings["coordinates"], generator=generator)
        queries = of_x(x)  # (B, F)
        logits = torch.cat([(queries * of_y(y)).sum(1, keepdim=True), queries @ of_y(others).T], 1)
        loss = F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def critic(x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bf,bnf->bn", of_x(x), of_y(y))

    return critic


def _net(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


@torch.no_grad()
def estimate_bound(critic: Critic, settings: dict, count: int, generator: torch.Generator) -> float:
    """Return log N - loss over fresh positives, each with N - 1 negatives of its own."""
    total, left = 0.0, settings["samples"]
    while left:
        size = min(left, max(1, CHUNK // count))
        x, y = pairs(size, settings, generator)
        others = torch.randn(size, count - 1, settings["coordinates"], generator=generator)
        scores = critic(x, torch.cat([y[:, None], others], 1))  # (B, N), the positive first
        total += float((scores.logsumexp(1) - scores[:, 0]).double().sum())
        left -= size
    return math.log(count) - total / settings["samples"]
