"""The plugin host: finding by entry point, loading one by name or file, refusing the rest."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from bench import manager
from bench.errors import UnknownName, UserError
from bench.identity import file_sha256

MINIMAL = '''"""Mine: a method that returns what it is given.

Family:  other
"""
import bench

@bench.hookimpl
def describe():
    return "a card"

@bench.hookimpl
def pretrain(backbone, config):
    return (backbone, config)
'''

ALL_HOOKS = """
import bench

@bench.hookimpl
def describe():
    return "card"

@bench.hookimpl
def pretrain(backbone, config, engine):
    return ("pretrain", backbone, config, engine)

@bench.hookimpl
def generate(model, num_images, labels, sampling):
    return ("generate", model, num_images, labels, sampling)

@bench.hookimpl
def picture(model, engine, sampling):
    return ("picture", model, engine, sampling)

@bench.hookimpl
def run_finished(spec, result):
    return ("run_finished", spec, result)
"""


@pytest.fixture(autouse=True)
def _fresh_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("host_test_", "bench_local_")):
            del sys.modules[name]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the import path in which `install` puts distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def install(
    site: Path, distribution: str, entries: dict[str, str], *, version: str = "1.0"
) -> None:
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    lines = "\n".join(f"{name} = {module}" for name, module in entries.items())
    (info / "entry_points.txt").write_text(f"[bench]\n{lines}\n")


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_installed_reads_metadata_and_imports_nothing(site):
    install(site, "host-test-one", {"host_one": "host_test_one"}, version="2.5")
    write(site, "host_test_one.py", "raise SystemExit('imported')")

    found = manager.installed()["host_one"]

    assert (found.distribution, found.version, found.module) == (
        "host-test-one",
        "2.5",
        "host_test_one",
    )
    assert found.file == site / "host_test_one.py"
    assert not found.duplicate
    assert "host_test_one" not in sys.modules


def test_own_methods_stand_among_the_installed():
    found = manager.installed()
    assert list(found) == sorted(found)
    assert {entry.distribution for entry in found.values()} >= {"pretrain-bench"}


def test_two_distributions_with_one_name_are_refused_with_both_named(site):
    install(site, "host-test-one", {"host_one": "host_test_one"}, version="1.1")
    install(site, "host-test-two", {"host_one": "host_test_two"}, version="2.2")
    write(site, "host_test_one.py", MINIMAL)

    assert manager.installed()["host_one"].duplicate
    with pytest.raises(manager.DuplicateName, match=r"host-test-one 1\.1 and host-test-two 2\.2"):
        manager.load("host_one")
    assert "host_test_one" not in sys.modules


def test_two_copies_of_one_distribution_are_one(site, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    install(site, "host-test-one", {"host_one": "host_test_one"})
    install(other, "Host_Test.One", {"host_one": "host_test_one"}, version="9.9")
    write(site, "host_test_one.py", MINIMAL)
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])

    assert not manager.installed()["host_one"].duplicate
    assert manager.load("host_one").version == "1.0"


@pytest.mark.parametrize("name", ["all", "raw_pixels", "../escape", "Upper", "a.b"])
def test_an_entry_point_whose_name_is_no_method_name_is_refused(site, name):
    install(site, "host-test-one", {name: "host_test_one"})
    entry = manager.installed()[name]
    assert "host-test-one 1.0" in entry.problem
    if not manager.is_path(name):
        with pytest.raises(manager.PluginError, match="host-test-one"):
            manager.load(name)


def test_load_by_name_imports_only_that_plugin(site):
    install(site, "host-test-one", {"host_one": "host_test_one", "host_two": "host_test_two"})
    source = write(site, "host_test_one.py", MINIMAL)
    write(site, "host_test_two.py", "raise SystemExit('imported')")

    plugin = manager.load("host_one")

    assert (plugin.name, plugin.distribution, plugin.version) == (
        "host_one",
        "host-test-one",
        "1.0",
    )
    assert plugin.sha256 == hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert not plugin.local
    assert "host_test_two" not in sys.modules


def test_hooks_get_the_arguments_they_name(tmp_path):
    plugin = manager.load(write(tmp_path, "mine.py", ALL_HOOKS))
    arguments = {
        "describe": {},
        "pretrain": {"backbone": 1, "config": 2, "engine": 3},
        "generate": {"model": 1, "num_images": 2, "labels": None, "sampling": 4},
        "picture": {"model": 1, "engine": 2, "sampling": None},
    }
    for hook, given in arguments.items():
        expected = "card" if hook == "describe" else (hook, *given.values())
        assert plugin.call(hook, **given) == expected
    observed = plugin.call("run_finished", spec={"a": 1}, result={"b": 2})
    assert observed == [("run_finished", {"a": 1}, {"b": 2})]


def test_a_hook_takes_only_what_it_uses(tmp_path):
    plugin = manager.load(write(tmp_path, "mine.py", MINIMAL))
    assert plugin.call("pretrain", backbone="b", config="c", engine="e") == ("b", "c")


def test_a_hook_that_is_missing_is_an_error_and_has_says_so(tmp_path):
    plugin = manager.load(write(tmp_path, "mine.py", MINIMAL))
    assert plugin.has("describe")
    assert not plugin.has("generate")
    with pytest.raises(manager.PluginError, match="'mine' does not implement the hook 'generate'"):
        plugin.call("generate", model=None, num_images=1, labels=None, sampling=None)


def test_an_exception_of_a_hook_passes_unchanged(tmp_path):
    text = MINIMAL.replace('return "a card"', "raise ZeroDivisionError('mine')")
    with pytest.raises(ZeroDivisionError, match="mine"):
        manager.load(write(tmp_path, "mine.py", text)).call("describe")


def test_two_plugins_do_not_hear_each_other(tmp_path):
    first = manager.load(write(tmp_path, "first.py", MINIMAL))
    second = manager.load(write(tmp_path, "second.py", MINIMAL.replace("a card", "another")))
    assert (first.call("describe"), second.call("describe")) == ("a card", "another")


def test_a_file_is_local_and_its_name_is_its_stem(tmp_path):
    path = write(tmp_path, "mine.py", MINIMAL)
    plugin = manager.load(path)
    assert (plugin.name, plugin.local, plugin.file) == ("mine", True, Path(path))
    assert plugin.sha256 == hashlib.sha256(MINIMAL.encode()).hexdigest()


def test_an_edited_file_runs_as_it_is_hashed(tmp_path):
    path = write(tmp_path, "mine.py", MINIMAL)
    manager.load(path)
    write(tmp_path, "mine.py", MINIMAL.replace("a card", "b card"))  # same size, same second
    again = manager.load(path)
    assert again.call("describe") == "b card"
    assert again.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert not list(tmp_path.rglob("*.pyc"))


def test_dataclasses_with_postponed_annotations_work_in_a_file(tmp_path):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Config:\n    a: int = 1\n" + MINIMAL.split('"""\n', 1)[1]
    ).replace('"a card"', "Config()")
    assert manager.load(write(tmp_path, "mine.py", text)).call("describe").a == 1


