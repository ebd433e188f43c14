"""Who holds memory of a card, as NVIDIA's driver says through `nvidia-smi`."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import dataclass

QUERY = ("--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits")
SECONDS = 20.0


@dataclass(frozen=True)
class Holder:
    """A process on a card. `bytes` is None where the driver does not say."""

    pid: int
    bytes: int | None


def holders(uuid: str) -> list[Holder] | None:
    """Return the processes on the card `uuid` ("GPU-..."); None where nvidia-smi cannot say."""
    try:
        said = subprocess.run(
            ["nvidia-smi", *QUERY], capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse(said.stdout, uuid)


def parse(text: str, uuid: str) -> list[Holder]:
    """Return the holders of the card `uuid` in nvidia-smi's answer, `used_memory` in MiB."""
    found = []
    for line in text.splitlines():
        card, _, rest = (part.strip() for part in line.partition(","))
        pid, _, used = (part.strip() for part in rest.partition(","))
        if card == uuid and pid.isdigit():
            found.append(Holder(int(pid), int(used) * 2**20 if used.isdigit() else None))
    return found


def others(found: Collection[Holder], ours: Collection[int]) -> list[str]:
    """Return a line for each holder that is none of `ours`.

    In a container the driver may name the host's process ids, and none of ours: then as many
    holders as we are processes are taken to be us.
    """
    strangers = [holder for holder in found if holder.pid not in ours]
    if ours and len(strangers) == len(found):
        count = max(0, len(found) - len(ours))
        return [f"{count} other processes were on the card"] if count else []
    return [
        "another process was on the card"
        + (f" and held {holder.bytes / 2**30:.1f} GiB" if holder.bytes else "")
        for holder in strangers
    ]


def held(found: Collection[Holder], pid: int) -> int | None:
    """Return the bytes that a process holds as the driver counts, None where it does not say."""
    return next((holder.bytes for holder in found if holder.pid == pid), None)
