"""Ranges of evaluations' settings: what is out of one is refused before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.errors import UserError

KINDS = {int: "whole numbers", float: "numbers with a point", str: "texts"}


class Range(NamedTuple):
    """Finite numbers from `low` to `high`; `above` leaves out `low`, `below` leaves out `high`."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return low and high and math.isfinite(value)

    @property
    def words(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


COUNT = Range(1)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
MOMENTUM = Range(0, 1, below=True)


def refuse_outside(name: str, settings: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raise UserError if a setting of the evaluation, or a number of a list, is out of its range.

    A list must have a number.
    """
    for key, allowed in ranges.items():
        value = settings[key]
        if value == []:
            raise UserError(f"{name}.{key} is []; expected at least one number")
        several = isinstance(value, list)
        if not all(map(allowed.holds, value if several else [value])):
            each = "each " if several else ""
            raise UserError(f"{name}.{key} is {value!r}; expected {each}{allowed.words}")


def refuse_other_elements(name: str, value: Any, standard: Any) -> None:
    """Raise UserError if a list has elements of another type than the standard one's.

    Args:
        name: of the setting, for the message.
    """
    if not isinstance(value, list) or not standard:
        return
    kind = type(standard[0])
    if any(type(element) is not kind for element in value):
        expected = KINDS.get(kind, kind.__name__)
        raise UserError(f"{name} is {value!r}; expected a list of {expected}, as {standard!r}")


def refuse_no_interval(name: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError if the strengths of l2 do not rise from `l2_low` to `l2_high`."""
    low, high = settings["l2_low"], settings["l2_high"]
    if low >= high:
        raise UserError(f"{name}.l2_low is {low:g}; expected below l2_high, which is {high:g}")
