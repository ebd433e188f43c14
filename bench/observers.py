"""Observers: plugins whose `run_finished` hook sees each finished run, in a child of its own."""

from __future__ import annotations

import json
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import manager
from bench.errors import UserError
from bench.probe import PLUGIN_SECONDS, ask, be_quiet, die_with_planner, fork_server

HOOK = "run_finished"
SECONDS = 60.0


def load(text: str) -> tuple[str, ...]:
    """Return the observers of a comma-separated list, each of which a child has imported.

    Raises:
        UserError: an entry is refused, cannot be imported or lacks the hook.
    """
    observers = manager.select(text, option="--observers")
    ask(_load, {"observers": observers}, f"loads {text}", seconds=PLUGIN_SECONDS)
    return tuple(observers)


def notify(observers: list[str], result_file: Path) -> list[str]:
    """Call `run_finished(spec, result)` of each observer; return a line for each that failed.

    What it prints goes to standard error.

    Args:
        observers: installed names or files.
        result_file: the run's JSON document. What an observer does to it changes nothing.
    """
    failed = []
    for observer in observers:
        if became := _tell(observer, result_file):
            failed.append(f"observer {observer}: {became}")
    return failed


def _tell(observer: str, result_file: Path) -> str:
    """Return what went wrong with one observer, or nothing."""
    context = fork_server()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_observe, args=(send, observer, str(result_file)))
    process.start()
    send.close()
    process.join(SECONDS)
    try:
        if process.exitcode is None:
            process.kill()
            process.join()
            return f"not finished after {SECONDS:g} s; it was stopped"
        if receive.poll():
            return receive.recv()
    except EOFError:  # it said nothing
        pass
    finally:
        receive.close()
    return f"ended with {process.exitcode}; see its output" if process.exitcode else ""


def _load(send: Connection, asked: dict[str, Any]) -> None:
    die_with_planner()
    be_quiet()
    try:
        for observer in asked["observers"]:
            send.send({"at": observer})
            _loaded(observer)
        send.send({})
    except UserError as error:
        send.send({"refused": f"--observers: {error}"})


def _loaded(observer: str) -> manager.Plugin:
    """Return a loaded observer.

    Raises:
        UserError: it cannot be imported, or lacks the hook.
    """
    try:
        plugin = manager.load(observer)
    except KeyboardInterrupt as error:
        raise UserError(f"{observer}: the import raised KeyboardInterrupt") from error
    if not plugin.has(HOOK):
        raise UserError(f"{observer} has no hook {HOOK}; name a plugin that implements it")
    return plugin


def _observe(send: Connection, observer: str, result_file: str) -> None:
    die_with_planner()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where the command's document goes
    document = json.loads(Path(result_file).read_text())
    try:
        _loaded(observer).call(HOOK, spec=document["spec"], result=document)
    except UserError as error:
        send.send(str(error))
    except BaseException as error:
        cause = f"{type(error).__name__}: {manager.one_line(error)}".rstrip(": ")
        send.send(cause + manager.place(error))
