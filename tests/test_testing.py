"""`bench.testing`: one item of pytest for each check of a plugin, its outcome that of the check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import checks
from bench.errors import UnknownName, UserError
from bench.testing import parametrize_plugin_checks

# What the checks find is given here; tests/plugins/test_conformance.py makes them for real.
FOUND = """
from bench import checks

CALLS = []
BAD = {"loss": ("failed", "it rose"), "ranks": ("skipped", "n/a: one process only")}


def run_checks(name, settings):
    CALLS.append((name.rpartition("/")[2], settings))
    return [
        checks.Check(check, rule.reason, *BAD.get(check, ("passed", "")))
        for check, rule in checks.RULES.items()
    ]


checks.run_checks = run_checks
"""
TESTS = """
from conftest import CALLS

from bench.testing import parametrize_plugin_checks


@parametrize_plugin_checks(["mine.py"])
def test_plain(plugin, check):
    check(plugin)


@parametrize_plugin_checks(["mine.py"], expected_failures={"loss": "it plays a game"})
def test_expected(plugin, check):
    check(plugin)


@parametrize_plugin_checks(["mine.py"], expected_failures={"seed": "old", "ranks": "one process"})
def test_outdated(plugin, check):
    check(plugin)


@parametrize_plugin_checks(["mine.py"], expected_failures={"loss": "it plays a game"})
def test_broken(plugin, check):
    raise RuntimeError("the test itself is wrong")


def test_the_plugin_was_checked_once():
    assert CALLS == [("mine.py", {})]


@parametrize_plugin_checks(["mine.py"], settings={"mine": {"width": "4"}})
def test_variant(plugin, check):
    check(plugin)


def test_the_variant_was_checked_apart():
    assert CALLS == [("mine.py", {}), ("mine.py", {"width": "4"})]
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """Run a third party's tests; return {item: outcome} and all that pytest printed."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "mine.py").write_text("")
    (folder / "conftest.py").write_text(FOUND)
    (folder / "test_mine.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "-rsxX", "test_mine.py"],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.findall(r"^test_mine\.py::(\S+) ([A-Z]+)", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return dict(found), done.stdout


def test_each_check_is_an_item_with_a_readable_name(ended: tuple[dict[str, str], str]) -> None:
    outcomes, _ = ended
    plain = [item for item in outcomes if item.startswith("test_plain")]
    assert plain == [f"test_plain[mine-{check}]" for check in checks.RULES]


def test_outcomes_are_those_of_the_checks(ended: tuple[dict[str, str], str]) -> None:
    outcomes, printed = ended
    bad = {"loss": "FAILED", "ranks": "SKIPPED"}
    for check in checks.RULES:
        assert outcomes[f"test_plain[mine-{check}]"] == bad.get(check, "PASSED")
    assert f"{checks.RULES['loss'].reason}: it rose" in printed
    assert "n/a: one process only" in printed


def test_expected_failures_are_strict(ended: tuple[dict[str, str], str]) -> None:
    outcomes, printed = ended
    assert outcomes["test_expected[mine-loss]"] == "XFAIL"
    assert "it plays a game" in printed
    assert outcomes["test_outdated[mine-seed]"] == "FAILED"
    assert "[XPASS(strict)] old" in printed
    assert outcomes["test_outdated[mine-ranks]"] == "SKIPPED"


def test_a_broken_test_is_no_expected_failure(ended: tuple[dict[str, str], str]) -> None:
    assert ended[0]["test_broken[mine-loss]"] == "FAILED"


def test_the_items_of_a_plugin_share_their_runs(ended: tuple[dict[str, str], str]) -> None:
    assert ended[0]["test_the_plugin_was_checked_once"] == "PASSED"


def test_a_variant_has_runs_of_its_own(ended: tuple[dict[str, str], str]) -> None:
    assert ended[0]["test_the_variant_was_checked_apart"] == "PASSED"
    with pytest.raises(UnknownName, match="no method with settings 'gan'; known: rotnet"):
        parametrize_plugin_checks(["rotnet"], settings={"gan": {"width": "4"}})


@pytest.mark.parametrize(
    ("plugins", "expected", "error", "message"),
    [
        ("rotnet", {}, UserError, "expected a list"),
        ([], {}, UserError, "expected a list"),
        (["rotnets"], {}, UnknownName, "no method 'rotnets'; did you mean rotnet"),
        (["no/such.py"], {}, UserError, "no plugin file 'no/such.py'"),
        (["rotnet"], {"resumes": "why"}, UnknownName, "no check 'resumes'; did you mean resume"),
        (["rotnet"], {"resume": " "}, UserError, "'resume' is expected to fail without a reason"),
    ],
)
def test_bad_requests_are_refused_at_once(
    plugins: list[str], expected: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        parametrize_plugin_checks(plugins, expected_failures=expected)


def test_pytest_is_imported_nowhere_else() -> None:
    imports = re.compile(r"^\s*(import|from) _?pytest", re.MULTILINE)
    package = Path(checks.__file__).parent
    assert [path.name for path in package.rglob("*.py") if imports.search(path.read_text())] == [
        "testing.py"
    ]
