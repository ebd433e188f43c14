"""The exceptions that cross the host's boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """One clear line: what was met, what was expected, what to do. The command exits with 2."""


class UnknownName(UserError):
    """A name that is not in a list; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: list[str] | tuple[str, ...]) -> None:
        import difflib

        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        every = ", ".join(sorted(known))
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {every}"
        super().__init__(f"no {kind} {name!r}; {hint}")


class Unsupported(Exception):
    """Raised by a plugin that cannot run here; its row says "n/a: <message>"."""


class Diverged(Exception):
    """The loss left the finite numbers; `step` is the first bad step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"diverged at step {step}")
        self.step = step


def lacks_memory(error: Exception) -> bool:
    """Return whether an error says that memory was lacking: the host's, the card's, a library's."""
    text = f"{type(error).__name__}: {error}".lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(words in text for words in said)


def first_fault(error: ValidationError, *, met: bool = False) -> str:
    """Return in a line what pydantic refused first: where, why and, if `met`, the value there."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    said = f"{place}: {first['msg']}" if place else first["msg"]
    said = said.replace("Value error, ", "", 1)
    shown = met and not isinstance(first["input"], dict) and first["type"] != "missing"
    return f"{said}, got {first['input']!r}" if shown else said
