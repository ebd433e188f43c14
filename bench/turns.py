"""Measure cells in turns, each in a fresh process, and say what each cost."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import costs, smi, timing
from bench.cell_process import CellProcess
from bench.costs import Cost, Spec
from bench.results import Code, Machine
from bench.runner import available_gib
from bench.timing import Lost

LONGEST_REASON = 500
SHARE_OF_MEMORY = 0.9  # of what is free, that a cell's process may hold


@dataclass(frozen=True)
class Cell:
    """A cell before it is measured; its images have so many channels, and this side if not the
    spec's."""

    plugin: str
    title: str
    spec: Spec
    code: Code
    channels: int = 3
    stored_side: int | None = None


@dataclass(frozen=True)
class Place:
    """Where cells are measured."""

    machine: Machine
    uuid: str = ""  # of the card
    card_bytes: int | None = None


def measure(
    cells: Sequence[Cell], place: Place, protocol: costs.Protocol, stall: float
) -> Iterator[tuple[Cell, Cost]]:
    """Measure cells in turns, each in a fresh process; yield each with its result.

    One that runs out of memory while others hold theirs is measured alone afterwards.
    """
    alone: list[Cell] = []
    ended: dict[str, Lost] = {}
    beside: dict[str, list[str]] = {}  # who else was on the card when a cell ended
    live: dict[str, CellProcess] = {}
    of = {cell.spec.label: cell for cell in cells}
    warmth: dict[str, dict[str, timing.Warmth]] = {}
    bounded = not place.uuid
    with contextlib.ExitStack() as stack:
        for name, cell in of.items():
            process = _start(cell, place, protocol, stall, stack)
            try:
                warmth[name] = timing.begin(process, protocol.settings, bounded=bounded)
                live[name] = process
            except Lost as lost:
                beside[name] = _others(live | {name: process})
                process.kill()
                if lost.status == "out_of_memory" and live:
                    alone.append(cell)
                else:
                    ended[name] = lost
        for process in live.values():
            process.forget_load()
        seconds, lost_later = timing.take_turns(live, warmth, protocol.settings["windows"])
        for name, lost in lost_later.items():
            beside[name] = _others(live)
            if lost.status == "out_of_memory" and len(live) > 1:
                live.pop(name).kill()
                alone.append(of[name])
            else:
                ended[name] = lost
        others = _others(live)
        found = {}
        for name in seconds:
            try:
                found[name] = _found(of[name], live, warmth[name], seconds[name], protocol.settings)
            except Lost as lost:
                ended[name] = lost
    for name, cell in of.items():
        fields = fields_of(cell, place, protocol)
        if name in found:
            yield cell, costs.with_derived(fields | found[name] | {"others": others})
        elif name in ended:
            status = {"status": ended[name].status, "reason": str(ended[name])[:LONGEST_REASON]}
            yield cell, costs.with_derived(fields | status | {"others": beside.get(name, [])})
    for cell in alone:
        yield from measure([cell], place, protocol, stall)


def _start(
    cell: Cell,
    place: Place,
    protocol: costs.Protocol,
    stall: float,
    stack: contextlib.ExitStack,
) -> CellProcess:
    """Start a cell's process in a folder of its own; the stack ends the one, removes the other."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cost-")))
    process = CellProcess(
        folder.resolve(),
        cell.plugin,
        cell.spec.model_dump(),
        protocol.settings,
        stall=stall,
        limit=free_bytes(),
        uuid=place.uuid,
        stored=(cell.channels, cell.stored_side or cell.spec.image_size),
    )
    stack.callback(process.kill)
    return process


def _others(live: Mapping[str, CellProcess]) -> list[str]:
    """Return who else is on the card while the cells still hold it."""
    holders = next(iter(live.values())).holders() if live else []
    return smi.others(holders, [process.pid for process in live.values()])


def _found(
    cell: Cell,
    live: Mapping[str, CellProcess],
    warmth: Mapping[str, timing.Warmth],
    seconds: Mapping[str, list[float]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what was measured of a cell, its process ended.

    Raises:
        Lost: it ended before it had said all.
    """
    name, per_card = cell.spec.label, cell.spec.batch_per_card
    process = live[name]
    driver = smi.held(process.holders(), process.pid)
    rss, busy = process.rss, process.busy_cores()
    steps = min(settings["flops_steps"], warmth["step"].steps)
    flops = process.flops(steps) / per_card
    facts = process.end()
    on_cpu = cell.spec.device == "cpu"
    memory = costs.Memory(
        allocated={} if on_cpu else process.allocated,
        reserved={} if on_cpu else process.reserved,
        driver=driver,
        rss=rss if on_cpu else None,
        rss_before=facts["rss_before"] if on_cpu else None,
        stored=facts["stored"],
    )
    stages = facts["earlier_stages"]
    return {
        "status": costs.MEASURED,
        "modes": {m: costs.mode_of(warmth[m], seconds[m], per_card) for m in timing.MODES},
        "memory": memory,
        "flops_per_image": flops,
        "parameters": facts["parameters"],
        "turns_with": sorted(other for other in live if other != name),
        "busy_cores": busy,
        "notes": ["trains in stages; its last one was measured"] if stages else [],
    }


def fields_of(cell: Cell, place: Place, protocol: costs.Protocol) -> dict[str, Any]:
    """Return what a cell's result says whatever became of it."""
    applied = costs.Applied(version=costs.VERSION, settings=protocol.settings, hash=protocol.hash)
    return {
        "cell": costs.name(cell.spec, holds_for(cell, place.machine)),
        "spec": cell.spec,
        "title": cell.title,
        "protocol": applied,
        "code": cell.code,
        "harness": costs.harness(),
        "machine": place.machine,
    }


def holds_for(cell: Cell, machine: Machine) -> str:
    """Return the processor or card that the cell's numbers hold for."""
    return machine.processor if cell.spec.device == "cpu" else machine.device


def free_bytes() -> float:
    """Return the bytes of memory that a cell's process may hold on this machine."""
    return available_gib() * 2**30 * SHARE_OF_MEMORY
