"""Where a picture's labels stand: beside their points, apart from each other."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Protocol

_WIDE, _HIGH = 400.0, 215.0  # what is drawn, in points, about


class Marked(Protocol):
    """A row's mark: a point with its interval, or at 0 seconds a line across."""

    @property
    def label(self) -> str: ...

    @property
    def seconds(self) -> float: ...

    @property
    def accuracy(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def spans_much(values: Sequence[float]) -> bool:
    """Return whether values are all above 0 and too far from each other for an even axis."""
    return min(values, default=0) > 0 and max(values) > 8 * min(values)


def beside(points: Sequence[Marked], ends: Sequence[float]) -> list[tuple[float, float, str]]:
    """Return where each point's label stands: points right and up of it, and its alignment.

    Labels are set one after the other, each at the nearest place, right or left of its point and
    up or down from it, where it covers no label, no point and as few intervals as can be.
    """
    height = math.log if spans_much(ends) else float
    lowest, highest = (height(end(ends)) for end in (min, max))
    scale = _HIGH / 1.1 / max(highest - lowest, 1e-9)
    logs = [math.log(point.seconds) for point in points if point.seconds > 0]
    left, right = (min(logs) - math.log(1.5), max(logs) + math.log(2.2)) if logs else (0.0, 1.0)

    def place(point: Marked) -> tuple[float, float]:
        x = (math.log(point.seconds) - left) / (right - left) * _WIDE if point.seconds > 0 else 0.0
        return x, (height(point.accuracy) - lowest) * scale

    marks, bars = [], []
    for point in points:
        x, y = place(point)
        if point.seconds > 0:
            marks.append((x - 4, y - 4, x + 4, y + 4))
            low, high = ((height(end) - lowest) * scale for end in (point.low, point.high))
            bars.append((x - 2, low, x + 2, high))
        else:
            bars.append((0.0, y - 0.5, _WIDE, y + 0.5))
    labels: list[tuple[float, float, float, float]] = []
    found = []
    for point in points:
        x, y = place(point)
        wide = 5.2 * len(plain(point.label))
        trained = point.seconds > 0
        tried = []
        for step in range(2 * len(points) + 3):
            up = 4.0 * (step // 2 + step % 2) * (-1 if step % 2 else 1) + (0 if trained else 8)
            for align in ("left", "right") if trained else ("left",):
                start = (x + 8 if align == "left" else x - 8 - wide) if trained else 2.0
                box = (start, y + up - 5, start + wide, y + up + 5)
                outside = max(-start, start + wide - _WIDE - 8, 0.0)
                cost = (
                    1000 * sum(_meet(box, other) for other in labels)
                    + 300 * sum(_meet(box, other) for other in marks)
                    + 12 * sum(_meet(box, other) for other in bars)
                    + 10 * outside
                    + abs(up)
                    + (3 if align == "right" else 0)
                )
                offset = (8.0 if align == "left" else -8.0) if trained else 0.0
                tried.append((cost, len(tried), (offset, up, align), box))
        _, _, chosen, box = min(tried)
        labels.append(box)
        found.append(chosen)
    return found


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two boxes, left, low, right, high, have an area in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def apart(ends: Sequence[float], shown: Sequence[float]) -> list[float]:
    """Return where the labels of falling ends stand so that none covers another.

    Labels move down, and where there is no room left above the lowest of `shown`, the values along
    the axis, up.
    """
    lowest = min(shown, default=0)
    least = 0.055 * max(max(shown, default=0) - lowest, 1.0)
    places: list[float] = []
    for end in ends:
        places.append(min([end, *(place - least for place in places[-1:])]))
    for at in reversed(range(len(ends))):
        below = [place + least for place in places[at + 1 : at + 2]]
        places[at] = max([places[at], lowest, *below])
    return places


def spread(settings: Sequence[float]) -> list[float]:
    """Return rising numbers without those nearer to the last than a label is wide."""
    kept: list[float] = []
    for setting in settings:
        if not kept or setting - kept[-1] > 0.06 * (settings[-1] - settings[0]):
            kept.append(setting)
    return kept


def plain(label: str, most: int = 60) -> str:
    """Return a label without characters that XML, or a reader, cannot take."""
    line = " ".join(str(label).split())
    return "".join(mark for mark in line if unicodedata.category(mark)[0] != "C")[:most]
