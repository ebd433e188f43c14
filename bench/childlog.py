"""The log of a plugin's output: its two ends, about a mebibyte, without control codes."""

from __future__ import annotations

import codecs
from pathlib import Path
from types import TracebackType

HEAD_BYTES = 1 << 20
TAIL_BYTES = 1 << 16
CONTROL = {c: "?" for c in (*range(32), *range(127, 160)) if c not in (9, 10)} | {13: "\n"}


class CappedLog:
    """Keeps the first mebibyte and the last 64 KiB of what is written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self._tail = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __enter__(self) -> CappedLog:
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.left_out:
            self._file.write(f"\n[... {self.left_out} bytes left out ...]\n".encode())
        self._file.write(_whole_characters(self._tail))
        self._file.close()

    @property
    def left_out(self) -> int:
        return max(0, self.total - HEAD_BYTES - len(self._tail))

    def write(self, data: bytes) -> None:
        """Add UTF-8; carriage returns become newlines, other control codes question marks."""
        clean = self._decoder.decode(data).translate(CONTROL).encode()
        room = max(0, HEAD_BYTES - self.total)
        self.total += len(clean)
        if room:
            self._file.write(_whole_characters(clean[:room]))
            self._file.flush()
        if len(clean) > room:
            self._tail = (self._tail + clean[room:])[-TAIL_BYTES:]


def _whole_characters(cut: bytes) -> bytes:
    """Return UTF-8 without the parts of characters that a cut left at its ends."""
    return cut.decode(errors="ignore").encode()
