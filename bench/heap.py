"""glibc's heap, told to keep what torch frees: a step asks for the same sizes again."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # mallopt's parameters, from malloc.h
LARGEST_ON_HEAP = 32 * 2**20  # bytes; glibc takes no more
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process, and those it forks, give no freed memory back to the kernel.

    By default each tensor above 128 KiB may be mapped and unmapped anew, which costs a page fault
    for every 4 KiB: some 5 % of a small step. Without glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)
        libc.mallopt(TRIM_THRESHOLD, NEVER)
        libc.mallopt(ARENA_MAX, 1)  # the backward pass's thread would have one that is unmapped
