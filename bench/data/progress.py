"""A line every ten seconds while a data set is downloaded or decoded."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 10.0  # between two lines; what takes less says nothing


class Progress:
    """Counts what is done of a whole and says so now and then.

    Args:
        say: takes one line.
        text: what is being done.
        total: how many there are; 0 if that is not known.
        unit: of the numbers in the line, such as "images".
        scale: of one `unit` in what is counted.
    """

    def __init__(
        self, say: Callable[[str], None], text: str, total: int, unit: str, scale: int = 1
    ) -> None:
        self.say, self.text, self.unit = say, text, unit
        self.total, self.scale, self.done = total, scale, 0
        self.said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count `count` more."""
        self.done += count
        if time.monotonic() - self.said >= SECONDS:
            self.said = time.monotonic()
            whole = f" of {self.total // self.scale:,}" if self.total else ""
            self.say(f"{self.text}: {self.done // self.scale:,}{whole} {self.unit}")
