"""A third-party distribution, really installed, stands in a board as an equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parent / "example_plugin"
RUN = """
import sys
from pathlib import Path

from bench import ENGINE, manager, plan, page_files, publish, runner
from bench.probe import probe


def main(folder: Path) -> int:
    track = plan.load_track(str(folder / "tiny.toml"))
    answer = probe(
        ["simsiam"],
        recipe=track.recipe,
        overrides={},
        data={"name": track.data["name"], "image_size": track.image_size},
        seeds=[0],
        runs_dir=folder,
    )
    methods = {plan.RAW_PIXELS: plan.RAW_PIXELS_METHOD} | answer["methods"]
    specs = plan.plan(track, methods, answer["data"], seeds=[0])
    options = runner.Options(folder / "runs", jobs=2, timeout=100, leaderboards_dir=folder)
    status = runner.carry_out(
        specs, options, finished=lambda *ended: None, watching=lambda *seen: None
    )
    page = {"id": specs[0].track, "title": track.title}
    page_files.write_track(options.results / specs[0].track, page)
    publish.render_all(options.results, folder / "boards", current={}, engine=ENGINE)
    print(manager.find("simsiam").file)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
"""
TRACK = """
title = "Tiny"
description = "A track for a test."
seeds = [0]
recipe = "small"
batch_size = 16
floors = ["raw_pixels"]
data = {{ name = "npz:{archive}", image_size = 16 }}
backbone = {{ name = "test_resnet", stem = {{ kernel = 3, stride = 2, max_pool = false }} }}
budget = {{ epochs = 2 }}
evaluations = {{ knn = {{}} }}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example into a folder of its own, as pip does, without network."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    for path in EXAMPLE.iterdir():  # setuptools leaves its build beside the sources
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def board(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the installed example on a tiny track; return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("work")
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 4
    noise = generator.integers(0, 128, (80, 16, 16, 3))
    images = (noise + 32 * labels[:, None, None, None]).astype(np.uint8)
    parts = {"x_train": images[:60], "y_train": labels[:60]}
    parts |= {"x_test": images[60:], "y_test": labels[60:]}
    np.savez(folder / "tiny.npz", **parts)
    (folder / "tiny.toml").write_text(TRACK.format(archive=folder / "tiny.npz"))
    script = folder / "run.py"
    script.write_text(RUN)
    done = subprocess.run(
        [sys.executable, script, folder],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_it_is_installed_and_not_run_from_here(site: Path, board: tuple[Path, str]) -> None:
    assert Path(board[1].strip()) == site / "bench_simsiam.py"


def test_its_row_stands_in_the_board(board: tuple[Path, str]) -> None:
    (page,) = (path for path in (board[0] / "boards").glob("*.md") if path.name != "README.md")
    lines = page.read_text().splitlines()
    (row,) = (line for line in lines if line.startswith("| ") and "SimSiam" in line)
    assert "2011.10566" in row
    assert "failed" not in row
    assert "| 2 + 0 |" in " ".join(
        row.split()
    )  # encoder passes per image: two views, with gradient
    (floor,) = (line for line in lines if line.startswith("| ") and "Raw pixels" in line)
    assert floor.count("|") == row.count("|")
    assert any("Departs" in line and "predictor" in line for line in lines)


def test_it_is_as_short_as_promised() -> None:
    packaging = (EXAMPLE / "pyproject.toml").read_text().splitlines()
    source = (EXAMPLE / "bench_simsiam.py").read_text().splitlines()
    assert len(packaging) < 10
    assert len(source) < 60
    imported = {
        line.split()[1].split(".")[0] for line in source if line.startswith(("from ", "imp"))
    }
    assert imported == {"bench", "dataclasses", "torch"}
