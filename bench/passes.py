"""Count a backbone's passes per source image, with and without gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class PassCounter:
    """Hooks the first layer with weights: a pass over B images of h x w counts B h w / (H W).

    That is a convolution or product of matrices. What holds parameters of its own beside, as a
    vision transformer's root holds positions, need not be called itself.

    The hook travels with deep copies, so a momentum encoder is counted too.

    Args:
        counts: keys with_grad and without_grad, added to in place, in source-size images.
        traced: whether the backbone is compiled. The hook then stays outside of what is: counts in
            it would be constants, and each new one another compilation.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        counts: dict[str, float],
        *,
        traced: bool = False,
    ) -> None:
        self.counting = True

        def count(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not self.counting:
                return
            images = inputs[0]
            size = image_size * image_size
            share = images.shape[-1] * images.shape[-2] / size if images.ndim == 4 else 1.0
            tracked = torch.is_grad_enabled() and any(p.requires_grad for p in layer.parameters())
            counts["with_grad" if tracked else "without_grad"] += images.shape[0] * share

        own = [m for m in backbone.modules() if list(m.parameters(recurse=False))]
        layer = next((m for m in own if isinstance(m, LAYERS)), own[0] if own else backbone)
        hook = torch.compiler.disable(count) if traced else count
        self._handle = layer.register_forward_pre_hook(hook)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what runs inside: the harness's own passes."""
        self.counting = False
        try:
            yield
        finally:
            self.counting = True

    def remove(self) -> None:
        self._handle.remove()
