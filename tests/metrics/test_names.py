"""FID is Inception and 50,000 samples; everything else says what it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.errors import UserError
from bench.metrics.names import column_name


@pytest.mark.parametrize(
    ("extractor", "metric", "samples", "name"),
    [
        ("inception", "FD", 50_000, "FID"),
        ("inception", "FD", 10_000, "FID@10000"),
        ("inception", "FD", 50_001, "FID@50001"),
        ("inception", "KID", 50_000, "KID(inception)"),
        ("inception", "FD64", 50_000, "FD64(inception)"),
        ("efficientnet_lite0", "FD", 50_000, "FD(efficientnet_lite0)"),
        ("efficientnet_lite0", "FD", 1000, "FD(efficientnet_lite0)"),
        ("encoder-0123456789", "precision", 2000, "precision(encoder-0123456789)"),
    ],
)
def test_only_inception_and_50_000_samples_are_called_fid(
    extractor: str, metric: str, samples: int, name: str
) -> None:
    assert column_name(extractor, metric, samples) == name
    assert column_name(extractor, metric, samples, allow_small=True) == name  # nothing to allow
    assert column_name(extractor, metric, samples, reference=samples) == name


@pytest.mark.parametrize(
    ("samples", "reference", "met"),
    [
        (50, None, "50 samples against 50 images"),
        (999, 999, "999 samples against 999 images"),
        (2000, 1999, "2000 samples against 1999 images"),
        (50_000, 10_000, "50000 samples against 10000 images"),
    ],
)
@pytest.mark.parametrize("extractor", ["inception", "efficientnet_lite0"])
def test_few_or_unequal_samples_are_refused_or_marked(
    extractor: str, samples: int, reference: int | None, met: str
) -> None:
    with pytest.raises(UserError, match=f"of {met} is mostly bias; .*--allow-small"):
        column_name(extractor, "FD", samples, reference=reference)
    name = column_name(extractor, "FD", samples, reference=reference, allow_small=True)
    assert name.endswith(f" [allow-small: {met}]")
    assert name != column_name(extractor, "FD", 2000)


def test_a_board_can_name_columns_without_torch() -> None:
    code = "import sys, bench.metrics.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
