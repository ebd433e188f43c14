"""What commands print: tables, cards and reports as plain text, and JSON."""

from __future__ import annotations

import json as json_
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def json(value: Any) -> str:
    """Return a value as indented JSON."""
    return json_.dumps(value, indent=1)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; without headers, plain columns. Cells are shown as they are."""
    from tabulate import tabulate

    form = "simple" if headers else "plain"
    cells = [[_printable(cell) for cell in row] for row in rows]
    return tabulate(cells, headers=headers, tablefmt=form, disable_numparse=True)


def methods(found: Iterable[Mapping[str, Any]]) -> str:
    """Return the installed methods as a table, and a line for each that cannot be used."""
    columns = ("name", "family", "title", "distribution", "version")
    found = list(found)
    lines = [table(columns, [[method[key] for key in columns] for method in found])]
    lines += [method["problem"] for method in found if method["problem"]]
    return "\n".join(lines)


def card(answer: Mapping[str, Any], file: str) -> str:
    """Return a method's card, as the probe describes it, for a terminal."""
    shown = answer["card"]
    owner = "local file" if answer["local"] else f"{answer['distribution']} {answer['version']}"
    lines = [
        ("paper", shown["paper"]),
        ("family", f"{shown['family']}, {shown['role']}"),
        ("labels", "used" if shown["uses_labels"] else "not seen"),
        ("evaluated on", shown["input"]),
        ("needs", ", ".join(f"{k}: {v}" for k, v in shown["needs"].items()) or "nothing"),
        ("departs", shown["departs"]),
        ("plugin", f"{owner}, {file}"),
        ("sha256", answer["sha256"]),
    ]
    configs = {"defaults": shown["defaults"], **shown["recipes"]}
    rows = []
    for name, kind in shown["fields"].items():
        values = [json_.dumps(config[name]) for config in configs.values()]
        search = " ".join(str(part) for part in shown["search"].get(name, ()))
        rows.append([name, kind, *values, search])
    config = table(("field", "type", *configs, "search"), rows)
    return f"{shown['title']} ({answer['name']})\n\n{table((), lines)}\n\n{config}"


def report(found: Mapping[str, Any]) -> str:
    """Return what `bench doctor` found, problems last."""
    lines = [
        ("python", f"{found['python']} on {found['platform']}"),
        *found["packages"].items(),
        ("cpu", f"{found['cores']} cores, {found['memory_gib']} GiB"),
        ("cuda", ", ".join(found["torch"].get("cuda", [])) or "none"),
        *((f"data {name}", state) for name, state in found["data"].items()),
        ("methods", ", ".join(m["name"] for m in found["methods"] if not m["problem"]) or "none"),
    ]
    problems = [f"problem: {line}" for line in found["problems"]] or ["no problems found"]
    return "\n".join([table((), lines), "", *problems])


def _printable(cell: Any) -> str:
    """Return a cell's text on one line and without control codes, whatever a plugin wrote."""
    return "".join(c if c.isprintable() else " " for c in str(cell))
