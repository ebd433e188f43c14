"""The training images, wherever they lie, as batches on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.geometry import to_device


class Store:
    """A uint8 array (N, C, H, W), handed out by index.

    On a CUDA device it lies there if it takes at most half of the free memory; else each batch is
    gathered into pinned memory and copied without blocking, one batch ahead when `announce` says
    what comes next. On a CPU it is read in place, memory-mapped or not. The bytes are the same.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, device: torch.device) -> None:
        self.num_images = len(images)
        self.device = device
        self.labels = None if labels is None else torch.from_numpy(np.array(labels)).to(device)
        self.array: np.ndarray | None = images
        self.tensor: Tensor | None = None
        self._ahead: tuple[bytes, Tensor] | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if images.nbytes <= free // 2:
                self.tensor, self.array = resident(images, device), None

    def announce(self, indices: np.ndarray) -> None:
        """Start copying the batch that `take` will ask for next."""
        if self.tensor is None and self.device.type == "cuda":
            self._ahead = (indices.tobytes(), self._copy(indices))

    def take(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return uint8 images (B, C, H, W) and int64 labels (B,) or None, on the device."""
        if self.tensor is not None:
            images = self.tensor[to_device(torch.from_numpy(indices), self.device)]
        elif self._ahead is not None and self._ahead[0] == indices.tobytes():
            images = self._ahead[1]
        else:
            images = self._copy(indices)
        self._ahead = None
        if self.labels is None:
            return images, None
        return images, self.labels[to_device(torch.from_numpy(indices), self.device)]

    def _copy(self, indices: np.ndarray) -> Tensor:
        batch = torch.from_numpy(self.array[indices])
        if self.device.type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device)


def resident(images: np.ndarray, device: torch.device, *, part: int = 1 << 26) -> Tensor:
    """Return all images on the device, copied some `part` bytes at a time: the host, which maps
    them from a file, never holds a second copy of all of them."""
    images = np.asarray(images)  # of a mapped file a view; of `gauge.Stored` what differs
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    count = max(1, part * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), count):
        some = torch.from_numpy(np.array(images[start : start + count]))
        whole[start : start + count] = some.to(device)
    return whole


def centre(images: Tensor, size: int) -> Tensor:
    """Return the central (B, C, size, size) of images that are at least as large."""
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]


def to_unit_range(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 (B, 1 or 3, H, W) as `dtype` (B, 3, H, W) in [0, 1]; gray is repeated."""
    scaled = images.to(dtype).div_(255)
    return scaled.expand(-1, 3, -1, -1).contiguous() if images.shape[1] == 1 else scaled
