"""Markdown that shows a text as it is: escaping, numbers beside their interval, tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from tabulate import tabulate

from bench.statistics import Cell

LONGEST_TEXT = 160  # characters of a plugin's text in a cell or footnote
_ENTITIES = {ord(mark): f"&#{ord(mark)};" for mark in "\\`*~[]|#@$"}
_ENTITIES |= {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
_LATIN_AND_GREEK = 0x400  # every character below is one column wide in all terminals and fonts
_ARXIV = re.compile(r"https?://arxiv\.org/(?:abs|pdf)/([0-9]{4}\.[0-9]{4,5})(?:v[0-9]+)?(?:\.pdf)?")


def text(value: object, *, longest: int = LONGEST_TEXT) -> str:
    """Return a value as markdown on one line that renders as its characters and nothing else.

    Line breaks and runs of spaces become one space; control, bidirectional and zero-width
    characters are dropped; no markup, HTML, link, address or table cell can begin.
    """
    line = one_line(value, longest=longest).translate(_ENTITIES)
    line = re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", "&#95;", line)
    line = re.sub(r"(?i)(www)\.", r"\1&#46;", line).replace("://", "&#58;//")
    return "".join(mark if _is_plain(mark) else f"&#{ord(mark)};" for mark in line)


def one_line(value: object, *, longest: int = LONGEST_TEXT) -> str:
    """Return a value on one line without hidden characters, cut at `longest`; not escaped."""
    line = " ".join(str(value).split())
    line = "".join(mark for mark in line if not _is_hidden(mark))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _is_hidden(mark: str) -> bool:
    return unicodedata.category(mark)[0] == "C" or unicodedata.category(mark) in ("Zl", "Zp")


def _is_plain(mark: str) -> bool:
    if mark in "…−–":
        return True
    return ord(mark) < _LATIN_AND_GREEK and not unicodedata.combining(mark)


def link(label: str, url: str) -> str:
    """Return a markdown link of an escaped label, or the label alone if the URL is not http(s)."""
    address = "".join(str(url).split())
    if not re.match(r"https?://[^/]", address):
        return label
    safe = quote(address, safe="-._~:/?#@!$&+,;=%")
    return f"[{label}]({safe.replace('&', '&amp;')})"


def paper(url: str) -> str:
    """Return a short link to a paper: its arXiv number where there is one."""
    if not url:
        return ""
    arxiv = _ARXIV.fullmatch(url.strip())
    if arxiv:
        return link(f"arXiv:{arxiv[1]}", url.strip())
    linked = link("paper", url)
    return linked if linked != "paper" else text(url, longest=40)


def decimals(half_width: float) -> int:
    """Return how many decimals a number has that ends at its half-width's first digit."""
    if not half_width > 0:
        return 1
    return max(0, -int(f"{half_width:.0e}".split("e")[1]))


def plus_minus(cell: Cell) -> str:
    """Return `mean ± half-width` in percent."""
    places = decimals(cell.half_width)
    return f"{cell.mean:.{places}f} ± {cell.half_width:.{places}f}"


def measured(value: float, *, digits: int = 3) -> str:
    """Return a measured number as `short` does, 0 as "0"."""
    return short(value, digits=digits) or "0"


def short(value: float, *, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, never in exponents; "" for 0, which costs
    have where they were not measured."""
    if not value:
        return ""
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    places = digits - 1 - exponent
    return f"{round(value, places):.{max(places, 0)}f}"


def passes(value: float) -> str:
    """Return a number of encoder passes: 2, 0.25."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], aligned: str) -> str:
    """Return a markdown table of texts as they are; `aligned` holds l or r for each column."""
    align = {"l": "left", "r": "right"}
    return tabulate(
        rows,
        headers=headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=[align[letter] for letter in aligned],
    )


def join(parts: Sequence[str]) -> str:
    """Return the parts that say something, separated by a middle dot."""
    return " · ".join(part for part in parts if part)


def numbers(values: Iterable[int]) -> str:
    """Return 0-4 for neighbours, else the list."""
    listed = sorted(values)
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]}-{listed[-1]}"
    return ", ".join(map(str, listed))
