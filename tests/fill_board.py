"""Copy the published board and the example plugin into README, between their markers.

`python tests/fill_board.py` writes; the tests compare.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PLUGIN = ROOT / "tests" / "example_plugin" / "bench_simsiam.py"


def main_table(page: str) -> str:
    """Return the first table of a page."""
    return next(block for block in page.split("\n\n") if block.startswith("|"))


def filled(text: str) -> str:
    """Return README's text with the current board and plugin."""
    board = main_table((ROOT / "leaderboards" / "digits.md").read_text(encoding="utf-8"))
    text = between(text, "<!-- board:digits -->", "<!-- /board -->", board)
    code = f"```python\n{PLUGIN.read_text(encoding='utf-8').strip()}\n```"
    return between(text, "<!-- plugin -->", "<!-- /plugin -->", code)


def between(text: str, start: str, end: str, content: str) -> str:
    """Return the text with `content` between two markers, in place of what is there."""
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    assert pattern.search(text), f"the page lacks {start}"
    return pattern.sub(lambda _: f"{start}\n{content}\n{end}", text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
