"""Freed memory stays with the process, so that asking for it again costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, threading
import torch
from bench import heap

if sys.argv[1] == "kept":
    heap.keep_freed_memory()

def rounds(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        held = [torch.ones(3 * 2**19) for _ in range(25)]  # 6 MiB each
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    rounds(2)
    print(rounds(10))

thread = threading.Thread(target=work)  # as backward passes have one of their own
thread.start()
thread.join()
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again_without_faults():
    """150 MiB in each of ten rounds come once from the kernel, in pages of 4 KiB or of 2 MiB."""
    assert 5 * faults("kept") < faults("given back")
