"""Random numbers for views: per image, the same however many processes share a batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bench.geometry import to_device


@dataclass(frozen=True)
class Draws:
    """Random numbers per image: drawn for the global batch, of which this process keeps its rows.

    Processes that hold generators in the same state so draw what a single process would.

    Attributes:
        generator: a CPU generator; every draw advances it by the global batch.
        total: images in the global batch.
        rows: this process's images in it; `len(draws)` counts them.
        device: where the draws are returned.
        size: side that the backbone sees, where the images are stored larger: crops come out at
            most as large.
        gray: every image's channels are equal. Views then work on one plane, skip what only
            changes colour, and draw the same numbers nevertheless.
    """

    generator: torch.Generator
    total: int
    rows: slice
    device: torch.device | str = field(default="cpu")
    gray: bool = False
    size: int | None = None

    @classmethod
    def of(
        cls,
        images: Tensor,
        seed: int | torch.Generator,
        *,
        gray: bool = False,
        size: int | None = None,
    ) -> Draws:
        """Return draws for all of `images` in one process."""
        if isinstance(seed, int):
            seed = torch.Generator().manual_seed(seed)
        return cls(seed, len(images), slice(0, len(images)), images.device, gray, size)

    def seen(self, images: Tensor) -> tuple[int, int]:
        """Return the sides (height, width) that a crop of all of the images comes out at."""
        height, width = images.shape[2:]
        most = max(height, width) if self.size is None else self.size
        return min(height, most), min(width, most)

    def __len__(self) -> int:
        return len(range(*self.rows.indices(self.total)))

    @property
    def host(self) -> Draws:
        """The same draws, returned on the CPU: for what decides sizes, without synchronising."""
        return replace(self, device="cpu")

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (B, *shape) in [low, high)."""
        values = torch.rand(self.total, *shape, generator=self.generator)
        return self._local(values.mul_(high - low).add_(low))

    def normal(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (B, *shape) of mean 0 and standard deviation 1."""
        return self._local(torch.randn(self.total, *shape, generator=self.generator))

    def integers(self, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Return int64 (B, *shape) in low, ..., high - 1."""
        return self._local(torch.randint(low, high, (self.total, *shape), generator=self.generator))

    def bernoulli(self, p: float) -> Tensor:
        """Return bool (B,), true with probability p."""
        return self._local(torch.rand(self.total, generator=self.generator) < p)

    def permutations(self, n: int) -> Tensor:
        """Return int64 (B, n), each row a permutation of 0, ..., n - 1."""
        keys = torch.rand(self.total, n, generator=self.generator)
        return self._local(keys.argsort(dim=1, stable=True))

    def _local(self, values: Tensor) -> Tensor:
        return to_device(values[self.rows], torch.device(self.device))
