"""The command line: quick, one line per error, exit statuses, and a run from end to end."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_results import board, track

from bench import cli, display, inventory, manager
from bench.page_files import write_track
from bench.results import write

HEAVY = ("torch", "torchvision", "timm", "pandas", "sklearn", "pydantic", "numpy", "rich")
COMMANDS = {
    "check",
    "clean",
    "cost",
    "doctor",
    "estimate",
    "eval",
    "export",
    "info",
    "leaderboard",
    "list",
    "new-plugin",
    "plan",
    "publish",
    "reproduce",
    "run",
    "study",
    "track",
    "tune",
    "worker",
}

GOOD = '''"""Mine: features that agree for an image and its mirror image.

Family: contrastive
"""
from dataclasses import dataclass

from torch import nn

import bench


@dataclass(frozen=True)
class Config:
    lr: float = 0.01


class Mirror(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return (self.backbone(images) - self.backbone(images.flip(-1))).square().mean()


@bench.hookimpl
def describe():
    return bench.MethodCard(
        "Mine", "https://example.org", "contrastive", Config(), search={"lr": ("choice", 0.01, 0.1)}
    )


@bench.hookimpl
def pretrain(backbone, config, engine):
    return engine.fit(Mirror(backbone), lr=config.lr)
'''


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Return the exit status and what a command wrote to stdout and stderr."""
    status = cli.main(args)
    written = capsys.readouterr()
    return status, written.out, written.err


