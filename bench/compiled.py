"""Networks compiled for training: `compile = true` in a track, `--compile`.

A small network's step on a card is mostly the launching of kernels. The compiler joins them, and as
CUDA graphs those of a whole pass are launched at once. Numbers differ from the others by rounding,
so that the training is another one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

from bench.errors import UserError

if TYPE_CHECKING:
    from torch import nn

MODES = {"cuda": "reduce-overhead", "cpu": "default"}  # of torch.compile; the first is CUDA graphs


class Compiler:
    """Compiles what a run prepares.

    Args:
        device: what it trains on, as torch names it.

    Raises:
        UserError: there is no compiler for it.
    """

    def __init__(self, device: str) -> None:
        refuse(device)
        self.kind = device.partition(":")[0]
        self._compiled: list[nn.Module] = []

    def add(self, module: nn.Module) -> None:
        """Compile a module and its parts for whichever of them is called; nothing is called here.

        A model with `embed` and `loss` is never called itself, but its backbone and head are, and
        the backbone of a momentum encoder.
        """
        for part in (module, *module.children()):
            if part not in self._compiled:
                part.compile(mode=MODES[self.kind], dynamic=False)
                self._compiled.append(part)

    def begin_step(self) -> None:
        """Let CUDA graphs use the memory of the last step's outputs again."""
        if self.kind == "cuda":
            import torch

            torch.compiler.cudagraph_mark_step_begin()

    def end(self) -> None:
        """Leave the modules as they were: what samples has other batches, and no steps."""
        for part in self._compiled:
            part._compiled_call_impl = None  # what nn.Module.compile sets
        self._compiled = []


def refuse(device: str) -> None:
    """Raise UserError where nothing compiles for a device, named as by torch or `--device`."""
    if device.startswith("cuda"):
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                "--compile on a card needs Triton; `pip install triton`, or leave it out"
            )
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("--compile on a processor needs g++, or CXX; install it, or leave it out")
