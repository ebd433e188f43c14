"""Observers: plugins whose `run_finished` hook sees each finished run, in a child of its own."""

from __future__ import annotations

import json
from pathlib import Path

from bench import manager
from bench.probe import die_with_planner, fork_server

SECONDS = 60.0


def notify(observers: list[str], result_file: Path) -> list[str]:
    """Call `run_finished(spec, result)` of each observer; return a line for each that failed.

    Args:
        observers: installed names or files.
        result_file: the run's JSON document. What an observer does to it changes nothing.
    """
    failed = []
    for observer in observers:
        process = fork_server().Process(target=_observe, args=(observer, str(result_file)))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            failed.append(f"observer {observer}: not finished after {SECONDS:g} s; it was stopped")
        elif process.exitcode:
            failed.append(f"observer {observer}: ended with {process.exitcode}; see its output")
    return failed


def _observe(observer: str, result_file: str) -> None:
    die_with_planner()
    document = json.loads(Path(result_file).read_text())
    manager.load(observer).call("run_finished", spec=document["spec"], result=document)
