"""What the views of a step get, and what they must give.

Images may be stored larger than the backbone sees them. Views then crop: `random_resized_crop()`
and `pad_and_crop()` come out at the backbone's size by themselves. A view that leaves such an image
whole is a defect of the method's recipe, and refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.augment import Draws, View
from bench.errors import UserError


def see(views: Sequence[View], images: Tensor, draws: Draws) -> tuple[Tensor, ...]:
    """Return what each view makes of `images`, in [-1, 1], channels last.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        draws: with `size` where the images are larger than the backbone sees them.

    Raises:
        UserError: a view left images whole that are larger than `draws.size`.
    """
    found = []
    with torch.no_grad():
        for number, view in enumerate(views):
            seen = view(images, draws)
            if draws.size is not None and seen.shape[-2:] == images.shape[-2:]:
                raise UserError(
                    f"view {number} returned the stored images of {images.shape[-1]} px whole; the "
                    f"backbone of this track sees {draws.size} px: start the view with "
                    "random_resized_crop() or random_crop(engine.image_size)"
                )
            # One copy, changed in place: temporaries would cost as much as the arithmetic.
            found.append(seen.clone(memory_format=torch.channels_last).mul_(2).sub_(1))
    return tuple(found)


def layout(images: Tensor) -> Tensor:
    """Return the images in the memory layout that convolutions are fastest on."""
    return images.contiguous(memory_format=torch.channels_last)
