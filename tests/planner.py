"""A planner in a process of its own: carries out what each line on standard input asks for.

A line is JSON: {"plugins": [...], "runs_dir", "data_dir", "steps", "options": {...}}. For each run
that ends it prints the run's name and the path of its result, at the end the exit status.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from small_runs import specs

from bench import runner


def carry_out(asked: dict) -> None:
    """Plan and run, and say what happened."""
    runs_dir = Path(asked["runs_dir"])
    options = runner.Options(runs_dir, leaderboards_dir=runs_dir, **asked["options"])
    runs = specs(asked["plugins"], Path(asked["data_dir"]), steps=asked["steps"])
    status = runner.carry_out(
        runs,
        options,
        finished=lambda spec, result, skipped: print(
            json.dumps({"run": spec.run_id, "result": str(runner.result_path(spec, options))}),
            flush=True,
        ),
        watching=lambda active, waiting: None,
    )
    print(json.dumps({"status": status, "torch": "torch" in sys.modules}), flush=True)


if __name__ == "__main__":
    for line in sys.stdin:
        carry_out(json.loads(line))