def bench(*args: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    """Return the paths of plugin files that work, and fail in three places."""
    texts = {
        "mine": GOOD,
        "raises": GOOD.replace("return engine.fit", "raise ZeroDivisionError('on purpose')\n    #"),
        "broken": "import no_such_module_here\n",
        "cardless": GOOD.replace('"contrastive", Config()', '"contrastve", Config()'),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    return {name: str(tmp_path / f"{name}.py") for name in texts}


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """Return a data set of 80 + 30 images in two classes, bright above or below."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, size in (("train", 80), ("test", 30)):
        labels = np.arange(size) % 2
        images = rng.integers(0, 60, (size, 16, 16), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[8 * label : 8 * label + 8] += 120
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    np.savez(tmp_path / "halves.npz", **arrays)
    return f"npz:{tmp_path / 'halves.npz'}"


@pytest.mark.parametrize("args", [["--help"], ["list"], ["run", "--help"], ["list", "--json"]])
def test_light_commands_import_nothing_heavy(args):
    code = (
        f"import sys, bench.cli; status = bench.cli.main({args!r}); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_importing_the_package_has_no_side_effect():
    code = (
        "import sys, threading; sys.addaudithook(lambda e, a: e.startswith('socket.') and "
        "sys.exit(e)); import bench; sys.exit(threading.active_count() - 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_names_every_command(capsys):
    status, out, _ = call(capsys, "--help")
    assert status == 0
    shown = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert shown == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(capsys, command):
    status, out, err = call(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: bench {command} ")


def test_run_has_the_options_of_the_contract(capsys):
    wanted = "plugins track dataset backbone epochs batch-size limit seeds set precision threads"
    wanted += " processes jobs runs-dir results-dir timeout stall force stale dev json"
    _, out, _ = call(capsys, "run", "--help")
    offered = {word.strip(",") for word in out.split() if word.startswith("--")}
    assert {f"--{option}" for option in wanted.split(" ")} <= offered


def test_no_command_shows_help_and_is_a_usage_error(capsys):
    status, out, _ = call(capsys)
    assert status == 2
    assert "Commands:" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("rum", "no command 'rum'; did you mean run?"),
        ("run --plugin x", "Did you mean one of: '--plugins'"),
        ("run", "Missing option '--plugins'"),
        ("run --plugins x --epochs 0", "'--epochs': 0 is not in the range"),
        ("run --plugins x --epochs two", "'two' is not a valid integer"),
        ("run --plugins x --timeout 0", "'--timeout'"),
        ("run --plugins x --precision fp8", "'fp8' is not one of 'auto', 'fp32', 'bf16'"),
        ("run --plugins x --device cdua", "no device 'cdua'; did you mean cuda"),
        ("run --plugins no_such_method", "no method 'no_such_method'"),
        ("run --plugins {method},{method}", "names {method} twice; name each method once"),
        ("run --plugins {method}, --seeds 1", "has an empty name"),
        ("run --plugins ./nowhere.py", "no plugin file './nowhere.py'"),
        ("run --plugins {method} --track digit", "no track 'digit'; did you mean digits"),
        ("run --plugins {method} --track ./none.toml", "'none.toml': No such file"),
        ("run --plugins {method} --seeds 1,1", "names a seed twice"),
        ("run --plugins {method} --set lr=1", "expected METHOD.FIELD=VALUE"),
        ("run --plugins {method} --set other.lr=1", "no method among the plugins 'other'"),
        ("run --plugins {method} --batch-size 1", "options: batch_size"),
        ("info no_such_method", "no method 'no_such_method'"),
        ("worker {tmp}", "has no run.json"),
        ("eval", "expected a RUN, or --weights with"),
        ("eval --evaluations kn", "no evaluation 'kn'; did you mean knn"),
        ("eval some-run --backbone resnet18", "--backbone is for checkpoints from elsewhere"),
        ("eval --backbone-args [1]", "expected a JSON object"),
        ("leaderboard --leaderboards-dir {tmp}", "no published results in {tmp}"),
        ("publish --runs-dir {tmp}", "no results of any track"),
        ("check no_such_method", "no method 'no_such_method'"),
        ("check {method} --only no_such_check", "no check 'no_such_check'"),
        ("check {method} --expect loss", "--expect 'loss': expected CHECK=WHY"),
        ("list extra", "unexpected extra argument"),
        ("plan --plugins {method} --runs-dir {file}", "is a file"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, tmp_path, args, message):
    method = next(iter(manager.installed()))
    (tmp_path / "file").write_text("")
    known = {"method": method, "tmp": tmp_path, "file": tmp_path / "file"}

    status, out, err = call(capsys, *args.format(**known).split())

    assert status == 2
    assert out == ""
    assert message.format(**known) in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_ctrl_c_is_130_without_a_traceback(capsys, monkeypatch):
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inventory, "methods", interrupted)
    status, _, err = call(capsys, "list")
    assert status == 130
    assert "Traceback" not in err


def test_an_error_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    def defect(**_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(inventory, "methods", defect)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["list"])


def test_a_folder_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/where")

    monkeypatch.setattr(inventory, "methods", refused)
    assert call(capsys, "list") == (2, "", "Error: /some/where: Permission denied\n")


@pytest.mark.parametrize("where", [None, "/data/images.npy"])
def test_a_full_disk_is_one_line(capsys, monkeypatch, where):
    def fails(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", where)

    monkeypatch.setattr(inventory, "methods", fails)
    status, shown, said = call(capsys, "list")
    assert (status, shown, said.count("\n")) == (2, "", 1)
    assert said.startswith(
        f"Error: no space is left on the disk{f' for {where}' if where else ''};"
    )


def test_a_reader_that_stops_reading_is_no_error():
    command = [sys.executable, "-m", "bench", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # type: ignore[union-attr]
        assert process.wait() == 0
        assert process.stderr.read() == b""  # type: ignore[union-attr]


def test_list_shows_names_titles_and_versions_from_metadata(capsys):
    status, out, _ = call(capsys, "list", "--json")
    assert status == 0
    listed = {method["name"]: method for method in json.loads(out)}
    assert list(listed) == list(manager.installed())
    _, text, _ = call(capsys, "list")
    assert all(name in text for name in listed)
    assert all(method["title"] in text for method in listed.values())


def test_list_load_and_doctor_give_a_plugin_that_fails_one_line_and_stop_no_other(
    capsys, tmp_path, monkeypatch
):
    info = tmp_path / "site" / "cli_test-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cli-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[bench]\n"
        "cli_broken = cli_test_broken\n"
        "cli_exits = cli_test_exits\n"
        "cli_good = cli_test_good\n"
        "cli_watches = cli_test_watches\n"
    )
    (info.parent / "cli_test_broken.py").write_text("1 / 0\n")
    (info.parent / "cli_test_exits.py").write_text("import os\nos._exit(3)\n")
    (info.parent / "cli_test_good.py").write_text(GOOD)
    (info.parent / "cli_test_watches.py").write_text(
        "from bench import hookimpl\n\n\n@hookimpl\ndef run_finished(spec, result): ...\n"
    )
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.setattr(
        manager, "installed", lambda kept=manager.installed: _only(kept(), "cli_test")
    )

    status, listed, _ = call(capsys, "list", "--load")
    assert status == 0
    status, document, _ = call(
        capsys, "doctor", "--json", "--runs-dir", str(tmp_path), "--leaderboards-dir", str(tmp_path)
    )
    assert status == 1  # so that a script sees that something is wrong
    report = json.loads(document)
    for text in (listed, display.report(report)):
        (line,) = [line for line in text.splitlines() if "cannot be imported" in line]
        assert "method 'cli_broken'" in line
        assert "ZeroDivisionError: division by zero" in line
        assert [line for line in text.splitlines() if "cli_exits" in line and "with 3" in line]
        assert "cli_good" in text
    assert {method["name"]: bool(method["problem"]) for method in report["methods"]} == {
        "cli_watches": False,  # an observer, which is no method
        "cli_broken": True,
        "cli_exits": True,
        "cli_good": False,
    }
    assert len(report["problems"]) == 2
    assert report["packages"]["torch"]
    assert report["data"]["digits"] == "available"

    for plugins, refused in (("all", False), ("cli_good,cli_watches", True)):
        where = ("--seeds", "1", "--runs-dir", str(tmp_path))
        status, planned, said = call(capsys, "plan", "--plugins", plugins, *where)
        assert (status, "cli_good-s0" in planned) == (0, True)
        assert ("cli_watches is an observer" in said) == refused


def _only(found: dict[str, manager.Installed], module: str) -> dict[str, manager.Installed]:
    return {name: entry for name, entry in found.items() if entry.module.startswith(module)}


def test_info_shows_the_card(capsys, plugins):
    status, out, _ = call(capsys, "info", plugins["mine"])
    assert status == 0
    assert out.startswith("Mine (mine)\n")
    assert "https://example.org" in out
    assert "local file" in out
    row = next(line for line in out.splitlines() if line.startswith("lr "))
    assert row.split() == ["lr", "float", "0.01", "choice", "0.01", "0.1"]
    card = json.loads(call(capsys, "info", plugins["mine"], "--json")[1])
    assert card["sha256"] == manager.source_sha256(Path(plugins["mine"]))


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "ModuleNotFoundError"), ("cardless", "family is 'contrastve'")]
)
def test_info_of_a_plugin_that_does_not_load_is_one_line_and_exit_3(capsys, plugins, name, message):
    status, out, err = call(capsys, "info", plugins[name])
    assert (status, out) == (3, "")
    assert message in err
    assert err.count("\n") == 1


def test_plan_shows_the_runs_and_trains_nothing(capsys, plugins, archive, tmp_path):
    runs = tmp_path / "runs"
    args = ["plan", "--plugins", plugins["mine"], "--dataset", archive, "--seeds", "2,5"]
    args += ["--epochs", "3", "--batch-size", "16", "--set", "mine.lr=0.5", "--runs-dir", str(runs)]
    status, out, _ = call(capsys, *args)
    assert status == 0
    assert "lr=0.5" in out
    document = json.loads(call(capsys, *args, "--json")[1])
    mine = [run for run in document if run["spec"]["method"] == "mine"]
    assert [run["spec"]["seed"] for run in mine] == [2, 5]
    assert [run["spec"]["budget"] for run in mine] == [{"steps": 3 * (72 // 16)}] * 2
    assert mine[0]["spec"]["config"] == {"lr": 0.5}
    assert mine[0]["spec"]["data"]["name"] == "npz:halves.npz"
    assert all(run["track"].startswith("digits~") for run in document)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--set mine.lrr=1", "no field of mine 'lrr'; did you mean lr"),
        ("--set mine.lr=fast", "mine.lr=fast: "),
        ("--limit 20 --batch-size 32", "batch size 32 is larger than the 20 training images"),
        ("--batch-size 16 --processes 3", "cannot be shared by 3 processes"),
        ("--dataset npz:nowhere.npz", "nowhere.npz"),
    ],
)
def test_what_only_cards_and_data_can_tell_is_refused_in_one_line(
    capsys, plugins, archive, tmp_path, extra, message
):
    args = ["plan", "--plugins", plugins["mine"], "--dataset", archive, *extra.split()]
    status, _, err = call(capsys, *args, "--runs-dir", str(tmp_path / "runs"))
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_when_no_requested_plugin_loads_the_exit_status_is_3(capsys, plugins, archive, tmp_path):
    both = f"{plugins['broken']},{plugins['cardless']}"
    args = ["run", "--plugins", both, "--dataset", archive, "--batch-size", "16"]
    status, out, err = call(capsys, *args, "--runs-dir", str(tmp_path / "runs"))
    assert (status, out) == (3, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["Error", "Error"]


def test_a_run_goes_from_plugins_to_a_board_and_is_not_repeated(capsys, plugins, archive, tmp_path):
    runs = tmp_path / "runs"
    args = ["--dataset", archive, "--image-size", "16", "--epochs", "1", "--batch-size", "16"]
    args += ["--seeds", "1", "--runs-dir", str(runs), "--leaderboards-dir", str(tmp_path)]
    good = ["run", "--plugins", plugins["mine"], *args]

    status, out, err = call(capsys, *good)

    assert (status, err) == (0, "")
    assert "mine seed 0: " in out
    page = Path(out.splitlines()[-1].removeprefix("board: "))
    assert "Mine" in page.read_text()
    assert "Raw pixels" in page.read_text()
    again = json.loads(call(capsys, *good, "--json")[1])
    assert again["status"] == 0
    assert {run["status"] for run in again["runs"]} == {"done"}
    _, planned, _ = call(capsys, "plan", "--plugins", plugins["mine"], *args)
    assert "to do" not in planned
    assert "done" in planned

    some = f"{plugins['raises']},{plugins['broken']}"
    status, out, err = call(capsys, "run", "--plugins", some, *args)
    assert status == 1
    assert "raises seed 0: failed: ZeroDivisionError: on purpose" in out
    assert "ModuleNotFoundError" in err
    assert "on purpose" in page.read_text()


def test_leaderboard_check_exits_with_4_once_a_page_differs(capsys, tmp_path):
    folder = tmp_path / "runs" / "results" / "clothes"
    write_track(folder, track())
    for result in board():
        write(folder / f"{result.run_id}.json", result)
    boards = str(tmp_path / "boards")

    status, out, _ = call(
        capsys, "publish", "--runs-dir", str(tmp_path / "runs"), "--leaderboards-dir", boards
    )
    assert status == 0
    assert f"{boards}/clothes.md" in out.splitlines()
    assert call(capsys, "leaderboard", "--check", "--leaderboards-dir", boards) == (0, "", "")

    page = tmp_path / "boards" / "clothes.md"
    page.write_text(page.read_text() + "better by hand\n")
    status, _, err = call(capsys, "leaderboard", "--check", "--leaderboards-dir", boards)
    assert status == 4
    assert "clothes.md" in err
    assert call(capsys, "leaderboard", "--leaderboards-dir", boards)[0] == 0
    assert call(capsys, "leaderboard", "--check", "--leaderboards-dir", boards)[0] == 0
