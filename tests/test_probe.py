"""What is asked of plugins before anything trains: each answers for itself alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import cli, inventory, plan, probe
from bench.errors import UnknownName, UserError

SOUND = """
from dataclasses import dataclass
import bench

@dataclass(frozen=True)
class Config:
    lr: float = 0.01

@dataclass(frozen=True)
class Sampling:
    steps: int = 10

@bench.hookimpl
def describe():
    return bench.MethodCard(
        "Sound", "https://example.org", "other", Config(), departs="nothing", sampling=Sampling()
    )

@bench.hookimpl
def pretrain(backbone, config, engine):
    return engine.fit(backbone, lr=config.lr)
"""
ENDS = "import os\nos._exit(0)\n"
QUICK = ("--seeds", "1", "--limit", "160", "--epochs", "1", "--batch-size", "80")
GENERATION = ("--track", "fashion-mnist-generation", "--samples", "100", "--allow-small")


def write(folder: Path, **sources: str) -> list[str]:
    """Write a plugin file of each source and return their paths."""
    paths = {name: folder / f"{name}.py" for name in sources}
    for name, source in sources.items():
        paths[name].write_text(source)
    return [str(path) for path in paths.values()]


def ask(names: list[str], folder: Path, **asked: Any) -> dict[str, Any]:
    kept = {"recipe": "", "overrides": {}, "data": None, "seeds": [], "runs_dir": folder}
    return probe.probe(names, **(kept | asked))["methods"]


def test_a_plugin_that_ends_the_process_spoils_no_other(tmp_path: Path) -> None:
    names = write(
        tmp_path, ends=ENDS, sound=SOUND, stops="raise KeyboardInterrupt\n", again=ENDS + "1\n"
    )
    found = ask(names, tmp_path)
    ends, sound, stops, again = (found[name]["error"] for name in names)
    assert list(found) == names
    assert sound is None
    assert ends == f"{names[0]}: the process that imports it ended with 0 before it answered"
    assert again == ends.replace("ends.py", "again.py")
    assert stops.endswith("stops.py: the import raised KeyboardInterrupt (stops.py, line 1)")
    assert inventory.describe(names) == ask(names, tmp_path)


def test_a_plugin_that_never_ends_its_import_is_stopped_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PLUGIN_SECONDS", 5.0)
    sound, loops = write(tmp_path, sound=SOUND, loops="while True:\n    pass\n")
    found = ask([loops, sound], tmp_path)
    assert found[sound]["error"] is None
    assert found[loops]["error"].endswith(
        "loops.py: the process that imports it took over 5 s; it was stopped"
    )


def test_a_card_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    broken = SOUND.replace("return bench.MethodCard", "{}['a\\nkey']\n    return bench.MethodCard")
    (name,) = write(tmp_path, broken=broken)
    line = ask([name], tmp_path)[name]["error"]
    assert line == f"{name}: describe raised KeyError: 'a\\nkey' (broken.py, line 15)"


def test_plan_goes_on_without_a_plugin_that_ends_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ends=ENDS, sound=SOUND)
    assert cli.main(["plan", "--plugins", "./ends.py,./sound.py", *QUICK]) == 0
    printed = capsys.readouterr()
    assert "ends.py: the process that imports it ended with 0" in printed.err
    assert printed.err.count("\n") == 1
    assert "sound-s" in printed.out
    assert cli.main(["plan", "--plugins", "./ends.py", *QUICK]) == 3


def test_a_bad_value_of_the_sampling_is_refused_before_anything_trains(tmp_path: Path) -> None:
    (name,) = write(tmp_path, sound=SOUND)
    with pytest.raises(UserError, match="sampling of sound: steps is 'x': Input should be a valid"):
        ask([name], tmp_path, evaluations={"generation": {"sampling": {"steps": "x"}}})
    kept = ask([name], tmp_path, evaluations={"generation": {"sampling": {"other": 1}}})
    assert kept[name]["error"] is None  # one protocol serves methods with other samplers


def test_inception_s_weights_are_fetched_before_plugins_are_asked(tmp_path: Path) -> None:
    """By a process that may write where they go; here there is no way out."""
    pytest.importorskip("torch_fidelity")
    code = (
        "from bench import errors, probe\n"
        "asked = {'generation': {'extractor': 'inception'}}\n"
        "given = {'recipe': '', 'overrides': {}, 'data': None, 'seeds': [], 'runs_dir': '.'}\n"
        "try:\n    probe.probe([], evaluations=asked, **given)\n"
        "except errors.UserError as error:\n    print(error)\n"
    )
    nowhere = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "hub")}
    environment = {k: v for k, v in os.environ.items() if k != "BENCH_INCEPTION"} | nowhere
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("could not download https://github.com/"), done.stderr
    assert "Connection refused" in done.stdout


def test_a_sampling_field_that_no_method_has_is_refused(tmp_path: Path) -> None:
    (name,) = write(tmp_path, sound=SOUND)
    sound = ask([name], tmp_path)[name]
    plain = sound | {"card": sound["card"] | {"sampling_fields": {}}}
    plan.refuse_sampling({"steps": 3}, [plain, sound])
    plan.refuse_sampling(None, [plain])
    plan.refuse_sampling({"steps": 3}, [{"error": "broken"}])
    with pytest.raises(UnknownName, match=r"no sampling field .* 'step'; did you mean steps"):
        plan.refuse_sampling({"step": 3}, [plain, sound, {"error": "broken"}])
    with pytest.raises(UserError, match="--sampling steps: no requested method has"):
        plan.refuse_sampling({"steps": 3}, [plain])
