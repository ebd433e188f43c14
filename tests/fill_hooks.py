"""Copy what bench/hookspecs.py says into docs/hooks.md, between its markers.

`python tests/fill_hooks.py` writes; the tests compare.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from fill_board import ROOT, between

PAGE = ROOT / "docs" / "hooks.md"
SOURCE = ROOT / "bench" / "hookspecs.py"


def filled(text: str) -> str:
    """Return the page's text with what the specification says now."""
    source = SOURCE.read_text(encoding="utf-8")
    body = ast.parse(source).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    hooks = [node for node in body if isinstance(node, ast.FunctionDef)]
    engine = [node for node in classes["Engine"].body if isinstance(node, ast.FunctionDef)]
    parts = {
        "hooks": [_function(source, node) for node in hooks],
        "card": [_opening(classes["MethodCard"]), _fields(classes["MethodCard"], defaults=True)],
        "batch": [
            "\n".join([*_documented(classes["Batch"].body, "Batch."), *_documented(body, "")])
        ],
        "engine": [
            _opening(classes["Engine"]),
            _fields(classes["Engine"], defaults=False),
            *(_function(source, node, "engine.") for node in engine),
        ],
    }
    for mark, blocks in parts.items():
        content = "\n\n".join(blocks)
        text = between(text, f"<!-- {mark} -->", f"<!-- /{mark} -->", content)
    return text


def _function(source: str, node: ast.FunctionDef, owner: str = "") -> str:
    """Return heading, signature and docstring of a hook or a method."""
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    signature = textwrap.dedent("\n".join(lines)).replace("self, ", "").replace("(self)", "()")
    signature = re.sub(r"^    self,\n", "", signature, flags=re.MULTILINE)
    said = "\n\n".join(_sections(ast.get_docstring(node) or ""))
    return f"### {owner}{node.name}\n```python\n{signature}\n```\n\n{said}"


def _opening(node: ast.ClassDef) -> str:
    return next(_sections(ast.get_docstring(node) or ""))


def _fields(node: ast.ClassDef, *, defaults: bool) -> str:
    """Return a class's fields as a table: name, type, perhaps default, what its docstring says."""
    said = _items((ast.get_docstring(node) or "").partition("Attributes:\n")[2])
    rows = []
    for field in (node for node in node.body if isinstance(node, ast.AnnAssign)):
        cells = [f"`{field.target.id}`", f"`{ast.unparse(field.annotation)}`"]
        if defaults:
            cells.append(f"`{_default(field.value)}`" if field.value else "")
        rows.append([*cells, said[field.target.id]])
    head = ["field", "type", *(["default"] if defaults else []), "meaning"]
    lines = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in [head, *rows])
    first, *others = (f"| {line} |" for line in lines)
    return "\n".join([first, "|" + "---|" * len(head), *others])


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    return {"field(default_factory=dict)": "{}"}.get(text, text)


def _documented(body: list[ast.stmt], owner: str) -> list[str]:
    """Return each name that has a text below it, with its type and that text."""
    found = []
    for node, below in pairwise(body):
        text = below.value if isinstance(below, ast.Expr) else None
        if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
            continue
        said = " ".join(text.value.split())
        if isinstance(node, ast.AnnAssign):
            found.append(f"- `{owner}{node.target.id}: {ast.unparse(node.annotation)}`: {said}")
        elif isinstance(node, ast.Assign):
            written = ast.unparse(node).replace("'", "")
            found.append(f"- `{owner}{written}`: {said}")
    return found


def _sections(docstring: str) -> Iterator[str]:
    """Yield a docstring's paragraphs; "Args:" and its like become lists."""
    for paragraph in docstring.split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if re.fullmatch(r"\w+:", head):
            listed = (f"- `{name}`: {text}" for name, text in _items(rest).items())
            yield "\n".join([f"{head.replace('Args', 'Arguments')}", *listed])
        else:
            yield paragraph


def _items(text: str) -> dict[str, str]:
    """Return {name: text} of an indented list "name: text" whose lines may go on below."""
    found: dict[str, str] = {}
    for line in textwrap.dedent(text).splitlines():
        item = re.match(r"([\w, ]+): (.*)", line)
        if item:
            name = item[1]
            found[name] = item[2]
        elif line.strip():
            found[name] += f" {line.strip()}"
    return found


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
