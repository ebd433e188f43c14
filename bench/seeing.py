"""What the views of a step get, and what they must give.

Images may be stored larger than the backbone sees them. Views then crop: `random_resized_crop()`
and `pad_and_crop()` come out at the backbone's size by themselves. What a view leaves as large as
it is stored, as a flip alone does, is cut to its centre, which is what evaluations see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.augment import Draws, View
from bench.store import centre


def see(views: Sequence[View], images: Tensor, draws: Draws) -> tuple[Tensor, ...]:
    """Return what each view makes of `images`, in [-1, 1], channels last.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        draws: with `size` where the images are larger than the backbone sees them.
    """
    found = []
    with torch.no_grad():
        for view in views:
            seen = view(images, draws)
            if draws.size is not None and seen.shape[-2:] == images.shape[-2:]:
                seen = centre(seen, draws.size)
            # One copy, changed in place: temporaries would cost as much as the arithmetic.
            found.append(seen.clone(memory_format=torch.channels_last).mul_(2).sub_(1))
    return tuple(found)


def layout(images: Tensor) -> Tensor:
    """Return the images in the memory layout that convolutions are fastest on."""
    return images.contiguous(memory_format=torch.channels_last)
