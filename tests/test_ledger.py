"""The ledger of test reads: a chain that shows what was changed, and counts that cannot be lost."""

from __future__ import annotations

import json
import multiprocessing
from types import SimpleNamespace

import pytest

from bench import ledger
from bench.errors import UserError

LINE = {
    "code": "a",
    "configuration": "c0",
    "distribution": "d",
    "method": "m",
    "protocols": ["p"],
    "run_id": "m-s0-0",
    "sampling": [],
    "seed": 0,
    "test_sha256": "t",
    "track": "digits",
}


def filled(path, count=4):
    for number in range(count):
        ledger.append(path, LINE | {"configuration": f"c{number}"})
    return path


def test_a_sound_chain_has_no_problems(tmp_path):
    path = filled(tmp_path / "boards" / "ledger.jsonl")
    assert ledger.problems(path) == []
    assert [line["configuration"] for line in ledger.read(path)] == ["c0", "c1", "c2", "c3"]
    assert ledger.problems(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("damage", ["changed", "removed", "inserted", "reordered", "torn"])
def test_whatever_is_done_to_a_line_is_seen(tmp_path, damage):
    path = filled(tmp_path / "ledger.jsonl")
    lines = path.read_text().splitlines()
    if damage == "changed":
        lines[1] = json.dumps(json.loads(lines[1]) | {"method": "another"}, sort_keys=True)
    elif damage == "removed":
        del lines[1]
    elif damage == "inserted":
        lines.insert(1, lines[1])
    elif damage == "reordered":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines[1] = lines[1][:40]
    path.write_text("\n".join(lines) + "\n")
    assert len(ledger.problems(path)) >= 1
    assert all(found.startswith("ledger.jsonl line ") for found in ledger.problems(path))


def test_changed_code_is_another_read_and_older_lines_still_count():
    older = {key: LINE[key] for key in LINE if key not in ("code", "sampling")}
    owner = SimpleNamespace(code=SimpleNamespace(distribution="d"), method="m")
    page = {"id": "digits", "test_sha256": "t"}

    def count(*lines):
        return ledger.test_reads(lines, owner, page)

    assert count(LINE, LINE | {"seed": 1}) == 1
    assert count(LINE, LINE | {"code": "b"}, LINE | {"code": "c"}) == 3  # --force after an edit
    assert count(older, older | {"configuration": "c1"}) == 2
    assert count(older, LINE) == 1  # the same configuration, published before codes were noted
    assert count(older, LINE, LINE | {"code": "b"}) == 2


def test_another_way_of_sampling_is_another_read():
    owner = SimpleNamespace(code=SimpleNamespace(distribution="d"), method="m")
    page = {"id": "digits", "test_sha256": "t"}

    def count(*samplings):
        lines = [LINE | {"sampling": list(of)} for of in samplings]
        return ledger.test_reads(lines, owner, page)

    assert count(["{}"], ["{}"]) == 1
    assert count(["{}"], []) == 1  # probes alone draw nothing
    assert count(["{}"], ['{"guidance":1}'], ['{"guidance":2}', "{}"]) == 3
    settings = [{"samples": 9, "sampling": {"w": 1}}, {"samples": 8, "sampling": {"w": 1}}, {}]
    noted = ledger.of_run(
        track="digits",
        spec={"method": "m", "seed": 0, "config": {}},
        run_id="m-s0-0",
        code={},
        protocols=["b", "a"],
        settings=settings,
        test_sha256="t",
    )
    assert (noted["protocols"], noted["sampling"]) == (["a", "b"], ['{"w":1}'])


def test_a_chain_goes_on_from_lines_that_name_no_code(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for lacking in (("code", "sampling"), ("sampling",), ()):
        ledger.append(path, {key: LINE[key] for key in LINE if key not in lacking})
    assert ledger.problems(path) == []
    assert [line.get("code") for line in ledger.read(path)] == [None, "a", "a"]


def test_a_line_torn_by_a_crash_does_not_swallow_the_next(tmp_path):
    path = filled(tmp_path / "ledger.jsonl", 2)
    path.write_bytes(path.read_bytes()[:-20])
    ledger.append(path, LINE | {"configuration": "after"})
    assert ledger.read(path)[-1]["configuration"] == "after"
    assert len(ledger.problems(path)) == 1  # the torn line itself


def _append_many(path, name):
    for number in range(20):
        ledger.append(path, LINE | {"configuration": f"{name}{number}"})


def test_workers_that_append_at_once_leave_one_chain(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert ledger.problems(path) == []
    assert len(ledger.read(path)) == 60


def test_a_ledger_that_cannot_be_written_stops_the_reader(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="every test read"):
        ledger.append(tmp_path / "file" / "ledger.jsonl", LINE)