def test_the_hosts_future_imports_do_not_leak_into_a_file(tmp_path):
    text = MINIMAL.replace('return "a card"', "return f.__annotations__['x']")
    text += "\ndef f(x: int): ...\n"
    assert manager.load(write(tmp_path, "mine.py", text)).call("describe") is int


@pytest.mark.parametrize("stem", ["Mine", "my-method", "1st", "all", "raw_pixels"])
def test_a_file_with_no_method_name_says_rename(tmp_path, stem):
    with pytest.raises(UserError, match="rename the file"):
        manager.load(write(tmp_path, f"{stem}.py", MINIMAL))


def test_a_file_with_an_installed_name_says_rename(tmp_path):
    taken = next(iter(manager.installed()))
    with pytest.raises(UserError, match=f"{taken}.*pretrain-bench.*rename the file"):
        manager.load(write(tmp_path, f"{taken}.py", MINIMAL))


@pytest.mark.parametrize("request_", ["./nosuch.py", "nosuch.py", "folder/", "./mine", "tests"])
def test_a_missing_file_or_name_is_one_line(request_):
    with pytest.raises(UserError) as caught:
        manager.load(request_)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest_installed(site):
    install(site, "host-test-one", {"host_one": "host_test_one"})
    with pytest.raises(UnknownName, match="did you mean host_one"):
        manager.load("host_onne")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import no_such_module_here", r"line 2\): ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", r"line 2\): SystemExit: 3"),
        ("raise GeneratorExit", r"line 2\): GeneratorExit"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("raise ValueError('x' * 5000)", "ValueError: xxx"),
        ("def broken(:", "SyntaxError"),
        ("\0", "SyntaxError|ValueError"),
    ],
)
def test_an_import_that_fails_is_one_line_with_its_cause(tmp_path, body, message):
    path = write(tmp_path, "mine.py", f"import bench\n{body}\n")
    with pytest.raises(manager.PluginError, match=message) as caught:
        manager.load(path)
    text = str(caught.value)
    assert text.startswith("method 'mine' cannot be imported")
    assert "\n" not in text
    assert len(text) < 500
    assert "bench_local_mine" not in sys.modules


