"""Whether a training step fits a card, and what would make it fit.

Every figure is an estimate of its own (`bench.memory`); between them only the next candidate is
guessed. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.errors import UserError
from bench.memory import Ask, Estimate, Step

MOST_CARDS = 1024
UNIT = 8  # images per card between two candidates for the largest batch
GUESSES = 6  # along a line; then halves


@dataclass(frozen=True)
class Way:
    """Another step that fits.

    Attributes:
        change: what is changed: "batch", "precision" or "cards".
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
    """Return the largest batch per card that fits, to `UNIT` images where the batch is of such."""
    unit = UNIT if step.batch_per_card % UNIT == 0 else 1
    high, above = step.batch_per_card // unit, estimate.total  # in units; does not fit
    low, below = 0, estimate.total - estimate.activations  # taken for what no image needs
    found: Way | None = None
    turn = 0
    while high - low > 1:
        turn += 1
        if turn <= GUESSES and above > below:
            guess = low + int((memory - below) / (above - below) * (high - low))
        else:
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        other = replace(step, batch_size=guess * unit * step.cards)
        answer = ask(other)
        if answer.total <= memory:
            low, below, found = guess, answer.total, Way("batch", other, answer)
        else:
            high, above = guess, answer.total
    return found or f"{unit} images per card do not fit either"


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


CHANGES = {"batch": _largest, "precision": _half, "cards": _more_cards}
