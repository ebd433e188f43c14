"""A plugin's code as a hash: its own source, and what it imports of its own package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from bench.identity import digest, file_sha256


def source_sha256(file: Path) -> str:
    """Return the sha256 of a plugin's source; of all its Python files where it is a package.

    Where it imports other modules of the package that it lies in, these count as well, and what
    they import there: an edit of a shared helper is an edit of each plugin that uses it. Imports
    are read and not executed, so one under a name that is made at run time goes unseen.
    """
    whole = file.name == "__init__.py"
    own = sorted(file.parent.rglob("*.py")) if whole else [file]
    helpers = _imported(own)
    if not whole and not helpers:
        return file_sha256(file)
    place = file.parent
    hashes = {path.relative_to(place).as_posix(): file_sha256(path) for path in own}
    root = _root(file)
    for path in helpers:
        hashes[f"/{path.relative_to(root).as_posix()}"] = file_sha256(path)
    return digest(hashes)


def _root(file: Path) -> Path:
    """Return the topmost package's folder above a file; its own folder where that is no package."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _imported(own: list[Path]) -> list[Path]:
    """Return the files of the same package, sorted, that these import, directly or not."""
    root = _root(own[0])
    if not (root / "__init__.py").is_file():
        return []
    seen, waiting = set(own), list(own)
    while waiting:
        for path in _of(waiting.pop(), root):
            if path not in seen:
                seen.add(path)
                waiting.append(path)
    return sorted(seen - set(own))


def _of(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files of the package at `root` that one file's import statements name."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == root.name:
                    yield from _files(root, rest)
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                base = file.parent
                for _ in range(node.level - 1):
                    base = base.parent
            elif parts[:1] == [root.name]:
                base, parts = root, parts[1:]
            else:
                continue
            if base != root and root not in base.parents:
                continue
            for alias in node.names:  # a module of that name, or else what its package defines
                found = [*_files(base, [*parts, alias.name])] or [*_files(base, parts)]
                yield from found


def _files(base: Path, parts: list[str]) -> Iterator[Path]:
    place = base.joinpath(*parts)
    for candidate in (place.with_name(place.name + ".py"), place / "__init__.py"):
        if candidate.is_file() and (parts or candidate.name == "__init__.py"):
            yield candidate
            return
