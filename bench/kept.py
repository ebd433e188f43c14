"""Facts that were found once and are kept: one JSON file, a record on a line for each key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import UserError
from bench.files import write_atomically

Record = TypeVar("Record")


def read(path: Path, record: type[Record], *, positive: str) -> dict[str, Record]:
    """Return the records in a file by key, none if there is no file.

    Args:
        record: a dataclass; every field must be there, and no other.
        positive: a field that is a number above 0.

    Raises:
        UserError: the file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = {key: record(**fields) for key, fields in document.items()}
        if not all(getattr(each, positive) > 0 for each in found.values()):
            raise ValueError(f"{positive} of 0 or less")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, it is made again") from None
    return found


def write(path: Path, records: Mapping[str, Any]) -> None:
    """Write records, sorted by key, whole or not at all."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(asdict(records[key]), sort_keys=True)}"
        for key in sorted(records)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
