"""The record of reproductions is whole, and a page shows what it says of that page's own runs."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
from synthetic_results import board, result, track

from bench import ledger, page_files, publish
from bench.errors import UserError
from bench.leaderboard import render_track
from bench.reproductions import FILE, Record, append, read
from bench.results import Result, write
from bench.results import parse as parsed

PUBLISHED = "b" * 64


def with_backbone(run: Result, sha256: str = PUBLISHED) -> Result:
    artifacts = {"backbone.safetensors": {"sha256": sha256, "bytes": 1}}
    return parsed(Result.model_validate(run.document() | {"artifacts": artifacts}).document())


def record(run: Result, date: str, verdict: str, *, published: str = PUBLISHED) -> Record:
    return Record(
        date=date,
        run_id=run.run_id,
        track=run.track,
        verdict=verdict,  # type: ignore[arg-type]
        published=published,
        backbone=published,
        machine=run.machine,
        version="0.1.0",
    )


def cell_of(page: str, method: str) -> str:
    """Return a method's cell of the column `last reproduced`."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    names = [name.strip() for name in lines[0].split("|")]
    line = next(line for line in lines if method in line)
    return [cell.strip() for cell in line.split("|")][names.index("last reproduced")]


def test_a_row_shows_the_latest_record_of_its_seeds() -> None:
    runs = [with_backbone(run) for run in board()]
    of_turn = [run for run in runs if run.method == "turn_net"]
    of_queue = [run for run in runs if run.method == "queue_net"]
    records = [
        record(of_turn[3], "2026-01-02", "interval"),
        record(of_turn[0], "2026-01-01", "bytes"),
        record(of_queue[1], "2026-01-03", "bytes"),
        record(of_queue[1], "2026-01-03", "outside"),
    ]
    page = render_track(track(), runs, reproduced=records)
    assert cell_of(page, "TurnNet") == "2026-01-02, interval"
    assert cell_of(page, "QueueNet") == "2026-01-03, **not reproduced**"
    assert cell_of(page, "ContrastNet") == ""
    assert "Last reproduced:" in page


def test_a_page_without_records_of_its_runs_is_as_before() -> None:
    runs = [with_backbone(run) for run in board()]
    other = record(runs[0], "2026-01-02", "bytes", published="c" * 64)
    elsewhere = record(runs[0], "2026-01-02", "bytes").model_copy(update={"track": "shoes"})
    plain = render_track(track(), runs)
    assert "reproduced" not in plain.lower()
    assert render_track(track(), runs, reproduced=[other, elsewhere]) == plain


def test_the_check_of_boards_reads_the_record(tmp_path: Path) -> None:
    run = with_backbone(result("turn_net", 0))
    write(tmp_path / "results" / "clothes" / f"{run.run_id}.json", run)
    page_files.write_track(tmp_path / "results" / "clothes", track())
    read_test = {"track": run.track, "spec": run.spec, "run_id": run.run_id, "test_sha256": ""}
    line = ledger.of_run(code={}, protocols=[*run.evaluations], settings=[], **read_test)
    ledger.append(tmp_path / ledger.FILE, line)
    publish.render_all(tmp_path / "results", tmp_path)
    assert publish.check(tmp_path) == []
    append(tmp_path, record(run, "2026-01-02", "bytes"))
    assert publish.check(tmp_path) == ["clothes.md: differs from its results"]
    publish.render_all(tmp_path / "results", tmp_path)
    assert publish.check(tmp_path) == []
    assert cell_of((tmp_path / "clothes.md").read_text(), "turn") == "2026-01-02, bytes"


def test_records_are_read_as_they_were_appended(tmp_path: Path) -> None:
    run = result("turn_net", 0)
    records = [record(run, f"2026-01-0{day}", "bytes") for day in (1, 2, 3)]
    for one in records:
        append(tmp_path, one)
    assert read(tmp_path) == records
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_no_record_is_lost_where_two_append_at_once(tmp_path: Path) -> None:
    run = result("turn_net", 0)

    def several(month: int) -> None:
        for day in range(1, 11):
            append(tmp_path, record(run, f"2026-{month:02d}-{day:02d}", "bytes"))

    threads = [threading.Thread(target=several, args=(month,)) for month in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.date for one in read(tmp_path)}) == 30


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"date": "2026-01-02", "run', "no record of a reproduction"),
        (json.dumps({"date": "yesterday"}), "date"),
        ("", "no record of a reproduction"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_added(tmp_path: Path, line: str, said: str) -> None:
    run = result("turn_net", 0)
    append(tmp_path, record(run, "2026-01-02", "bytes"))
    text = (tmp_path / FILE).read_text() + line + "\n"
    (tmp_path / FILE).write_text(text)
    for attempt in (read, lambda place: append(place, record(run, "2026-01-03", "bytes"))):
        with pytest.raises(UserError, match=rf"line 2: .*{re.escape(said)}"):
            attempt(tmp_path)
    assert (tmp_path / FILE).read_text() == text
