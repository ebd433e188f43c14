"""Whether a training step fits a card, and what would make it fit.

Every figure is an estimate of its own (`bench.memory`); between them only the next candidate is
guessed. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from bench.errors import UserError
from bench.memory import Ask, Estimate, Step

MOST_CARDS = 1024
UNIT = 8  # images per card between two candidates for the largest batch
GUESSES = 6  # along a line; then doubles and halves


class Sized(Protocol):
    """Bytes of a step, and those of them that grow with the batch."""

    @property
    def total(self) -> int: ...

    @property
    def activations(self) -> int: ...


Found = TypeVar("Found", bound=Sized)


def largest(
    ask: Callable[[int], Found], room: int, *, start: int, most: int
) -> tuple[int, Found] | None:
    """Return the largest number of 1, ..., `most` whose size is at most `room`, and the size; None
    if that of 1 is larger.

    The answer is that of trying all where sizes never fall; nothing is asked twice. Sizes that grow
    in proportion need three questions; steps and curves some more, at most `GUESSES` and then
    doubles and halves.

    Args:
        ask: the size at a number; its `total` less its `activations` is taken for that at 0.
        room: bytes.
        start: the number that is asked first, brought into the range.

    Raises:
        whatever `ask` raises.
    """
    low, above = 0, most + 1  # fits, as nothing would; does not, or is not wanted
    number, known = min(max(start, 1), most), dict[int, int]()
    found: tuple[int, Found] | None = None
    row = 0  # of answers on one side: above 0 they fit
    while above - low > 1:
        size = ask(number)
        known = known or {0: size.total - size.activations}
        known[number] = size.total
        if size.total <= room:
            low, found, row = number, (number, size), max(row, 0) + 1
        else:
            above, row = number, min(row, 0) - 1
        number = _next(known, low, above, room, row if len(known) > 3 else 0)
    return found


def _next(known: Mapping[int, int], low: int, above: int, room: int, row: int) -> int:
    """Return a number between `low` and `above`: along the line through the nearest known sizes,
    twice as far where two answers in a row were on the same side."""
    ends = [low, above] if above in known else sorted(n for n in known if n <= low)[-2:]
    rise = known[ends[-1]] - known[ends[0]]
    if rise > 0 and len(known) <= GUESSES:
        guess = low + (room - known[low]) * (ends[-1] - ends[0]) // rise
        if row > 1:
            guess += guess - low
        elif row < -1:
            guess -= above - guess
    else:
        guess = (low + above) // 2 if above in known else 2 * low
    return min(max(guess, low + 1), above - 1)


@dataclass(frozen=True)
class Way:
    """Another step that fits.

    Attributes:
        change: what is changed: "batch", "precision", "cards", "checkpointing" or "chunk".
    """

    change: str
    step: Step
    estimate: Estimate


@dataclass(frozen=True)
class Fit:
    """What a step needs, and what would make it fit.

    Attributes:
        memory: bytes of the card.
        ways: steps that fit, none where the step itself does.
        ruled_out: a line for each change that does not make it fit.
        estimates: how many were made.
    """

    step: Step
    estimate: Estimate
    memory: int
    ways: tuple[Way, ...]
    ruled_out: tuple[str, ...]
    estimates: int

    @property
    def fits(self) -> bool:
        return self.estimate.total <= self.memory


def fit(step: Step, memory: int, ask: Ask) -> Fit:
    """Return what `step` needs of a card with `memory` bytes, and the ways to make it fit.

    Raises:
        UserError: the step cannot be estimated.
    """
    made = 0

    def counted(other: Step) -> Estimate:
        nonlocal made
        made += 1
        return ask(other)

    estimate = counted(step)
    ways: list[Way] = []
    ruled_out: list[str] = []
    for change, find in CHANGES.items() if estimate.total > memory else ():
        try:
            found = find(step, estimate, memory, counted)
        except UserError as error:  # as where cards cannot share what the recipe divides
            found = str(error)
        if isinstance(found, Way):
            ways.append(found)
        else:
            ruled_out.append(f"{change}: {found}")
    return Fit(step, estimate, memory, tuple(ways), tuple(ruled_out), made)


def _largest(step: Step, estimate: Estimate, memory: int, ask: Ask) -> Way | str:
    """Return the largest batch per card that fits, to `UNIT` images where the batch is of such, and
    to whole chunks."""
    unit = UNIT if step.batch_per_card % UNIT == 0 else 1
    unit = math.lcm(unit, (step.chunk or step.cards) // step.cards)
    whole = step.batch_per_card // unit

    def of(units: int) -> Step:
        return replace(step, batch_size=units * unit * step.cards)

    found = largest(
        lambda units: estimate if units == whole else ask(of(units)),
        memory,
        start=whole,
        most=whole,
    )
    if found is None:
        return f"{unit} images per card do not fit either"
    return Way("batch", of(found[0]), found[1])


def _half(step: Step, estimate: Estimate, memory: int, ask: Ask) -> Way | str:
    """Return the step in bf16, if it then fits."""
    if step.precision == "bf16":
        return "it is bf16 already"
    other = replace(step, precision="bf16")
    answer = ask(other)
    if answer.total <= memory:
        return Way("precision", other, answer)
    return f"bf16 needs {answer.total / 1e9:.2f} GB"


def _more_cards(step: Step, estimate: Estimate, memory: int, ask: Ask) -> Way | str:
    """Return the step on twice as many cards, or four times, ..., until it fits."""
    cards = 2 * step.cards
    while cards <= MOST_CARDS and step.batch_size % cards == 0:
        other = replace(step, cards=cards)
        answer = ask(other)
        if answer.total <= memory:
            return Way("cards", other, answer)
        cards *= 2
    return f"{step.batch_size} images on up to {cards // 2} cards do not fit"


def _recomputed(step: Step, estimate: Estimate, memory: int, ask: Ask) -> Way | str:
    """Return the step with activation checkpointing, if it then fits."""
    if step.checkpointing:
        return "it recomputes already"
    other = replace(step, checkpointing=True)
    answer = ask(other)
    if answer.total <= memory:
        return Way("checkpointing", other, answer)
    return f"recomputed blocks need {answer.total / 1e9:.2f} GB"


def _chunks(step: Step, estimate: Estimate, memory: int, ask: Ask) -> Way | str:
    """Return the step in two chunks, or four, ..., until it fits."""
    chunk = whole = step.chunk or step.batch_size
    answer = estimate
    while chunk % (2 * step.cards) == 0:
        chunk //= 2
        other = replace(step, chunk=chunk)
        answer = ask(other)
        if answer.total <= memory:
            return Way("chunk", other, answer)
    if chunk == whole:
        return f"{chunk} images do not halve among {step.cards} cards"
    return f"chunks of {chunk} need {answer.total / 1e9:.2f} GB"


CHANGES = {
    "batch": _largest,
    "precision": _half,
    "cards": _more_cards,
    "checkpointing": _recomputed,
    "chunk": _chunks,
}
