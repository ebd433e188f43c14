"""What is here: installed methods and whether they load, versions, devices, data sets, tracks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import manager
from bench.errors import UserError

PACKAGES = ("pretrain-bench", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pluggy")
TORCH_SECONDS = 120
TORCH_FACTS = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"threads": torch.get_num_threads(), "cuda": names}))
"""


def methods(*, load: bool = False) -> list[dict[str, Any]]:
    """Return the installed methods, a dict each: name, title, family, distribution, version, file,
    and problem, one line on why it cannot be used, or "".

    Args:
        load: ask each for its card, in a child; else nothing is imported.
    """
    found = []
    for entry in manager.installed().values():
        title, family = manager.summary(entry.file)
        found.append(
            {
                "name": entry.name,
                "title": title,
                "family": family,
                "distribution": entry.distribution,
                "version": entry.version,
                "file": str(entry.file) if entry.file else None,
                "problem": entry.problem,
            }
        )
    if load:
        usable = [method for method in found if not method["problem"]]
        described = describe([method["name"] for method in usable])
        for method in usable:
            answer = described[method["name"]]
            if answer.get("observer"):
                method |= {"family": "", "role": "observer"}
                continue
            method["problem"] = answer["error"] or ""
            if not answer["error"]:
                method |= {key: answer["card"][key] for key in ("title", "family", "role")}
    return found


def describe(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return what each plugin's probe says; one that ends the process spoils only its own."""
    from bench.probe import probe

    answer = probe(names, recipe="", overrides={}, data=None, seeds=[], runs_dir=Path("runs"))
    return answer["methods"]


def outcomes(specs: Iterable[Any], options: Any) -> list[dict[str, Any]]:
    """Return what is known of each run: its id, status, reason and result file."""
    from bench import results
    from bench.runner import result_path

    found = []
    for spec in specs:
        path = result_path(spec, options)
        outcome = {"run_id": spec.run_id, "status": "to do", "reason": "", "result": None}
        if path.exists():
            try:
                result = results.read(path)
            except UserError as error:
                outcome |= {"status": "damaged", "reason": str(error)}
            else:
                outcome |= {"status": result.status, "reason": result.reason, "result": str(path)}
        found.append(outcome)
    return found


def report(runs_dir: Path, leaderboards_dir: Path) -> dict[str, Any]:
    """Return all that `bench doctor` shows; `problems` lists what would stop a run, and what is
    wrong with the boards' ledger of test reads."""
    torch_facts = _torch_facts()
    loaded = methods(load=True)
    problems = [method["problem"] for method in loaded if method["problem"]]
    if "error" in torch_facts:
        problems.append(f"torch: {torch_facts['error']}")
    problems += ledger_problems(leaderboards_dir)
    place = _nearest(runs_dir.absolute())
    if not os.access(place, os.W_OK):
        problems.append(f"runs folder {runs_dir}: {place} is not writable; choose --runs-dir")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "torch": torch_facts,
        "methods": loaded,
        "data": _data(),
        "problems": problems,
    }


def ledger_problems(leaderboards_dir: Path) -> list[str]:
    """Return breaks of the ledger's chain, and published results that left no line in it."""
    from bench import ledger, page_files

    file = leaderboards_dir / ledger.FILE
    found = ledger.problems(file)
    written = {line["run_id"] for line in ledger.read(file)}
    for page in page_files.read_pages(leaderboards_dir / "results"):
        for result in page.results:
            looked = any(entry.test_reads for entry in result.evaluations.values())
            if looked and result.run_id not in written:
                found.append(f"{page.track['id']}/{result.run_id}.json has no line in {file.name}")
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch_facts() -> dict[str, Any]:
    """Return threads and CUDA devices as torch sees them, from a process of their own."""
    command = [sys.executable, "-c", TORCH_FACTS]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {TORCH_SECONDS} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _data() -> dict[str, str]:
    """Return how each data set with a name can be had."""
    from bench.data import NAMED, STATES, fashion_mnist

    states = dict.fromkeys(NAMED, "available")
    states |= {name: state() for name, state in STATES.items()}
    if importlib.util.find_spec("sklearn") is None:
        states["digits"] = "needs scikit-learn"
    named = os.environ.get("BENCH_FASHION_MNIST")
    folder = Path(named).expanduser() if named else fashion_mnist.DEBIAN
    if folder.is_dir():
        state = f"available in {folder}"
    elif named:
        state = f"BENCH_FASHION_MNIST names no folder: {folder}"
    else:
        state = "in the cache, or downloaded at first use"
    return states | {name: state for name in NAMED if name.startswith("fashion-mnist")}
