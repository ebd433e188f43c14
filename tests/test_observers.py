"""Observers are checked before anything runs, and their trouble is a line on standard error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cli, observers

WATCH = """
import bench

@bench.hookimpl
def run_finished(spec, result):
    print("seen", spec["method"], flush=True)
    {more}
"""


def write(folder: Path, name: str, source: str) -> str:
    (folder / f"{name}.py").write_text(source)
    return str(folder / f"{name}.py")


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"spec": {"method": "mine"}}))
    return path


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("simclr", "Error: --observers: simclr has no hook run_finished; name a plugin that"),
        ("./broken.py", "Error: --observers: method 'broken' cannot be imported"),
        ("./stops.py", "stops.py: the import raised KeyboardInterrupt"),
        ("./ends.py", "ends.py: the process that imports it ended with 4 before it answered"),
        ("./watch.py,", "Error: --observers './watch.py,' has an empty name"),
        ("./watch.py,./watch.py", "Error: --observers names watch twice"),
    ],
)
def test_what_cannot_observe_is_refused_before_anything_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "watch", WATCH.format(more=""))
    write(tmp_path, "broken", "def (:\n")
    write(tmp_path, "stops", "raise KeyboardInterrupt\n")
    write(tmp_path, "ends", "import os\nos._exit(4)\n")
    assert cli.main(["run", "--plugins", "random_init", "--observers", given]) == 2
    printed = capsys.readouterr()
    assert line in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "runs").exists()


def test_an_observer_with_the_hook_is_loaded_and_told(tmp_path: Path, result_file: Path) -> None:
    path = write(tmp_path, "watch", WATCH.format(more=""))
    assert observers.load(path) == (path,)
    assert observers.notify([path], result_file) == []


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("raise ValueError('two\\nlines')", "ValueError: two lines (watch.py, line 7)"),
        ("raise SystemExit(3)", "SystemExit: 3 (watch.py, line 7)"),
        ("__import__('os')._exit(5)", "ended with 5; see its output"),
    ],
)
def test_a_failing_observer_is_one_line(
    tmp_path: Path, result_file: Path, more: str, line: str
) -> None:
    path = write(tmp_path, "watch", WATCH.format(more=more))
    assert observers.notify([path], result_file) == [f"observer {path}: {line}"]
