"""Activation checkpointing: what the backbone's blocks computed is computed again, not kept.

Chen et al. 2016, https://arxiv.org/abs/1604.06174, as timm's `set_grad_checkpointing` does it: of a
block only the input is kept, and the backward pass computes the rest anew with the random numbers
of the first time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from bench.errors import Unsupported, UserError


def enable(backbone: nn.Module, name: str) -> Recomputation:
    """Let a timm model recompute its blocks; return what watches whether a run does.

    Args:
        name: what an error calls the model.

    Raises:
        UserError: the model cannot.
    """
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError):
        raise UserError(
            f"timm's {name} cannot compute its activations again; leave --checkpointing out, or "
            "take another backbone"
        ) from None
    return Recomputation(backbone)


class Recomputation:
    """Watches whether the backward passes of a run recompute blocks of `backbone`.

    A method may read a backbone in a way that passes by timm's checkpointing, and would then keep
    all activations under an identity that says otherwise.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.seen = False

        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            # A forward pass within a backward pass; torch.utils.checkpoint asks in the same way.
            self.seen = self.seen or torch._C._current_graph_task_id() != -1

        self._hooks = [part.register_forward_pre_hook(note) for part in backbone.modules()]

    def check(self) -> None:
        """Look at a backward pass that has ended; after the first that recomputed, do nothing.

        Raises:
            Unsupported: gradients reached the backbone and nothing was computed again, or its
                weights are other ones in the second computation.
        """
        if not self._hooks:
            return
        if self.seen:
            if any(_moves(part) for part in self.backbone.modules()):
                raise Unsupported(
                    "with checkpointing, spectral norms would move a second time in the backward "
                    "pass; leave --checkpointing out for this method"
                )
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
        elif any(parameter.grad is not None for parameter in self.backbone.parameters()):
            raise Unsupported(
                "checkpointing has no effect: this method reads the backbone's stages past timm's "
                "checkpoints; leave --checkpointing out for it"
            )


def _moves(layer: nn.Module) -> bool:
    """Return whether a forward pass changes the weights, as spectral norm's iteration does."""
    if not is_parametrized(layer):
        return False
    return any(True for parts in layer.parametrizations.values() for _ in parts.buffers())
