"""What a training step keeps in memory, on tensors that have shapes and no values.

A plugin's own `pretrain` builds its modules for real. At its first batch their floating-point
tensors become torch's fake tensors, and two whole steps run on fake images: forward, backward,
exchange, update. Every storage is logged when it comes and when it goes. Counters and other
whole numbers stay real, so that a loop that counts its steps counts them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import backbones, cards, flops, manager, recompute
from bench.augment import Draws, View, identity
from bench.chunking import cached_backward
from bench.distributed import world_size
from bench.engine import DTYPES, Trainer
from bench.errors import Unsupported, UserError
from bench.hookspecs import Batch
from bench.memory import CATEGORIES, Estimate, Refused, Step
from bench.seeing import see

STEPS = 2  # the second begins with the optimizer's state and the first one's gradients
MOST_STEPS = 12  # of a stage, where an optimizer has its turn in every fifth step
SHOWN = 2  # real images whose views tell the views' shapes
WHOLE = 2**16  # elements of an integer tensor, drawn or counted from nothing, that is kept real
TO_COPY = torch.ops.aten._to_copy.default
VALUELESS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)


class StorageLog(TorchDispatchMode):
    """When each storage came and went, and what it held; entered after a `FakeTensorMode`.

    Attributes:
        phase: the category of whatever is made now and is labelled nothing else later.
        flops: so far, as torch's `FlopCounterMode` counts them, whose hooks hold tensors alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = "activations"
        self.flops = 0
        self._labels: list[str] = []  # by number of the storage
        self._events: list[tuple[int, int]] = []  # (number, bytes; negative: freed)
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by id of the storage

    def note(self, tensor: Tensor, label: str | None = None) -> None:
        """Log a tensor's storage if it is new; with `label`, say what it holds."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._alive:
            number, size = len(self._labels), storage.nbytes()
            self._labels.append(label or self.phase)
            self._events.append((number, size))
            gone = functools.partial(self._gone, key, number, size)
            self._alive[key] = (number, weakref.ref(storage, gone))
        if label is not None:
            self._labels[self._alive[key][0]] = label

    def label(self, tensor: Tensor) -> str | None:
        """Return the category of a tensor's storage so far; None if it was never noted."""
        known = self._alive.get(id(tensor.untyped_storage()))
        return None if known is None else self._labels[known[0]]

    def peak(self) -> Estimate:
        """Return what was held when most was."""
        held, most, when = 0, 0, 0
        for position, (_, size) in enumerate(self._events, 1):
            held += size
            if held > most:
                most, when = held, position
        sums = dict.fromkeys(CATEGORIES, 0)
        for number, size in self._events[:when]:
            sums[self._labels[number]] += size
        return Estimate(**sums, total=most)

    def _gone(self, key: int, number: int, size: int, _: Any) -> None:
        self._alive.pop(key, None)
        self._events.append((number, -size))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        real = [tensor for tensor in given if not isinstance(tensor, FakeTensor)]
        if given and len(real) == len(given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        for tensor in real:
            if self.label(tensor) is None:
                self.note(tensor, "other")  # of no prepared module
        outputs = func(*args, **kwargs)
        self.flops += flops.of_call(func, args, kwargs, outputs)
        if not given and _is_small_and_whole(outputs):
            with unset_fake_temporarily():
                outputs = func(*args, **kwargs)
                self.note(outputs)
                return outputs
        copied = func is TO_COPY and self.label(args[0]) == "parameters"  # autocast's weights
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, FakeTensor):
                self.note(leaf, "other" if copied and self.label(leaf) is None else None)
        return outputs


def _is_small_and_whole(made: Any) -> bool:
    return isinstance(made, Tensor) and not made.is_floating_point() and made.numel() <= WHOLE


class Enough(BaseException):
    """The steps that are traced are done; no `except Exception` of a plugin keeps it."""


