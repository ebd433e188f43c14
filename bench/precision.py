"""What `precision = "auto"` means on this machine: fp32 or bf16, by a timed trial that is kept.

The trial takes whole steps of the track's backbone in both precisions by turns. bf16 is taken where
it is worth another board; ties are fp32. Imports no torch: the trial runs in a process of its own
(`bench.trial`).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.files import cache_folder, write_atomically
from bench.identity import digest
from bench.timing import Timed, window_steps
from bench.track import Track, override

VERSION = 1  # of the trial: others are made again
PRECISIONS = ("fp32", "bf16")
NEVER_BELOW = 0.95  # of the better precision's speed
# How many times as fast as fp32 bf16 must be. Any number from 0.95 to 1 / 0.95 keeps to the rule
# where nothing is noisy. At or below 1 ties would be bf16, whose boards stand beside no fp32 ones.
WORTH = 1.025
# With n rounds the true median lies between the fastest round and the slowest but for 2 / 2 ** n of
# the time: 0.8 % with eight.
LEAST_ROUNDS, MOST_ROUNDS = 8, 40
TAIL = 0.005  # on either side of the interval, the median over rounds being binomial
WINDOW_SECONDS, WINDOW_STEPS = 0.25, 50
TOO_LITTLE = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the first that is set counts
CPUINFO, CARDS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")
FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # the last is ARM's name

Round = tuple[float, float]
"""Seconds of a step in fp32 and in bf16, one after the other."""
Measure = Callable[[Mapping[str, Any]], Sequence[Round]]
"""Takes what `trial_of` says and returns a round of each turn."""


@dataclass(frozen=True)
class Choice:
    """fp32 or bf16, and why in half a line."""

    precision: str
    why: str


def pin(track: Track, device: str) -> Track:
    """Return the track with fp32 or bf16 where it says `auto`, as if that had been asked for.

    A track in bf16 has an id, and so a page, of its own. An open track's rows choose afterwards.

    Raises:
        UserError: as `resolve`.
    """
    if track.precision != "auto":
        return track
    return override(track, precision=resolve(track, device))


def resolve(track: Track, device: str) -> str:
    """Return fp32 or bf16 for a track; what `auto` came to goes to standard error, one line.

    Args:
        device: "cpu" or "cuda".

    Raises:
        UserError: the backbone cannot be built, the trial ended early, or it cannot be kept.
    """
    if track.precision != "auto":
        return track.precision
    found = choose(track, device)
    _to_stderr(f"precision auto: {found.precision}; {found.why}")
    return found.precision


def choose(
    track: Track, device: str, *, folder: Path | None = None, measure: Measure | None = None
) -> Choice:
    """Return the precision of a track's runs here: from what rules bf16 out, a kept trial, or one.

    Args:
        folder: where trials are kept; `precision/` in the cache if not given.
        measure: makes a trial; in a process of its own if not given.

    Raises:
        UserError: as `resolve`.
    """
    if device == "cpu" and (reason := without_bf16(CPUINFO, os.environ)):
        return Choice("fp32", reason)
    trial = trial_of(track, device)
    folder = cache_folder() / "precision" if folder is None else folder
    file = folder / f"{digest(trial)[:16]}.json"
    rounds = read(file, trial)
    if rounds is None:
        try:
            with _alone(folder):  # two trials at once would disturb each other
                rounds = read(file, trial)
                if rounds is None:
                    rounds = (measure or _measure)(trial)
                    kept = {"trial": trial, "rounds": [list(pair) for pair in rounds]}
                    write_atomically(file, json.dumps(kept, indent=1).encode())
        except OSError as error:
            raise UserError(
                f"the trial of fp32 against bf16 cannot be kept in {folder} ({error.strerror}); "
                "set BENCH_CACHE to another folder, or give --precision fp32 or bf16"
            ) from error
    return decide(rounds)


def decide(rounds: Sequence[Round]) -> Choice:
    """Return bf16 if it is at least `WORTH` times as fast as fp32 in the median round."""
    low, middle, high = speedup(rounds)
    precision = "bf16" if middle >= WORTH else "fp32"
    why = (
        f"bf16 took {1 / middle:.2f} of the time of fp32 in the median of {len(rounds)} rounds "
        f"({1 / high:.2f} to {1 / low:.2f})"
    )
    return Choice(precision, why)


def speedup(rounds: Sequence[Round]) -> tuple[float, float, float]:
    """Return how many times as fast bf16 is as fp32: the median over rounds, between the ends of
    its interval (of order statistics, at least 99 % where there are eight rounds)."""
    ratios = sorted(single / half for single, half in rounds)
    outside = _outside(len(ratios))
    return ratios[outside], statistics.median(ratios), ratios[-1 - outside]


def _outside(count: int) -> int:
    """Return how many of `count` values lie outside the interval of their median on each side."""
    outside, tail = 0, 0.5**count
    while tail + math.comb(count, outside + 1) * 0.5**count <= TAIL:
        outside += 1
        tail += math.comb(count, outside) * 0.5**count
    return outside


def settled(rounds: Sequence[Round]) -> bool:
    """Return whether what `decide` takes is surely not below `NEVER_BELOW` of the other."""
    low, _, high = speedup(rounds)
    taken = decide(rounds).precision
    return low >= NEVER_BELOW if taken == "bf16" else 1 / high >= NEVER_BELOW


def rounds_of(cell: Timed) -> list[Round]:
    """Return rounds of windows in fp32 and bf16 by turns, until it is settled or `MOST_ROUNDS`.

    Args:
        cell: its modes are fp32 and bf16.
    """
    for precision in PRECISIONS:  # what is compiled or allocated once
        cell.window(precision, 1)
    longest = max(cell.window(precision, 1) for precision in PRECISIONS)
    steps = window_steps(longest, WINDOW_STEPS, WINDOW_SECONDS, least=1)
    found: list[Round] = []
    while len(found) < LEAST_ROUNDS or (len(found) < MOST_ROUNDS and not settled(found)):
        single, half = (cell.window(precision, steps) / steps for precision in PRECISIONS)
        found.append((single, half))
    return found


def without_bf16(cpuinfo: Path, environ: Mapping[str, str]) -> str:
    """Return why this processor computes nothing faster in bf16, or "".

    Args:
        cpuinfo: /proc/cpuinfo, or no file.
        environ: oneDNN's `ONEDNN_MAX_CPU_ISA` may keep it from instructions that are there.
    """
    name, cap = _cap(environ)
    if cap in TOO_LITTLE:
        return f"{name}={environ[name]} leaves no bf16 instructions"
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, said = line.partition(":")
        if key.strip() in ("flags", "Features") and FLAGS & set(said.split()):
            return ""
    return "this processor has no bf16 instructions (AMX, AVX512-BF16)"


def trial_of(track: Track, device: str) -> dict[str, Any]:
    """Return all that a trial's outcome depends on, JSON: a kept one serves the same alone."""
    from bench.judge import machine

    here = machine({"device": "cpu", "spec": {"threads": track.threads}})
    return {
        "version": VERSION,
        "device": device,
        "machine": here["processor"] if device == "cpu" else cards(CARDS, os.environ),
        "isa": _cap(os.environ)[1] if device == "cpu" else "",
        "threads": track.threads,
        "torch": here["torch"],
        "timm": here["timm"],
        "backbone": track.backbone,
        "image_size": track.image_size,
        # What one pass holds; an estimate of more would need more memory than the runs.
        "batch_size": track.chunk or track.batch_size,
    }


