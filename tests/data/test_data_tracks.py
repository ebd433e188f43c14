"""The tracks for a GPU plan and run, with limits, on stand-ins laid out as the archives are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_data_archives import write_cifar10, write_stl10
from test_data_imagenet import photograph
from test_data_imagenet import write as write_imagenet

from bench.data import imagenet

PLANS = """
import json, sys
from bench import session
found = {}
for track, size in json.loads(sys.argv[1]).items():
    overrides = {"batch_size": 4, "epochs": 1, "precision": "fp32"} | size  # or all are timed
    specs = session.prepare("moco_v2,rotnet", track=track, overrides=overrides, seeds="1").specs
    found[track] = {spec.spec["method"]: spec.spec for spec in specs}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which every archive is a tiny one."""
    root = tmp_path_factory.mktemp("archives")
    for name, write in (("cifar", write_cifar10), ("stl", write_stl10)):
        (root / name).mkdir()
        write(root / name)
    write_imagenet(root / "imagenet")
    for split, count in (("train", 3), ("val", 1)):
        for wordnet_id in imagenet.IMAGENETTE_CLASSES:
            folder = root / "imagenette" / split / wordnet_id
            folder.mkdir(parents=True)
            for number in range(count):
                larger = photograph().resize((240, 180), Image.Resampling.BICUBIC)
                larger.save(folder / f"{wordnet_id}_{number}.JPEG", "JPEG")
    return os.environ | {
        "BENCH_CIFAR10": str(root / "cifar"),
        "BENCH_STL10": str(root / "stl"),
        "BENCH_IMAGENET": str(root / "imagenet"),
        "BENCH_IMAGENETTE": str(root / "imagenette"),
        "BENCH_CACHE": str(root / "cache"),
    }


def test_every_gpu_track_plans(standins: dict[str, str], tmp_path: Path) -> None:
    asked = {
        "cifar10": {},
        "cifar10-parity": {},
        "stl10": {},
        "imagenette": {},
        "imagenet-parity": {},
    }
    run = subprocess.run(
        [sys.executable, "-c", PLANS, json.dumps(asked)],
        env=standins,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    plans = json.loads(run.stdout)
    assert set(plans) == set(asked)
    # The papers' recipes: the authors' CIFAR-10 demo, and MoCo v2's for ImageNet.
    assert plans["cifar10"]["moco_v2"]["config"]["momentum"] == 0.99
    assert plans["imagenet-parity"]["moco_v2"]["config"]["queue_size"] == 65536
    assert plans["imagenet-parity"]["rotnet"]["config"]["milestones"] == [0.3, 0.6, 0.9]
    assert plans["imagenette"]["rotnet"]["data"]["store_size"] == 160
    # Parity trains on validation images too: 50 instead of 40, 12 steps of 4 instead of 10.
    assert plans["cifar10"]["rotnet"]["budget"]["steps"] == 10
    assert plans["cifar10-parity"]["rotnet"]["budget"]["steps"] == 12


def test_a_gpu_track_runs_with_limits(standins: dict[str, str], tmp_path: Path) -> None:
    command = ["run", "--track", "cifar10-parity", "--plugins", "rotnet", "--limit", "16"]
    command += ["--epochs", "1", "--batch-size", "8", "--backbone", "test_resnet", "--seeds", "1"]
    command += ["--precision", "fp32"]
    run = subprocess.run(
        [sys.executable, "-m", "bench", *command, "--device", "cpu", "--jobs", "2", "--json"],
        env=standins,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(run.stdout)
    assert [run["status"] for run in said["runs"]] == ["done"] * 3
    assert "linear" in Path(tmp_path / said["page"]).read_text()
