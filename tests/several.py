"""Processes of a test that train together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.probe import fork_server

SECONDS = 120.0  # until they are taken to hang


def run(target: Callable[..., None], world: int, *arguments: Any) -> None:
    """Call `target(rank, *arguments)` in a process for each rank; all must end well."""
    context = fork_server()
    processes = [context.Process(target=target, args=(rank, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * world