def cards(folder: Path, environ: Mapping[str, str]) -> str:
    """Return the names of this machine's cards as the driver lists them; of several kinds, with
    which of them may be seen."""
    names = []
    for file in sorted(folder.glob("*/information")):
        lines = file.read_text().splitlines()
        names += [x.partition(":")[2].strip() for x in lines if x.startswith("Model")]
    if len(set(names)) > 1:
        return f"{', '.join(names)}; visible: {environ.get('CUDA_VISIBLE_DEVICES', 'all')}"
    return names[0] if names else "CUDA"


def read(file: Path, trial: Mapping[str, Any]) -> list[Round] | None:
    """Return the rounds of a kept trial; None where there is none, or none that can be used."""
    try:
        kept = json.loads(file.read_bytes())
        rounds = [(float(single), float(half)) for single, half in kept["rounds"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    sound = all(0 < second < math.inf for pair in rounds for second in pair)
    if kept.get("trial") != trial or len(rounds) < LEAST_ROUNDS or not sound:
        return None
    return rounds


def _cap(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return which variable keeps oneDNN from newer instructions and its value, in lower case."""
    name = next((name for name in CAPS if environ.get(name)), CAPS[0])
    return name, environ.get(name, "").lower()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other trial is under way on this machine's cache."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _measure(trial: Mapping[str, Any]) -> list[Round]:
    from bench import probe

    _to_stderr("precision auto: timing fp32 against bf16, once for this machine and track")
    keys = ("device", "threads", "backbone", "image_size", "batch_size")
    answer = probe.ask(_answer, {key: trial[key] for key in keys}, "times fp32 and bf16")
    return [(single, half) for single, half in answer["rounds"]]


def _answer(send: Connection, asked: dict[str, Any]) -> None:
    from bench import probe, trial

    probe.die_with_planner()
    probe.be_quiet()
    try:
        send.send({"rounds": trial.run(asked, lambda line: send.send({"said": line}))})
    except UserError as error:
        send.send({"refused": str(error)})


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