def test_an_installed_plugin_that_exits_on_import_is_an_error_too(site):
    install(site, "host-test-one", {"host_one": "host_test_one"})
    write(site, "host_test_one.py", "import sys\nsys.exit()")
    with pytest.raises(manager.PluginError, match=r"\(host_test_one.py, line 2\): SystemExit$"):
        manager.load("host_one")


def test_an_entry_point_without_a_module_is_an_error(site):
    install(site, "host-test-one", {"host_one": "host_test_missing.part"})
    assert manager.installed()["host_one"].file is None
    with pytest.raises(manager.PluginError, match="ModuleNotFoundError"):
        manager.load("host_one")


def test_ctrl_c_during_an_import_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        manager.load(write(tmp_path, "mine.py", "raise KeyboardInterrupt"))


def test_a_misspelt_hook_is_named_with_the_nearest(tmp_path):
    text = MINIMAL.replace("def pretrain", "def pretrian")
    with pytest.raises(
        manager.PluginError, match="unknown hook 'pretrian'; did you mean 'pretrain'"
    ):
        manager.load(write(tmp_path, "mine.py", text))


def test_an_argument_that_no_hook_has_is_named(tmp_path):
    text = MINIMAL.replace("(backbone, config)", "(backbone, cfg)", 1)
    with pytest.raises(manager.PluginError, match="'cfg'") as caught:
        manager.load(write(tmp_path, "mine.py", text))
    assert "\n" not in str(caught.value)


def test_a_default_value_in_a_hook_is_refused(tmp_path):
    text = MINIMAL.replace("(backbone, config)", "(backbone, config=None)", 1)
    with pytest.raises(manager.PluginError, match="config a default value"):
        manager.load(write(tmp_path, "mine.py", text))


def test_a_module_without_hooks_is_refused(tmp_path):
    with pytest.raises(manager.PluginError, match="implements no hook"):
        manager.load(write(tmp_path, "mine.py", "def describe():\n    return 1\n"))


def test_select_keeps_order_and_takes_names_and_files(site, tmp_path):
    install(site, "host-test-one", {"host_one": "host_test_one", "host_two": "host_test_two"})
    path = write(tmp_path, "mine.py", MINIMAL)
    assert manager.select(f"host_two, {path},host_one") == ["host_two", path, "host_one"]
    assert manager.method_name(path) == "mine"