class FewChunks(nn.Module):
    """A model whose `embed` is computed for the first two of a pass's chunks, and the last.

    Those between hold no more at a time than the second: they get empty embeddings, and the
    second's operations, backward ones too, count for each of them. The last is embedded in the
    first pass alone (`bench.chunking`).
    """

    def __init__(self, model: nn.Module, log: StorageLog, chunks: int) -> None:
        super().__init__()
        self.model, self.log_, self.chunks = model, log, chunks
        self._calls = 0  # of `embed` in the step
        self._begun = 0  # FLOPs before the second chunk
        self._shapes: list[tuple[torch.Size, torch.dtype]] = []

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        number, last = self._calls % self.chunks, self.chunks - 1  # of the chunk within its pass
        self._calls = (self._calls + 1) % (2 * self.chunks - 1)
        if number == 2 < last:
            self.log_.flops += (last - 2) * (self.log_.flops - self._begun)
        if 2 <= number < last:
            return tuple(torch.empty(shape, dtype=dtype) for shape, dtype in self._shapes)
        self._begun = self.log_.flops
        outputs: tuple[Tensor, ...] = self.model.embed(*views)
        self._shapes = [(output.shape, output.dtype) for output in outputs]
        return outputs

    def loss(self, *embeddings: Tensor) -> Tensor:
        return self.model.loss(*embeddings)


