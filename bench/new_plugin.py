"""`bench new-plugin`: an installable package with a method that works, its tests and its CI."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.resources
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from string import Template

from bench import manager
from bench.errors import UserError

FILES = {  # in the new folder: by which template
    "bench_$name.py": "method.py.template",
    "tests/test_$name.py": "test_method.py.template",
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    "LICENSE": "LICENSE.template",
    ".gitignore": "gitignore.template",
    ".github/workflows/tests.yml": "tests.yml.template",
}


def write(name: str, into: Path | None = None, *, author: str | None = None) -> list[Path]:
    """Write a new plugin's package, all of it or nothing, and return its files.

    Args:
        name: the method's name, under which it will be installed.
        into: the package's folder, which does not exist or is empty; by default the plugin's
            distribution in the current folder, "bench-mine" for the method "mine".
        author: for LICENSE and metadata; by default git's `user.name`.

    Raises:
        UserError: the name is none or is taken, the folder is not free, the author no line.
    """
    if fault := manager.name_fault(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = f"; did you mean {near}?" if near and not manager.name_fault(near) else ""
        raise UserError(f"no method can be called {name!r}: {fault}{hint}")
    if (owner := manager.installed().get(name)) is not None:
        raise UserError(f"the name {name!r} is installed by {owner.claimants[0]}; choose another")
    if importlib.util.find_spec(f"bench_{name}") is not None:
        raise UserError(f"a module bench_{name} exists already; choose another name")
    distribution = "bench-" + re.sub("_+", "-", name).strip("-")
    author = _git_user() or f"the authors of {distribution}" if author is None else author.strip()
    if not author or not author.isprintable():
        raise UserError(f"--author {author!r}: expected a name on one line")
    folder = Path(distribution) if into is None else into
    place = _free(folder)
    values = {
        "name": name,
        "title": name.replace("_", " ").strip().capitalize(),
        "distribution": distribution,
        "author": author,
        "quoted_author": json.dumps(author, ensure_ascii=False),
        "year": str(datetime.date.today().year),
        "version": importlib.metadata.version("pretrain-bench"),
    }
    return [folder / path for path in _put(place, _render(values))]


def _render(values: dict[str, str]) -> dict[str, str]:
    """Return {path in the new folder: content}."""
    templates = importlib.resources.files("bench") / "scaffold"
    return {
        Template(path).substitute(values): Template(
            (templates / template).read_text(encoding="utf-8")
        ).substitute(values)
        for path, template in FILES.items()
    }


def _free(folder: Path) -> Path:
    """Return the folder's real path if a package can be put there."""
    place = folder.expanduser().resolve()
    if place == Path.cwd().resolve() or place in Path.cwd().resolve().parents:
        raise UserError(f"--into {folder}: you are inside it; name a new folder beside or below")
    if not place.parent.is_dir():
        raise UserError(f"--into {folder}: there is no folder {place.parent}; make it first")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; choose another by --into")
    return place


def _put(folder: Path, files: dict[str, str]) -> list[str]:
    """Write files beside `folder` and rename them to it at once; an empty folder is replaced."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:80]}."))
    try:
        for path, text in files.items():
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(files)


def _git_user() -> str:
    """Return git's `user.name`, or nothing where there is neither git nor a name."""
    try:
        command = ["git", "config", "user.name"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    name = done.stdout.strip()
    return name if name.isprintable() else ""
