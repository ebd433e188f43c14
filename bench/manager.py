"""Find plugins by entry point, load one by name or file, call one plugin's hooks."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pluggy

from bench import hookspecs
from bench.errors import UnknownName, UserError
from bench.sources import source_sha256

GROUP = "bench"
RAW_PIXELS = "raw_pixels"  # the harness's own floor, which is no plugin
RESERVED = ("all", RAW_PIXELS)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FILES: set[str] = set()  # of the plugins that this process has begun to import, for `place`


class PluginError(UserError):
    """A plugin that cannot be used: one line with its name and the cause."""


class DuplicateName(PluginError):
    """Two distributions claim one method's name."""


@dataclass(frozen=True)
class Installed:
    """An entry point of the group `bench`, known from metadata alone: nothing was imported.

    Attributes:
        module: the dotted name of the module.
        file: the module's source, or None where it cannot be found.
        claimants: every distribution that registers the name, as "name version"; more than one
            makes the name unusable until all but one are uninstalled.
    """

    name: str
    distribution: str
    version: str
    module: str
    file: Path | None
    claimants: tuple[str, ...]

    @property
    def duplicate(self) -> bool:
        return len(self.claimants) > 1

    @property
    def problem(self) -> str:
        """Return why the name cannot be loaded, or an empty string."""
        if self.duplicate:
            owners = " and ".join(self.claimants)
            return f"the name {self.name!r} is claimed by {owners}; uninstall all but one"
        fault = name_fault(self.name)
        return f"{self.claimants[0]} registers the name {self.name!r}: {fault}" if fault else ""


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: one module, one method, alone in its own plugin manager.

    Attributes:
        module: the name under which the module stands in `sys.modules`.
        sha256: of the source, `source_sha256(file)`.
        local: whether it came from a file instead of an installed distribution.
    """

    name: str
    module: str
    distribution: str
    version: str
    file: Path
    sha256: str
    local: bool
    _manager: pluggy.PluginManager = field(repr=False, compare=False)

    def has(self, hook: str) -> bool:
        """Return whether the plugin implements a hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call one hook with all arguments of its specification and return what it returns.

        Raises:
            PluginError: the plugin does not implement the hook.
            Exception: whatever the plugin raises, unchanged.
        """
        if not self.has(hook):
            raise PluginError(f"method {self.name!r} does not implement the hook {hook!r}")
        return getattr(self._manager.hook, hook)(**arguments)


def installed() -> dict[str, Installed]:
    """Return the installed plugins, sorted by name, without importing any.

    A name that two distributions claim stands there once, marked as a duplicate. An editable and
    a built copy of one distribution count as one.
    """
    claims: dict[str, dict[str, importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        owner = re.sub(r"[-_.]+", "-", entry.dist.name or "unnamed").lower()
        claims.setdefault(entry.name, {}).setdefault(owner, entry)
    found = {}
    for name, owners in sorted(claims.items()):
        first = next(iter(owners.values()))
        found[name] = Installed(
            name=name,
            distribution=first.dist.name,
            version=first.dist.version,
            module=first.module,
            file=source_file(first.module),
            claimants=tuple(sorted(f"{e.dist.name} {e.dist.version}" for e in owners.values())),
        )
    return found


def source_file(module: str) -> Path | None:
    """Return where a module's source lies, importing neither it nor a package above it."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder).joinpath(*rest)
        for candidate in (base.with_name(base.name + ".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def summary(file: Path | None) -> tuple[str, str]:
    """Return (title, family) from a module's docstring: its first line and its `Family:` line.

    Empty strings stand for what is missing or cannot be parsed.
    """
    try:
        docstring = ast.get_docstring(ast.parse(file.read_bytes())) if file else None
    except (OSError, SyntaxError, ValueError):
        docstring = None
    lines = (docstring or "").strip().splitlines()
    family = next((line for line in lines if line.strip().lower().startswith("family:")), "")
    return (lines[0].strip().rstrip(".") if lines else ""), family.partition(":")[2].strip()


def is_path(name_or_path: str) -> bool:
    """Return whether a request means a file and not an installed name."""
    return name_or_path.endswith(".py") or "/" in name_or_path or "\\" in name_or_path


def method_name(name_or_path: str) -> str:
    """Return the method's name: the name itself, or the stem of the file."""
    return Path(name_or_path).stem if is_path(name_or_path) else name_or_path


def find(name_or_path: str) -> Installed | Path:
    """Return what a request means, without importing it.

    Raises:
        UnknownName: no such plugin is installed.
        DuplicateName: two distributions claim the name.
        UserError: the file is missing, or its name cannot be a method's name.
    """
    known = installed()
    if not is_path(name_or_path):
        if name_or_path not in known:
            raise UnknownName("method", name_or_path, list(known))
        entry = known[name_or_path]
        if entry.problem:
            raise (DuplicateName if entry.duplicate else PluginError)(entry.problem)
        return entry
    path = Path(name_or_path).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"no plugin file {name_or_path!r}; expected the path of a Python file that ends in .py"
        )
    if fault := name_fault(path.stem):
        raise UserError(f"plugin file {name_or_path!r}: {fault}; rename the file")
    if path.stem in known:
        owner = known[path.stem].claimants[0]
        raise UserError(
            f"plugin file {name_or_path!r}: the name {path.stem!r} is installed by {owner}; "
            "rename the file"
        )
    return path.absolute()


def select(text: str, *, option: str = "--plugins") -> list[str]:
    """Return the requests of a comma-separated list in order; `all` is all that is installed.

    Files come back as absolute paths, which a process in another folder can load.

    Args:
        option: what the list was given to, for errors.

    Raises:
        UserError: an entry is empty, unknown, unusable, or named twice.
    """
    requests: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            raise UserError(
                f"{option} {text!r} has an empty name; expected names or files, split by commas"
            )
        if part == "all":
            requests += installed()
        else:
            found = find(part)
            requests.append(str(found) if isinstance(found, Path) else part)
    names = [method_name(request) for request in requests]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{option} names {', '.join(repeated)} twice; name each method once")
    return requests


def load(name_or_path: str) -> Plugin:
    """Import one plugin, by its installed name or from a file, and check its hooks.

    Raises:
        UserError: as `find`.
        PluginError: the import fails, a hook is misspelt or takes arguments that it does not have.
    """
    found = find(name_or_path)
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    if isinstance(found, Installed):
        _import(found.name, found.file, lambda: _register_installed(manager, found.name))
        _check_hooks(manager, found.name)
        file = Path(sys.modules[found.module].__file__ or "").resolve()
        sha256 = source_sha256(file)
        module, distribution, version = found.module, found.distribution, found.version
    else:
        file, source = found, found.read_bytes()
        sha256 = hashlib.sha256(source).hexdigest()
        module, distribution, version = f"bench_local_{file.stem}", "", ""
        _import(file.stem, file, lambda: _register_file(manager, module, file, source))
        _check_hooks(manager, file.stem)
    name, local = method_name(name_or_path), isinstance(found, Path)
    return Plugin(name, module, distribution, version, file, sha256, local, manager)


def _register_installed(manager: pluggy.PluginManager, name: str) -> None:
    manager.load_setuptools_entrypoints(GROUP, name=name)


def _register_file(
    manager: pluggy.PluginManager, module_name: str, file: Path, source: bytes
) -> None:
    """Run the very bytes that were hashed; cached bytecode may be of an older version."""
    module = types.ModuleType(module_name)
    module.__file__ = str(file)
    code = compile(source, str(file), "exec", dont_inherit=True)
    sys.modules[module_name] = module  # dataclasses look their module up while it runs
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module_name]
        raise
    manager.register(module, name=file.stem)


