"""What a training step needs in memory per card, without a card: `bench estimate`.

The plugin's own step runs on fake tensors in a process of its own, which `bench.allocations`
traces. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import confine
from bench.errors import UserError
from bench.probe import die_with_planner, fork_server
from bench.saving import images_per_chunk

GIB = 2**30
IMAGES, CLASSES = 1_281_167, 1000  # of the training set that a method is told of: ImageNet's
SECONDS = 600.0  # that one estimate may take
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "buffers", "other")
LIMITS = (
    "Not in it: workspaces of cuDNN and cuBLAS, fragmentation and rounding of the allocator, the "
    "CUDA context, and the making of the views."
)


class Refused(UserError):
    """A method cannot train such a step, as its row would say: "n/a"."""


@dataclass(frozen=True)
class Step:
    """One training step of a method.

    Attributes:
        plugin: an installed name or the absolute path of a file.
        recipe: of the card's; "" and a name that it does not have stand for the defaults.
        backbone: a timm model's name.
        image_size: side in pixels.
        batch_size: source images per step over all cards.
        cards: processes that share a batch.
        precision: fp32, bf16 (autocast) or fp64.
        config: every field of the method's configuration, instead of a recipe.
        args, stem: of the backbone, as in a track.
        images, classes: of the training set that the method is told of.
        gray: whether its images have one channel.
        chunk: source images over all cards that are embedded at a time; None: all of the batch.
        checkpointing: whether blocks of the backbone are computed again in the backward pass.

    Raises:
        UserError: the batch does not divide by the cards or into chunks, or is larger than the
            training set.
    """

    plugin: str
    backbone: str
    image_size: int
    batch_size: int
    cards: int = 1
    recipe: str = ""
    precision: str = "fp32"
    config: Mapping[str, Any] | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    stem: Mapping[str, Any] | None = None
    images: int = IMAGES
    classes: int = CLASSES
    gray: bool = False
    chunk: int | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.batch_size % self.cards:
            raise UserError(
                f"batch size {self.batch_size} does not divide by {self.cards} cards; take a "
                f"multiple of {self.cards}"
            )
        if self.batch_size > self.images:
            raise UserError(
                f"batch size {self.batch_size} exceeds the {self.images} training images"
            )
        if self.chunk is not None:
            images_per_chunk(self.chunk, self.batch_size, self.cards)

    @property
    def batch_per_card(self) -> int:
        return self.batch_size // self.cards


@dataclass(frozen=True)
class Estimate:
    """Bytes on one card at the moment of a step when most is held.

    Attributes:
        parameters: of all prepared modules, moving averages included.
        gradients: of parameters, as an update finds them.
        optimizer: the optimizers' state.
        activations: images, what forward passes leave for backward ones, and what these make.
        buffers: of all prepared modules: running statistics, queues.
        other: what the exchange of gradients and the update make, half-precision copies of
            weights, tensors of no module.
        total: of all of it; the peak.
        flops_per_image: of a step, forward and backward, for each of its source images: a
            multiplication and an addition are two, as torch counts convolutions, products of
            matrices and attention; the mean where optimizers take turns or stages differ.
        weights: numbers that the backbone's parameters are.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    other: int
    total: int
    flops_per_image: float = 0.0
    weights: int = 0


Ask = Callable[[Step], Estimate]


@contextlib.contextmanager
def estimator() -> Iterator[Ask]:
    """Yield a function that estimates a `Step`, in a process that may write nowhere else.

    It raises UserError, one line, where a step cannot be estimated, Refused where the method
    cannot train it.
    """
    context = fork_server()
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_answer, args=(theirs, folder), daemon=True)
        process.start()
        theirs.close()

        def ask(step: Step) -> Estimate:
            try:
                ours.send(step)
                if not ours.poll(SECONDS):
                    raise UserError(f"{step.plugin}: no estimate in {SECONDS:g} s; it was stopped")
                answer = ours.recv()
            except (EOFError, OSError):
                process.join()
                raise UserError(
                    f"{step.plugin}: the process that estimates it ended with {process.exitcode}"
                ) from None
            if isinstance(answer, UserError):
                raise answer
            return answer

        try:
            yield ask
        finally:
            ours.close()
            process.kill()
            process.join()


def estimate(step: Step) -> Estimate:
    """Return what one card holds at the peak of a training step.

    Raises:
        Refused: the method cannot train it.
        UserError: the step cannot be estimated: the method trains nothing, or its loop reads
            values.
    """
    with estimator() as ask:
        return ask(step)


def _answer(pipe: Connection, folder: str) -> None:
    die_with_planner()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)
    confine.confine_writes([Path(folder)], [Path(os.devnull)])
    import torch

    from bench.allocations import trace

    torch.set_num_threads(1)
    number = 0
    while True:
        try:
            step = pipe.recv()
        except EOFError:
            return
        place = Path(folder) / str(number)
        place.mkdir()
        number += 1
        try:
            pipe.send(trace(step, place))
        except Refused as error:
            pipe.send(Refused(str(error)))
        except UserError as error:
            pipe.send(UserError(str(error)))
