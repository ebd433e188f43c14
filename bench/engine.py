"""The training loop: which batches, how many, at what precision, resumed to the same bytes.

`Trainer` implements the protocol `bench.hookspecs.Engine`. It knows modules, losses and views; it
knows nothing of what they compute. `fit` is written with the calls that a plugin's own loop uses.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench import checkpoints
from bench.augment import Draws, identity
from bench.buffers import kept
from bench.chunking import cached_backward
from bench.compiled import Compiler
from bench.distributed import largest
from bench.errors import UnknownName, Unsupported, UserError
from bench.finite import FiniteCheck
from bench.hookspecs import Batch, View
from bench.identity import stream
from bench.meters import Meter
from bench.norms import reestimate_batch_norm
from bench.optimizers import (
    SCHEDULES,
    Schedule,
    average_gradients,
    build,
    gradients,
    parameter_groups,
)
from bench.recompute import Recomputation
from bench.saving import images_per_chunk
from bench.seeing import layout, see
from bench.store import Store, centre, to_unit_range

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


class Interrupted(BaseException):
    """A signal asked the run to stop; its checkpoint is written. `signum` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class Trainer:
    """See `bench.hookspecs.Engine` for what plugins use; the arguments here are the harness's.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3, the training images without validation.
        labels: int64 (N,) if the method may see them.
        num_classes: classes of `labels`, or None.
        steps: the budget.
        image_size: side that the backbone sees; None: the images'. They may be larger.
        batch_size: source images per step over all processes.
        folder: the run's folder, for checkpoints and metrics.
        identity_hash: checkpoints of another spec or of other code are not used.
        precision: fp32, bf16 (autocast) or fp64.
        rank, world: this process and how many there are.
        chunk: source images over all processes that `fit` embeds at a time, a divisor of
            `batch_size`; None: the whole batch.
        recomputation: of the backbone whose activations are not kept, if any.
        compiler: of what is prepared, if any.
        mixed: whether the first 1,000 images are of all kinds, and none sorted by class.
        checkpoint_seconds: how often a checkpoint is due; 0 after every step.
        on_checkpoint: called with the step, outside the billed clock.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        num_classes: int | None,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        image_size: int | None = None,
        folder: Path,
        identity_hash: str = "",
        precision: str = "fp32",
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
        chunk: int | None = None,
        recomputation: Recomputation | None = None,
        compiler: Compiler | None = None,
        mixed: bool = True,
        checkpoint_seconds: float = 60.0,
        on_checkpoint: Callable[[int], None] | None = None,
        defer_finite_check: bool | None = None,
    ) -> None:
        if precision not in DTYPES:
            raise UnknownName("precision", precision, tuple(DTYPES))
        if batch_size > len(images):
            raise UserError(f"batch size {batch_size} exceeds the {len(images)} training images")
        if batch_size % world:
            raise UserError(f"batch size {batch_size} does not divide by {world} processes")
        self.device = torch.device(device)
        self.image_size, self.num_images = image_size or images.shape[-1], len(images)
        self._larger = images.shape[-1] > self.image_size
        self.num_classes, self.batch_size = num_classes, batch_size
        self.steps, self.seed, self.folder, self.rank, self.world = steps, seed, folder, rank, world
        self.chunk, self._recomputation, self.compiler = chunk, recomputation, compiler
        self.steps_per_epoch = self.num_images // batch_size
        self.precision, self.identity_hash = precision, identity_hash
        self.step_index, self.gray, self._mixed = 0, images.shape[1] == 1, mixed
        self.stop_signal: int | None = None
        self.checkpoint_seconds = checkpoint_seconds
        self.on_checkpoint = on_checkpoint
        self._store = Store(images, labels, self.device)
        self._modules: dict[str, nn.Module] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._plans: dict[int, tuple[Schedule, float | None]] = {}
        self._stage = (0, steps)
        self._log_every, self._fitting = max(1, steps // 100), False
        self._order: tuple[int, np.ndarray] | None = None
        defer = self.device.type == "cuda" if defer_finite_check is None else defer_finite_check
        self._finite = FiniteCheck(self.device, world, defer=defer)
        self.meter = Meter(folder, steps, batch_size, write=rank == 0, device=str(device))
        self._saved_at = 0.0
        self._restored = self._restore()

    # What a plugin's own loop uses

    @property
    def progress(self) -> float:
        return self.step_index / self.steps if self.steps else 1.0

    def prepare(self, module: nn.Module, name: str = "model") -> nn.Module:
        """See `bench.hookspecs.Engine.prepare`."""
        if name in self._modules and self._modules[name] is not module:
            raise UserError(f"two modules are prepared as {name!r}; give each a name of its own")
        if self._restored and name in self._restored["modules"]:
            module.load_state_dict(self._restored["modules"][name], strict=True)
        self.place(module)
        if self.world > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.detach(), 0)
        self._modules[name] = module
        if self.compiler is not None:
            self.compiler.add(module)
        return module

    def place(self, module: nn.Module) -> nn.Module:
        """Move `module` to the device, in the run's precision, channels last if it convolves."""
        convolutional = any(isinstance(m, nn.Conv2d) for m in module.modules())
        layout = torch.channels_last if convolutional else torch.preserve_format
        return module.to(self.device, dtype=DTYPES[self.precision], memory_format=layout)

    def optimizer(
        self,
        module: nn.Module,
        kind: str,
        *,
        name: str,
        base_lr: float | None = None,
        lr: float | None = None,
        schedule: str = "cosine",
        warmup_epochs: float = 0,
        weight_decay: float = 0.0,
        decay_norm_and_bias: bool = True,
        max_grad_norm: float | None = None,
        milestones: tuple[float, ...] = (0.6, 0.8),
        gamma: float = 0.1,
        **args: Any,
    ) -> torch.optim.Optimizer:
        """See `bench.hookspecs.Engine.optimizer`. A schedule spans the stage it is stepped in."""
        if (base_lr is None) == (lr is None):
            raise UserError(f"optimizer {name!r} needs exactly one of base_lr and lr")
        if schedule not in SCHEDULES:
            raise UnknownName("schedule", schedule, SCHEDULES)
        if name in self._optimizers:
            raise UserError(f"two optimizers are named {name!r}; give each a name of its own")
        rate = lr if lr is not None else base_lr * self.batch_size / 256
        groups = parameter_groups(module, weight_decay, decay_norm_and_bias)
        optimizer = build(kind, groups, rate, args)
        course = Schedule(schedule, rate, warmup_epochs, tuple(milestones), gamma)
        self._plans[id(optimizer)] = (course, max_grad_norm)
        if self._restored and name in self._restored["optimizers"]:
            optimizer.load_state_dict(self._restored["optimizers"][name])
        self._optimizers[name] = optimizer
        return optimizer

    def batches(self, views: tuple[View, ...] = (identity,), until: float = 1.0) -> Iterator[Batch]:
        """See `bench.hookspecs.Engine.batches`."""
        end = self._enter_stage(until)
        while self.step_index < end:
            self.meter.start()
            batch = self._draw(views)
            self._seed_forward()
            if self.compiler is not None:
                self.compiler.begin_step()
            yield batch
            self.step_index += 1
            self._between_steps()
        torch.manual_seed(stream(self.seed, "stage", end))

    def _enter_stage(self, until: float) -> int:  # the step that ends it
        if self.chunk is not None and not self._fitting:
            raise Unsupported(f"--chunk {self.chunk} needs a method that trains by engine.fit")
        end = min(self.steps, round(until * self.steps))
        self._stage = (self._stage[1] if self._stage[1] < end else 0, end)
        return end

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """See `bench.hookspecs.Engine.autocast`."""
        on = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """See `bench.hookspecs.Engine.step`."""
        optimizer.zero_grad(set_to_none=True)
        with kept(self._modules.values() if self._recomputation else ()):
            loss.backward()
        self._update(loss.detach(), optimizer)

    def settle(self, backbone: nn.Module) -> None:
        """See `bench.hookspecs.Engine.settle`: of the first 1,000 images, or as many drawn."""
        dtype, most = DTYPES[self.precision], min(1000, self.num_images)
        drawn = np.random.Generator(np.random.PCG64(stream(0, "order", "settle")))
        rows = np.arange(most) if self._mixed else drawn.permutation(self.num_images)[:most]
        parts = np.array_split(rows, max(1, most // self.batch_size))
        stored = (self._store.take(part)[0] for part in parts)
        images = (to_unit_range(centre(part, self.image_size), dtype) for part in stored)
        reestimate_batch_norm(backbone, (layout(part * 2 - 1) for part in images))

    def log(self, **scalars: Any) -> None:
        """See `bench.hookspecs.Engine.log`."""
        self.meter.add(scalars)

    def fit(
        self,
        model: nn.Module,
        *,
        views: tuple[View, ...] = (identity,),
        optimizer: str = "sgd",
        after_step: Callable[..., None] | None = None,
        chunk: int | None = None,
        **optimizer_args: Any,
    ) -> nn.Module:
        """See `bench.hookspecs.Engine.fit`."""
        self.prepare(model)
        update = self.optimizer(model, optimizer, name="model", **optimizer_args)
        split = hasattr(model, "embed") and hasattr(model, "loss")
        chunk = self.chunk if self.chunk is not None else chunk
        if chunk is not None and not split:
            raise Unsupported(f"chunks need embed and loss; {type(model).__name__} has not both")
        if chunk is not None:
            chunk = images_per_chunk(chunk, self.batch_size, self.world)
        model.train()
        self._fitting = True
        for batch in self.batches(views):
            embeddings: tuple[Tensor, ...] = ()
            if chunk is not None:
                update.zero_grad(set_to_none=True)
                loss, embeddings = self._in_chunks(model, batch.views, chunk)
                self._update(loss, update)
            else:
                with self.autocast():
                    if split:
                        embeddings = model.embed(*batch.views)
                        loss = model.loss(*embeddings)
                    else:
                        labels = {} if batch.labels is None else {"labels": batch.labels}
                        loss = model(*batch.views, **labels)
                self.step(loss, update)
            if after_step is not None:
                with torch.no_grad():
                    after_step(*(e.detach() for e in embeddings))
        return model

    def _in_chunks(self, model: nn.Module, views: tuple[Tensor, ...], chunk: int) -> Any:
        return cached_backward(model, views, chunk, self._seed_forward, self.autocast)

    # Batches and updates

    def _seed_forward(self, chunk: int | None = None) -> None:
        address = (self.step_index, self.rank) + (() if chunk is None else (chunk,))
        torch.manual_seed(stream(self.seed, "forward", *address))

    def _indices(self, step: int) -> np.ndarray:
        """Return this process's image indices of a step: epochs are permutations, the rest of an
        epoch that does not fill a batch is left out."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = np.random.Generator(np.random.PCG64(stream(self.seed, "order", epoch)))
            self._order = (epoch, generator.permutation(self.num_images))
        whole = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        return whole[self._rows()]

    def _rows(self) -> slice:
        local = self.batch_size // self.world
        return slice(self.rank * local, (self.rank + 1) * local)

    def _draw(self, views: tuple[View, ...]) -> Batch:
        step = self.step_index
        images, labels = self._store.take(self._indices(step))
        source = to_unit_range(images, DTYPES[self.precision])
        generator = torch.Generator().manual_seed(stream(self.seed, "views", step))
        size = self.image_size if self._larger else None
        draws = Draws(generator, self.batch_size, self._rows(), self.device, self.gray, size)
        seen = see(views, source, draws)
        if step + 1 < self.steps:
            self._store.announce(self._indices(step + 1))
        return Batch(seen, labels)

    def _update(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) not in self._plans:
            raise UserError("step() takes an optimizer made by engine.optimizer()")
        if self._recomputation is not None:
            self._recomputation.check()
        course, max_norm = self._plans[id(optimizer)]
        start, end = self._stage
        rate = course.at(self.step_index - start, end - start, self.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.world > 1:
            average_gradients(parameters, self.world)
        self._finite.check(loss, optimizer, self.step_index)
        norm = None
        if max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        elif (self.step_index + 1) % self._log_every == 0:
            norm = torch.nn.utils.get_total_norm(gradients(parameters))
        if norm is not None:
            self.meter.add({"gradient_norm": norm})
        optimizer.step()
        self.meter.add({"lr": rate})
        self.meter.add_loss(loss)

    def _between_steps(self) -> None:
        """Log, heed signals, and write a checkpoint when one is due."""
        last = self.step_index == self.steps
        due = last or self.step_index % self._log_every == 0
        # To ask the others is to wait for the card.
        asked = due or self.device.type != "cuda" or self.world == 1 or self.step_index % 8 == 0
        stop = int(largest(self.stop_signal or 0, self.device)) if asked else 0
        save = stop or last or self.meter.seconds - self._saved_at >= self.checkpoint_seconds
        if self.device.type == "cuda" and (due or save):
            torch.cuda.synchronize(self.device)
        self.meter.stop()
        if due:
            self._finite.raise_if_diverged()
            self.meter.flush(self.step_index)
        self.meter.record(self.step_index)
        if save:
            if self.world == 1 or due or stop:  # where all processes look: one alone would leave
                self._finite.raise_if_diverged()
            if self.on_checkpoint is not None and self.rank == 0 and not stop:
                self.on_checkpoint(self.step_index)
            self.save()
        if stop:
            raise Interrupted(stop)

    def heed_signals(self) -> None:
        """Answer SIGTERM and SIGINT with a checkpoint at the next step and `Interrupted`."""

        def note(signum: int, frame: Any) -> None:
            self.stop_signal = signum

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, note)

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint of all that was prepared."""
        self._saved_at = self.meter.seconds
        if self.rank:
            return
        state = {
            "identity": self.identity_hash,
            "step": self.step_index,
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizers": {name: o.state_dict() for name, o in self._optimizers.items()},
            "meter": self.meter.state(),
        }
        checkpoints.save(self.folder, self.step_index, state)

    def _restore(self) -> dict[str, Any] | None:
        state = checkpoints.restore(self.folder, self.identity_hash)
        if state is None:
            self.meter.resume({}, 0)
            return None
        self.step_index = state["step"]
        self.meter.resume(state["meter"], self.step_index)
        self._saved_at = self.meter.seconds
        return state
