"""For the tests of a plugin's author: the checks of `bench check` as items of pytest.

    from bench.testing import parametrize_plugin_checks

    @parametrize_plugin_checks(["mine"], expected_failures={"loss": "a GAN's loss need not fall"})
    def test_mine_keeps_the_contract(plugin, check):
        check(plugin)

pytest is needed here and nowhere else in `bench`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from bench import checks, manager
from bench.errors import UnknownName, UserError


@dataclass(frozen=True)
class PluginCheck:
    """One check of the contract, to be called with a plugin's installed name or file.

    Attributes:
        id: as in `bench check`; `reason` says in a line why it matters.
        settings: (field, text) each, over the recipe "small".
    """

    id: str
    reason: str
    settings: tuple[tuple[str, str], ...] = ()

    def __call__(self, plugin: str) -> None:
        """Fail the running test if the plugin breaks this check; skip it where it does not apply.

        All checks of a plugin share their small runs, so the first one takes the time of all.
        """
        found = _outcomes(plugin, self.settings)[self.id]
        if found.status == "skipped":
            pytest.skip(found.detail)
        if found.status == "failed":
            pytest.fail(f"{self.reason}: {found.detail}", pytrace=False)


def parametrize_plugin_checks(
    plugins: Sequence[str | os.PathLike[str]],
    *,
    expected_failures: Mapping[str, str] | None = None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
) -> pytest.MarkDecorator:
    """Return a decorator that calls a test with every `(plugin, check)`, an item each.

    An item is named "<method>-<check>", so that `pytest -k mine-resume` picks one.

    Args:
        plugins: installed names or files; a file's path is taken from the current folder.
        expected_failures: {check: why it fails}, for all of `plugins`. Such an item is an
            `xfail`; one that passes nevertheless fails, and one that does not apply is skipped.
        settings: {method: {field: text}}: check a variant, or one small enough for a test.

    Raises:
        UserError: no plugin, an unknown plugin or check, a failure without a reason, or settings
            of a method that is none of `plugins`.
    """
    if isinstance(plugins, str | os.PathLike) or not plugins:
        raise UserError(f"plugins is {plugins!r}; expected a list of names or files")
    expected = dict(expected_failures or {})
    checks.require_known(expected)
    items, variants = [], dict(settings or {})
    methods = [manager.method_name(os.fspath(plugin)) for plugin in plugins]
    for method in variants:
        if method not in methods:
            raise UnknownName("method with settings", method, methods)
    for plugin in map(os.fspath, plugins):
        found = manager.find(plugin)
        request = plugin if isinstance(found, manager.Installed) else str(found)
        method = manager.method_name(request)
        variant = variants.get(method, {})
        for name, rule in checks.RULES.items():
            marks = []
            if name in expected:  # a test that breaks in another way is no expected failure
                failed = pytest.fail.Exception
                marks = [pytest.mark.xfail(reason=expected[name], raises=failed, strict=True)]
            check = PluginCheck(name, rule.reason, tuple(variant.items()))
            label = f"{method}-{name}"
            items.append(pytest.param(request, check, id=label, marks=marks))
    return pytest.mark.parametrize(("plugin", "check"), items)


@cache
def _outcomes(plugin: str, settings: tuple[tuple[str, str], ...]) -> dict[str, checks.Check]:
    return {check.id: check for check in checks.run_checks(plugin, settings=dict(settings))}
