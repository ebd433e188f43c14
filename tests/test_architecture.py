"""The dependency rules of docs/architecture.md, read from the source; nothing is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCH = sorted((ROOT / "bench").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("*.py"))
EXAMPLES = sorted((ROOT / "tests" / "example_plugin").glob("*.py"))
METHODS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["bench"]

PLUGIN_MAY = {"torch", "torchvision", "timm", "bench"} | set(sys.stdlib_module_names)
BENCH_FOR_PLUGINS = {"augment", "layers", "losses", "distributed"}
BENCH_FOR_PLUGINS |= {"likelihoods", "decoders", "diffusion", "unet"}  # what generators share
BENCH_FOR_PLUGINS |= {"adversarial", "generators"}  # what players of a game share
WITHOUT_TORCH = (
    "cli",
    "plan",
    "identity",
    "results",
    "leaderboard",
    "hookspecs",
    "manager",
    "errors",
    "cards",
)
HEAVY = {"torch", "torchvision", "timm", "safetensors", "lightly"}
ENGINE = ("engine", "optimizers", "checkpoints", "chunking", "buffers", "recompute", "finite")
EVALUATION_MAY = {"errors", "features", "identity", "evaluations", "backbones"}
EVALUATION_MAY |= {"data"}  # the images of protocols that train: finetuning, probes over views
EVALUATION_MAY |= {"augment"}  # functions over images, the same that plugins compose
EVALUATION_MAY |= {"metrics", "extractors"}  # of generated images
EVALUATION_MAY |= {"sampling"}  # images that a method drew, as arrays
METRICS_MAY = {"errors", "metrics", "evaluations"}  # the last for the probe of `logistic`
ENGINE_MAY_NOT = {"evaluations", "results", "judge", "integrity", "features", "leaderboard"}
SELF_SUPERVISION = (
    "self-supervis|selfsupervis|contrastive|pretext|negatives|momentum_encoder|momentum encoder"
    "|teacher|student|projector|predictor|nt_xent|info_?nce|rotation|jigsaw|queue_size"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, *, top: bool = False) -> Iterator[str]:
    """Yield the dotted modules that a file imports; with `top`, only those that importing it runs.

    `from bench import plan` is yielded as `bench.plan` and as `bench`.
    """
    tree = ast.parse(path.read_text())
    nodes = _running(tree) if top else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
                module = ".".join([*package, *([module] if module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: no function bodies, nothing for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _running(other)
            continue
        yield child
        yield from _running(child)


def module_file(module: str) -> Path | None:
    """Return the file of one of `bench`'s own modules, or None."""
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if module.split(".")[0] == "bench" and candidate.is_file():
            return candidate
    return None


def loaded_by(path: Path) -> dict[str, Path]:
    """Return {module: the file that imports it} for all that importing a file loads."""
    found: dict[str, Path] = {}
    waiting = [path, ROOT / "bench" / "__init__.py"]
    while waiting:
        current = waiting.pop()
        for module in imports(current, top=True):
            parts = module.split(".")
            for end in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b first
                part = ".".join(parts[:end])
                if part not in found:
                    found[part] = current
                    own = module_file(part)
                    waiting += [own] if own else []
    return found


def bench_modules(path: Path, *, top: bool = False) -> set[str]:
    """Return the first part below `bench` of every module of ours that a file imports."""
    own = {module for module in imports(path, top=top) if module_file(module)}
    return {module.split(".")[1] for module in own if "." in module}


@pytest.mark.parametrize("path", [*PLUGINS, *EXAMPLES], ids=name)
def test_1_a_plugin_imports_only_what_it_may(path):
    for module in imports(path):
        top, *rest = module.split(".")
        assert top in PLUGIN_MAY, f"{name(path)} imports {module}"
        if top == "bench" and rest and module_file(f"bench.{rest[0]}"):
            assert rest[0] in BENCH_FOR_PLUGINS, f"{name(path)} imports {module}"
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("path", PLUGINS, ids=name)
def test_2_no_plugin_imports_another(path):
    others = {other.stem for other in PLUGINS} | set(METHODS)
    for module in imports(path):
        assert module.split(".")[0] not in others | {"bench_plugins", "plugins"}


@pytest.mark.parametrize("path", BENCH, ids=name)
def test_3_the_harness_names_no_plugin(path):
    for node in ast.walk(ast.parse(path.read_text())):
        words = {
            getattr(node, field, None)
            for field in ("id", "attr", "name", "arg", "asname", "module")
        }
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        hit = {word for word in words if isinstance(word, str)} & set(METHODS)
        assert not hit, f"{name(path)} line {getattr(node, 'lineno', '?')} names {hit}"
    assert not [module for module in imports(path) if module.split(".")[0] == "bench_plugins"]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_4_importing_it_loads_no_torch(module):
    loaded = loaded_by(ROOT / "bench" / f"{module}.py")
    heavy = {part: name(by) for part, by in loaded.items() if part in HEAVY}
    assert not heavy, f"bench.{module} loads {heavy}"


def test_4_the_search_for_heavy_imports_finds_them():
    loaded = loaded_by(ROOT / "bench" / "preload.py")
    assert {"torch", "timm"} <= set(loaded)


def test_4_the_command_line_loads_no_pandas_scikit_learn_or_pydantic_either():
    loaded = loaded_by(ROOT / "bench" / "cli.py")
    assert not {"pandas", "sklearn", "numpy", "pydantic", "rich", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("path", [p for p in BENCH if p.parent.name == "evaluations"], ids=name)
def test_5_evaluations_know_images_features_and_labels_only(path):
    assert bench_modules(path) <= EVALUATION_MAY


@pytest.mark.parametrize("path", [p for p in BENCH if p.parent.name == "metrics"], ids=name)
def test_5_metrics_know_features_only(path):
    assert bench_modules(path) <= METRICS_MAY


@pytest.mark.parametrize("module", ENGINE)
def test_5_the_engine_knows_no_evaluation_and_no_self_supervision(module):
    path = ROOT / "bench" / f"{module}.py"
    assert not bench_modules(path) & ENGINE_MAY_NOT
    found = re.findall(SELF_SUPERVISION, path.read_text(), re.IGNORECASE)
    assert not found, f"{name(path)} speaks of {found}"


@pytest.mark.parametrize("path", [*BENCH, *PLUGINS], ids=name)
def test_6_no_file_is_too_long(path):
    limit = 200 if path.parent.name == "plugins" else 400
    assert len(path.read_text().splitlines()) <= limit


def test_every_hook_has_a_test():
    """A hook counts as tested where a test defines, calls or names it."""
    tree = ast.parse((ROOT / "bench" / "hookspecs.py").read_text())
    hooks = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("hookspec" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert len(hooks) == 6
    tests = [p for p in (ROOT / "tests").rglob("test_*.py") if p.name != Path(__file__).name]
    text = "\n".join(path.read_text() for path in tests)
    for hook in hooks:
        called = rf"def {hook}\(|\.{hook}\(|call\(\s*[\"']{hook}[\"']|[\"']{hook}[\"']:"
        assert re.search(called, text), f"no test of the hook {hook}"


def test_every_entry_point_has_its_file():
    assert METHODS.keys() == {path.stem for path in PLUGINS} - {"__init__"}
    assert set(METHODS.values()) == {f"bench_plugins.{method}" for method in METHODS}
