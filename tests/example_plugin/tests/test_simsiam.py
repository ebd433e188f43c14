"""SimSiam keeps bench's contract."""

from pathlib import Path

from bench.testing import parametrize_plugin_checks


@parametrize_plugin_checks([Path(__file__).parents[1] / "bench_simsiam.py"])
def test_simsiam_keeps_the_contract(plugin, check):
    check(plugin)