class Tracer(Trainer):
    """The engine, but for its data and its records: fake images, and steps that are traced."""

    def __init__(
        self, step: Step, backbone: nn.Module, num_classes: int | None, folder: Path
    ) -> None:
        self.log_ = StorageLog()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.asked = 0  # for batches
        self._short: FewChunks | None = None
        self._moves: Counter[int] = Counter()  # of each optimizer, by its id
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}  # by id of the real one, kept alive
        self._modes = contextlib.ExitStack()
        self._flops: list[tuple[float, float]] = []  # (share of the budget, FLOPs per image)
        shape = (step.images, 1 if step.gray else 3, step.image_size, step.image_size)
        super().__init__(
            np.broadcast_to(np.zeros((), np.uint8), shape),
            None if num_classes is None else np.broadcast_to(np.zeros((), np.int64), step.images),
            num_classes,
            steps=100 * (step.images // step.batch_size),
            batch_size=step.batch_size,
            seed=0,
            folder=folder,
            precision=step.precision,
            world=world_size(),
            chunk=step.chunk,
            recomputation=recompute.enable(backbone, step.backbone) if step.checkpointing else None,
            defer_finite_check=True,  # as on a card
        )

    def prepare(self, module: nn.Module, name: str = "model") -> nn.Module:
        """As the engine does; its floating-point tensors are fake from then on."""
        tensors = [*module.parameters(), *module.buffers()]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):  # of a module before it
            self._modules[name] = module
        else:
            super().prepare(module, name)
        for part in module.modules():
            for key, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[key] = self._faked(parameter, "parameters")
            for key, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[key] = self._faked(buffer, "buffers")
        return module

    def _faked(self, tensor: Tensor, label: str) -> Tensor:
        if isinstance(tensor, FakeTensor) or not tensor.is_floating_point():
            self.log_.note(tensor, label)
            return tensor
        if id(tensor) not in self._fakes:
            fake: Tensor = self.fake.from_tensor(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            self.log_.note(fake, label)
            self._fakes[id(tensor)] = (tensor, fake)
        return self._fakes[id(tensor)][1]

    def batches(self, views: tuple[View, ...] = (identity,), until: float = 1.0) -> Iterator[Batch]:
        """Yield fake batches until each optimizer has moved `STEPS` times; `MOST_STEPS` of a stage.

        Raises:
            Enough: after the last stage's.
        """
        end = self._enter_stage(until)
        self.asked += 1
        if self.step_index >= end:
            return
        shapes = self._shapes(views)
        self._modes.enter_context(self.fake)
        self._modes.enter_context(self.log_)
        counted = self.log_.flops
        with self._modes:
            turns, before = [], 0  # when the slowest optimizer moved, and its moves
            for number in range(1, MOST_STEPS + 1):
                self._seed_forward()
                yield self._batch(shapes)
                self.step_index += 1
                moved = [self._moves[id(optimizer)] for optimizer in self._optimizers.values()]
                if min(moved, default=0) > before:
                    before = min(moved)
                    turns.append((number, self.log_.flops))
                if number >= STEPS and all(moves >= STEPS for moves in moved):
                    break
            still = [n for n, o in self._optimizers.items() if not self._moves[id(o)]]
            if still and end == self.steps:
                raise UserError(
                    f"{', '.join(still)} took no step in {MOST_STEPS} batches, and would be in "
                    "neither memory nor FLOPs; take settings by which all networks move sooner"
                )
            share = (end - self._stage[0]) / self.steps
            per_step = (self.log_.flops - counted) / number
            if len(turns) > 1:  # a cycle lies between two moves, wherever in it they are
                (first, before_it), (second, after_it) = turns[0], turns[1]
                per_step = (after_it - before_it) / (second - first)
            elif turns and turns[0][0] > MOST_STEPS // 2:  # too seldom to be seen twice
                per_step = (turns[0][1] - counted) / turns[0][0]
            self._flops.append((share, per_step * self.world / self.batch_size))
            if end == self.steps:
                raise Enough
        self.step_index = end

    def _in_chunks(self, model: nn.Module, views: tuple[Tensor, ...], chunk: int) -> Any:
        """As the engine does, but for the chunks after the second, which are not computed."""
        if self._short is None:  # the same for all steps, as the model that it stands for
            self._short = FewChunks(model, self.log_, len(views[0]) // chunk)
        return cached_backward(self._short, views, chunk, self._seed_forward, self.autocast)

    def found(self, backbone: nn.Module) -> Estimate:
        """Return the peak, and the FLOPs of a step."""
        mean = sum(share * per_image for share, per_image in self._flops)
        weights = sum(parameter.numel() for parameter in backbone.parameters())
        return dataclasses.replace(self.log_.peak(), flops_per_image=mean, weights=weights)

    def close(self) -> None:
        """Leave the modes, wherever a plugin's loop broke off."""
        self._modes.close()

    def _shapes(self, views: tuple[View, ...]) -> list[torch.Size]:
        """Return (3, h, w) of what each view makes."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(SHOWN, 3, self.image_size, self.image_size, generator=generator)
        draws = Draws(generator, SHOWN, slice(0, SHOWN), self.device)
        return [seen.shape[1:] for seen in see(views, images.to(DTYPES[self.precision]), draws)]

    def _batch(self, shapes: list[torch.Size]) -> Batch:
        count = self.batch_size // self.world
        dtype = DTYPES[self.precision]
        form = torch.channels_last  # as `bench.seeing.layout` leaves them
        made = [torch.empty(count, *s, dtype=dtype, memory_format=form) for s in shapes]
        labels = None
        if self.num_classes is not None:
            labels = torch.zeros(count, dtype=torch.int64)
        return Batch(tuple(made), labels)

    def _update(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._label_gradients(parameters)
        self.log_.phase = "other"
        try:
            super()._update(loss, optimizer)
        finally:
            self.log_.phase = "activations"
        self._moves[id(optimizer)] += 1
        self._label_gradients(parameters)  # the exchange makes those that were missing
        for leaf in tree_leaves(dict(optimizer.state)):
            if isinstance(leaf, Tensor):
                self.log_.note(leaf, "optimizer")

    def _label_gradients(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                self.log_.note(parameter.grad, "gradients")


def trace(step: Step, folder: Path) -> Estimate:
    """Return what two training steps hold at their peak; runs the plugin's code in this process.

    Args:
        folder: an empty one, for the engine's records.

    Raises:
        Refused: the method cannot train it.
        UserError: the step cannot be traced; the line says why.
    """
    plugin = manager.load(step.plugin)
    card = plugin.call("describe")
    values = step.config or cards.config_from(card, step.recipe, {}, method=plugin.name)
    config = cards.config_object(card, values)
    torch.manual_seed(0)
    spec = {"name": step.backbone, "args": dict(step.args), "stem": step.stem}
    backbone = backbones.build(spec, step.image_size)
    with _processes(step.cards):
        tracer = Tracer(step, backbone, step.classes if card.uses_labels else None, folder)
        tracer.place(backbone)
        try:
            plugin.call("pretrain", backbone=backbone, config=config, engine=tracer)
        except Enough:
            return tracer.found(backbone)
        except (*VALUELESS, UnsupportedOperatorException) as error:
            raise UserError(
                f"{plugin.name}: its step needs the values of tensors ({_cause(error)}), and an "
                "estimate has only their shapes; measure it on a card"
            ) from None
        except Unsupported as error:
            raise Refused(f"{plugin.name}: {_line(error)}") from None
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{plugin.name}: its step failed on fake tensors: {type(error).__name__}: "
                f"{_line(error)}"
            ) from None
        finally:
            tracer.close()
    if not tracer.asked:
        raise UserError(f"{plugin.name}: it asks for no batch and trains nothing")
    raise UserError(f"{plugin.name}: it left its loop before {STEPS} steps were done")


@contextlib.contextmanager
def _processes(cards: int) -> Iterator[None]:
    """Be the first of `cards` processes, of which the others are not there."""
    if cards == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=cards)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _cause(error: Exception) -> str:
    func = getattr(error, "func", None)
    return str(func) if func is not None else type(error).__name__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