def _import(name: str, file: Path | None, register: Callable[[], None]) -> None:
    """Run an import that may do anything, `sys.exit` included; its failure becomes one line."""
    _FILES.add(str(file))
    try:
        register()
    except KeyboardInterrupt:
        raise
    except pluggy.PluginValidationError as error:
        raise PluginError(f"method {name!r}: {one_line(error)}") from error
    except BaseException as error:
        cause = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
        raise PluginError(f"method {name!r} cannot be imported{place(error)}: {cause}") from error


def _check_hooks(manager: pluggy.PluginManager, name: str) -> None:
    specified = [hook for hook in vars(hookspecs) if hasattr(vars(hookspecs)[hook], "bench_spec")]
    (plugin,) = manager.get_plugins()
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec():
            near = get_close_matches(caller.name, specified, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"hooks are {', '.join(specified)}"
            raise PluginError(f"method {name!r} has an unknown hook {caller.name!r}; {hint}")
        for implementation in caller.get_hookimpls():
            if implementation.kwargnames:
                arguments = ", ".join(implementation.kwargnames)
                raise PluginError(
                    f"method {name!r}: hook {caller.name!r} gives {arguments} a default value and "
                    "would never be passed it; take hook arguments without defaults"
                )
    manager.check_pending()
    if not callers:
        raise PluginError(
            f"method {name!r} implements no hook; mark its functions with @bench.hookimpl"
        )


def name_fault(name: str) -> str:
    """Return why no method can have this name, or an empty string."""
    if name in RESERVED:
        return f"{name!r} is reserved by bench"
    if _NAME.fullmatch(name):
        return ""
    return "a method's name is lower-case letters, digits and _, and begins with a letter"


def place(error: BaseException) -> str:
    """Return " (file.py, line N)" for the last line of a plugin's own file that was running."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file in _FILES:
            found = f" ({Path(file).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return found


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line, printable, of at most 300 characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return text if len(text) <= 300 else text[:297] + "..."
