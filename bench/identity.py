"""Canonical JSON and the hashes that name specs, runs, protocols and random streams."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ROLES = ("init", "order", "views", "forward", "stage", "generate", "evaluate")
LIMIT_RULE = "limit/1"  # how the training images of a limited run are drawn, in its spec


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, floats by repr.

    Raises:
        ValueError: a float is NaN or infinite.
        TypeError: a value has no JSON form, or a key is not a string.
    """
    _check_keys(value)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _check_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON needs string keys, got {key!r}")
            _check_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item)


def digest(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def run_id(spec: dict[str, Any]) -> str:
    """Return `<method>-s<seed>-<10 hex>` for a pretraining spec."""
    return f"{spec['method']}-s{spec['seed']}-{digest(spec)[:10]}"


def protocol_hash(protocol_id: str, version: int, settings: dict[str, Any]) -> str:
    """Return the 12 hexadecimal digits under which an evaluation's numbers may share a column."""
    return digest({"id": protocol_id, "version": version, "settings": settings})[:12]


def stream(seed: int, role: str, *index: int | str) -> int:
    """Return the 63-bit seed of an addressed random stream: sha256 over (seed, role, index).

    Nothing that is random is remembered between steps: what step 17 draws depends on its address
    alone, so a run that was killed draws the same.
    """
    if role not in ROLES:
        raise ValueError(f"stream role {role!r} is not one of {', '.join(ROLES)}")
    address = canonical_json([seed, role, *index])
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:8], "big") >> 1


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
