"""`bench check` finds each breach of the contract, and a sound plugin keeps it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from bench import checks, confine, data, rehearsal
from bench.errors import UnknownName, UserError

SOUND = '''"""Predict the mean colour of an image."""

import json
import numpy
import torch
from dataclasses import dataclass
from pathlib import Path
from torch import nn
from torch.nn.functional import mse_loss

from bench import MethodCard, Unsupported, hookimpl
from bench.distributed import rank
from bench.layers import group_batch_norm


@dataclass(frozen=True)
class Config:
    lr: float = 0.1


@dataclass(frozen=True)
class Sampling:
    level: float = 0.5


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, 3)
        self.register_buffer("clock", torch.zeros(()))
        self.calls = 0

    def forward(self, images):
        self.clock += 1
        self.calls += 1
        loss = mse_loss(self.head(self.backbone(images)), images.mean((2, 3)))
        return loss


@hookimpl
def describe():
    return MethodCard(
        "Mean colour",
        "https://example.org",
        "other",
        Config(),
        departs="nothing",
        sampling=Sampling(),
    )


@hookimpl
def pretrain(backbone, config, engine):
    finished = engine.progress == 1
    model = Model(group_batch_norm(backbone))
    model = engine.fit(model, lr=config.lr)
    return model


@hookimpl
def generate(num_images, sampling):
    return torch.full((num_images, 3, 32, 32), sampling.level)
'''
BREACHES = {
    "card": ('departs="nothing"', 'departs=""', "departs is ''"),
    "loss": ("return loss", "return loss + self.clock", "mean of the first 15 steps"),
    "gradients": (
        "    model = Model",
        "    backbone.conv1.requires_grad_(False)\n    model = Model",
        "no gradient reached conv1.weight",
    ),
    "seed": ("    model = Model", "    torch.seed()\n    model = Model", "one seed left different"),
    "labels": (
        "    model = Model",
        "    data = Path(json.loads((engine.folder / 'run.json').read_text())['dataset'])\n"
        "    labels = numpy.load(Path(__file__).with_name(data.name))['y_train']\n"
        "    torch.manual_seed(int(numpy.arange(len(labels)) @ labels))\n    model = Model",
        "other labels left other bytes",
    ),
    "resume": ("return loss", "return loss * self.calls", "after 6 of 12 steps, it left other"),
    "finished": (
        "    return model\n",
        "    if finished:\n        backbone.conv1.weight.data += 1\n    return model\n",
        "after its last step, it left other bytes",
    ),
    "backbone": (
        "    return model\n",
        "    model.backbone = nn.Sequential(backbone)\n    return model\n",
        "missing conv1.weight",
    ),
    "writes": (
        "    return model\n",
        "    try:\n        Path(__file__).with_name('left.txt').write_text('mine')\n"
        "    except OSError:\n        print('not allowed')\n    return model\n",
        "left.txt",
    ),
    "samples": ("sampling.level)", "2 + sampling.level)", "values from 2.5 to 2.5"),
    "ranks": (
        "    return model\n",
        "    model.head.bias.data += rank()\n    return model\n",
        "different on two processes: head.bias",
    ),
}


def plugin(folder: Path, old: str = "", new: str = "") -> str:
    """Write the sound plugin, one part of it replaced, and return its path."""
    assert old in SOUND
    path = folder / "mean_colour.py"
    path.write_text(SOUND.replace(old, new) if old else SOUND)
    return str(path)


def test_a_sound_plugin_passes_every_check(tmp_path: Path) -> None:
    found = checks.run_checks(plugin(tmp_path))
    assert {check.id: check.status for check in found} == dict.fromkeys(checks.RULES, "passed")


WRITE_IMAGES = rehearsal.write_images


def write_copies(folder: Path, path: Path) -> Path:
    WRITE_IMAGES(path)
    for archive in path.parent.glob("*.npz"):
        shutil.copy(archive, folder)
    return path


@pytest.mark.parametrize("check", BREACHES)
def test_a_breach_is_found_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    old, new, detail = BREACHES[check]
    if check == "labels":  # the breach has copies of the data that no harness can hide
        monkeypatch.setattr(rehearsal, "write_images", partial(write_copies, tmp_path))
    (found,) = checks.run_checks(plugin(tmp_path, old, new), only=[check])
    assert (found.id, found.status) == (check, "failed")
    assert detail in found.detail
    assert "\n" not in found.reason + found.detail


def test_every_check_has_a_breach() -> None:
    assert list(BREACHES) == list(checks.RULES)


def test_two_seeds_with_the_same_bytes_fail(tmp_path: Path) -> None:
    end = "    for t in backbone.state_dict().values():\n        t.zero_()\n    return model\n"
    path = plugin(tmp_path, "    return model\n", end)
    (found,) = checks.run_checks(path, only=["seed"])
    assert (found.status, found.detail) == ("failed", "two seeds left the same bytes")


def test_a_write_elsewhere_does_not_happen(tmp_path: Path) -> None:
    if not confine.landlock_version():
        pytest.skip("this kernel has no Landlock")
    old, new, _ = BREACHES["writes"]
    checks.run_checks(plugin(tmp_path, old, new), only=["writes"])
    assert [path.name for path in tmp_path.iterdir()] == ["mean_colour.py"]


@pytest.mark.parametrize(("old", "new"), [("describe()", "described()"), ("import", "imp@rt")])
def test_an_unreadable_card_fails_every_check(tmp_path: Path, old: str, new: str) -> None:
    path = plugin(tmp_path, old, new)
    found = {check.id: check for check in checks.run_checks(path)}
    assert {check.status for check in found.values()} == {"failed"}
    (alone,) = checks.run_checks(path, only=["loss"])
    assert (alone.status, alone.detail) == ("failed", found["card"].detail)
    assert "mean_colour" in alone.detail


@pytest.mark.parametrize(
    ("raised", "status", "detail"),
    [
        ("Unsupported('no use here')", "skipped", "n/a: no use here"),
        (
            "ValueError('no such thing')",
            "failed",
            "ValueError: no such thing (mean_colour.py, line ",
        ),
        ("ValueError('two\\nlines')", "failed", "ValueError: two lines (mean_colour.py, line "),
    ],
)
def test_what_pretrain_raises_is_said(
    tmp_path: Path, raised: str, status: str, detail: str
) -> None:
    path = plugin(tmp_path, "    model = Model", f"    raise {raised}\n    model = Model")
    found = checks.run_checks(path, only=["backbone", "gradients"])  # one is of an observed run
    assert [check.status for check in found] == [status] * 2
    assert all(detail in check.detail for check in found)


def test_expected_failures_pass_and_are_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = plugin(tmp_path, *BREACHES["backbone"][:2])
    expected = {"backbone": "issue 12"}
    assert checks.main([path], expected_failures=expected, only=["card", "backbone"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mean_colour:"
    assert lines[1].split()[:2] == ["passed", "card"]
    assert lines[2].split()[:2] == ["expected", "backbone"]
    assert "issue 12" in lines[2]
    assert checks.main([path], only=["backbone"]) == 1
    capsys.readouterr()
    assert checks.main([path], expected_failures={"card": "none"}, only=["card"], as_json=True) == 1
    (found,) = json.loads(capsys.readouterr().out)[path]
    assert (found["id"], found["status"]) == ("card", "failed")
    assert "expected" in found["detail"]


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no check 'resumes'; did you mean resume"):
        checks.main([plugin(tmp_path)], only=["resumes"])
    with pytest.raises(UserError, match="'loss' is expected to fail without a reason"):
        checks.main([plugin(tmp_path)], expected_failures={"loss": " "})
    with pytest.raises(UnknownName, match="no method 'mean_color'"):
        checks.main(["mean_color"])
    with pytest.raises(UserError, match="no field of mean_colour 'width'"):
        checks.main([plugin(tmp_path)], settings=["mean_colour.width=4"], only=["card"])
    with pytest.raises(UnknownName, match="no method among the plugins 'mean_color'; did you mean"):
        checks.main([plugin(tmp_path)], settings=["mean_color.lr=4"], only=["card"])


def test_a_setting_reaches_the_plugin(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    refusing = "    if config.lr == 0.5:\n        raise ValueError('half')\n    model = Model"
    path = plugin(tmp_path, "    model = Model", refusing)
    assert checks.main([path], only=["backbone"], settings=["mean_colour.lr=0.5"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "mean_colour (lr=0.5):"
    assert checks.main([path], only=["backbone"], settings=["mean_colour.lr=0.4"]) == 0


def test_the_test_images_cannot_be_read(tmp_path: Path) -> None:
    name = f"npz:{rehearsal.write_images(tmp_path / 'images.npz')}"
    dataset = data.load(name, image_size=32, test=False)
    assert len(data.split(dataset, 0).train) == rehearsal.IMAGES
    with pytest.raises(UserError, match="x_test"):
        data.load(name, image_size=32, test=True)
