"""Stop a run at its first loss that is not finite, without synchronising on CUDA."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bench.errors import Diverged


class FiniteCheck:
    """Of the losses of a run.

    Args:
        world: processes that train together; one bad loss stops them all.
        defer: whether to read the flag only where `raise_if_diverged` is called; fused optimizers
            skip their updates from the bad step on. Otherwise `check` raises.
    """

    def __init__(self, device: torch.device, world: int, *, defer: bool) -> None:
        self.world, self.defer = world, defer
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def check(self, loss: Tensor, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Look at the loss of a step before its update.

        Raises:
            Diverged: it is not finite, unless deferred.
        """
        bad = ~torch.isfinite(loss).all()
        if self.world > 1:
            flag = bad.float()
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            bad = flag > 0
        if not self.defer:
            if bad:
                raise Diverged(step)
            return
        fresh = bad & (self._first_bad < 0)
        self._first_bad = torch.where(fresh, step, self._first_bad)
        if not all(group.get("fused") for group in optimizer.param_groups):
            return  # such an optimizer knows no flag; its updates count no more
        optimizer.grad_scale = None
        optimizer.found_inf = (self._first_bad >= 0).float()  # fused kernels then skip the update

    def raise_if_diverged(self) -> None:
        """Read the flag.

        Raises:
            Diverged: a loss was not finite.
        """
        if self.defer and int(self._first_bad) >= 0:
            raise Diverged(int(self._first_bad))