def test_select_makes_paths_absolute(tmp_path, monkeypatch):
    path = write(tmp_path, "mine.py", MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert manager.select("./mine.py") == [path]
    assert manager.select("mine.py") == [path]


def test_select_all_takes_everything_even_what_cannot_load(site):
    install(site, "host-test-one", {"host_one": "host_test_one"})
    install(site, "host-test-two", {"host_one": "host_test_two"})
    assert manager.select("all") == list(manager.installed())
    assert "host_one" in manager.select("all")


@pytest.mark.parametrize("text", ["", "host_one,", "host_one,,host_one", "host_one,host_one"])
def test_select_refuses_empty_and_repeated_names(site, text):
    install(site, "host-test-one", {"host_one": "host_test_one"})
    with pytest.raises(UserError, match="--plugins"):
        manager.select(text)
    with pytest.raises(UserError, match="--observers"):
        manager.select(text, option="--observers")


def test_summary_reads_title_and_family_without_running(tmp_path):
    path = Path(write(tmp_path, "mine.py", MINIMAL + "\nraise SystemExit\n"))
    assert manager.summary(path) == ("Mine: a method that returns what it is given", "other")


@pytest.mark.parametrize("text", ["", "x = 1\n", '"""Only a title."""\n', "def (:"])
def test_summary_of_a_file_that_lacks_lines_is_empty_there(tmp_path, text):
    title, family = manager.summary(Path(write(tmp_path, "mine.py", text)))
    assert title in ("", "Only a title")
    assert family == ""


def test_summary_of_no_file_is_empty():
    assert manager.summary(None) == ("", "")


def test_the_source_of_a_nested_module_is_found_without_importing_its_package(site):
    package = site / "host_test_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "inner" / "__init__.py").write_text("raise SystemExit")
    (package / "method.py").write_text(MINIMAL)

    assert manager.source_file("host_test_package.method") == package / "method.py"
    assert manager.source_file("host_test_package.inner") == package / "inner" / "__init__.py"
    assert manager.source_file("host_test_package.nothing") is None
    assert manager.source_file("host_test_nowhere.method") is None


@pytest.mark.parametrize(
    "line",
    [
        "from . import common",
        "from .common import loss",
        "import host_family.common",
        "from host_family import common",
        "from host_family.common import loss",
        "def late():\n    from .common import loss",
        "from .deep.other import thing",  # which imports it
    ],
)
def test_the_hash_of_a_plugin_changes_with_what_it_imports_of_its_package(site, line):
    package = site / "host_family"
    (package / "deep").mkdir(parents=True)
    for folder in (package, package / "deep"):
        (folder / "__init__.py").write_text("")
    (package / "deep" / "other.py").write_text("from ..common import loss as thing\n")
    (package / "common.py").write_text("loss = 1\n")
    (package / "unused.py").write_text("a = 1\n")
    plugin = package / "a.py"
    plugin.write_text(f"{MINIMAL}\n\n{line}\n")
    before = manager.source_sha256(plugin)
    (package / "unused.py").write_text("a = 2\n")
    (package / "__init__.py").write_text("# shared by all\n")
    assert manager.source_sha256(plugin) == before
    (package / "common.py").write_text("loss = 2\n")
    assert manager.source_sha256(plugin) != before


def test_the_hash_of_a_plugin_that_imports_nothing_of_its_package_is_the_files(site):
    package = site / "host_plain"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(MINIMAL)
    assert manager.source_sha256(package / "a.py") == file_sha256(package / "a.py")


def test_what_a_package_imports_from_around_it_counts(site):
    family = site / "host_around"
    (family / "method").mkdir(parents=True)
    (family / "__init__.py").write_text("")
    init = family / "method" / "__init__.py"
    init.write_text(f"{MINIMAL}\nfrom ..common import a\n")
    (family / "common.py").write_text("a = 1\n")
    before = manager.source_sha256(init)
    (family / "common.py").write_text("a = 2\n")
    assert manager.source_sha256(init) != before


def test_the_hash_of_a_package_changes_with_any_of_its_files(site):
    package = site / "host_test_package"
    package.mkdir()
    init = package / "__init__.py"
    init.write_text(MINIMAL)
    (package / "part.py").write_text("a = 1\n")
    before = manager.source_sha256(init)
    (package / "part.py").write_text("a = 2\n")
    assert manager.source_sha256(init) != before


def test_the_host_imports_without_torch():
    code = "import bench.manager, bench.cards, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
