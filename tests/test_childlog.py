"""The log of a plugin: two ends, no control codes, whole characters."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.childlog import HEAD_BYTES, TAIL_BYTES, CappedLog


def logged(path: Path, *pieces: bytes) -> tuple[str, CappedLog]:
    with CappedLog(path) as log:
        for piece in pieces:
            log.write(piece)
    return path.read_bytes().decode(), log


def test_short_log_is_whole(tmp_path: Path) -> None:
    text, log = logged(tmp_path / "log", b"one\n", "zwei\tü\n".encode())
    assert text == "one\nzwei\tü\n"
    assert not log.left_out


def test_long_log_keeps_both_ends_and_counts_the_rest(tmp_path: Path) -> None:
    lines = [f"{number:07d}\n".encode() for number in range(400_000)]
    whole = b"".join(lines)
    pieces = [whole[start : start + 65_536] for start in range(0, len(whole), 65_536)]
    text, log = logged(tmp_path / "log", *pieces)
    head, marker, tail = text.partition("\n[... ")
    assert log.left_out == len(whole) - HEAD_BYTES - TAIL_BYTES
    assert marker
    assert tail.startswith(f"{log.left_out} bytes left out ...]\n")
    assert head.encode() == whole[:HEAD_BYTES]
    assert tail.partition("\n")[2].encode() == whole[-TAIL_BYTES:]


@pytest.mark.parametrize("code", [*range(9), 11, 12, *range(14, 32), *range(127, 160)])
def test_control_codes_become_question_marks(tmp_path: Path, code: int) -> None:
    text, _ = logged(tmp_path / "log", f"a{chr(code)}b".encode())
    assert text == "a?b"


def test_carriage_returns_become_newlines(tmp_path: Path) -> None:
    assert logged(tmp_path / "log", b"10 %\r20 %\r")[0] == "10 %\n20 %\n"


def test_characters_split_between_writes_stay_whole(tmp_path: Path) -> None:
    content = "naïve 数据 \x9b".encode()
    assert logged(tmp_path / "log", *(bytes([b]) for b in content))[0] == "naïve 数据 ?"


def test_bytes_that_are_no_utf8_are_replaced(tmp_path: Path) -> None:
    assert logged(tmp_path / "log", b"a\xff\x9bb")[0] == "a\ufffd\ufffdb"


def test_cut_log_is_utf8(tmp_path: Path) -> None:
    text, log = logged(tmp_path / "log", b"x", "数".encode() * 500_000)
    assert log.left_out
    assert set(text.partition("\n[...")[0]) == {"x", "数"}


def test_head_is_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    with CappedLog(tmp_path / "log") as log:
        log.write(b"so far\n")
        assert (tmp_path / "log").read_bytes() == b"so far\n"
