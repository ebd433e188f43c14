"""What every test shares: one thread, no network, no user configuration."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# What a test evaluates on a test split must leave no line in the ledger of the boards here.
_BOARDS = tempfile.mkdtemp(prefix="boards-")
atexit.register(shutil.rmtree, _BOARDS, ignore_errors=True)
os.environ["BENCH_LEADERBOARDS"] = _BOARDS
