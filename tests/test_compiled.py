"""Compiled networks: which they are, and that they train as the others do, to rounding.

The compiler's front end runs here, which cuts graphs and decides when to compile again; its last
stage, which writes kernels, takes minutes and is replaced by torch's own kernels.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_plugins import moco_v2
from test_chunking import BATCH, SIZE, Small, jitter, small, trainer
from torch import Tensor, nn

from bench import compiled, files, plan
from bench.cli import main
from bench.errors import UserError
from bench.passes import PassCounter


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Graphs run by torch's own kernels; return the options that were asked for."""
    whole, asked = nn.Module.compile, []

    def compile_(module: nn.Module, **options: Any) -> None:
        asked.append(options)
        whole(module, backend="aot_eager", dynamic=options["dynamic"])

    monkeypatch.setattr(nn.Module, "compile", compile_)
    forget()
    return asked


class Net(nn.Module):
    """A stem, whose passes are counted, and the rest."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        layers = [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.stem(images))


def forget() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def train(folder: Path, compiler: compiled.Compiler | None, steps: int) -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    net = Net()
    engine = trainer(folder, steps=steps, compiler=compiler, precision="fp64")
    PassCounter(net, SIZE, engine.meter.passes, traced=compiler is not None)
    config = moco_v2.Config(head_features=8)
    model = moco_v2.MoCo(net, config, queue_size=2 * BATCH, momentum=0.9)
    views = (jitter, jitter)
    engine.fit(model, views=views, after_step=model.after_step, lr=0.1)
    return model, engine.meter.passes


def graphs() -> tuple[int, int]:
    """Return how many graphs were made, and how many operations they have together."""
    found = torch._dynamo.utils.counters["stats"]
    return found["unique_graphs"], found["calls_captured"]


def test_compiled_networks_train_as_others_do(tmp_path: Path, front_end) -> None:
    plain, passes = train(tmp_path / "a", None, 4)
    assert graphs() == (0, 0)
    compiler = compiled.Compiler("cpu")
    found, counted = train(tmp_path / "b", compiler, 4)
    made, operations = graphs()
    assert operations >= 2 * 6 > made  # the layers with gradient and without; a head
    assert counted == passes
    assert min(passes.values()) == 4 * BATCH
    assert {tuple(options.items()) for options in front_end} == {
        (("mode", "default"), ("dynamic", False))
    }
    expected = plain.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for key, value in found.state_dict().items():
        assert torch.allclose(value, expected[key], rtol=1e-8, atol=1e-10), key


def test_nothing_is_compiled_after_the_first_steps(tmp_path: Path, front_end) -> None:
    """A count of passes inside of a graph would be a constant, and each new one another graph."""
    train(tmp_path / "a", compiled.Compiler("cpu"), 2)
    after_two = graphs()
    forget()
    train(tmp_path / "b", compiled.Compiler("cpu"), 8)
    assert graphs() == after_two


def test_parts_are_compiled_and_copies_are_not(tmp_path: Path, front_end) -> None:
    compiler = compiled.Compiler("cpu")
    model = small()
    trainer(tmp_path, compiler=compiler).prepare(model)
    assert model._compiled_call_impl is not None
    assert model.backbone._compiled_call_impl is not None
    assert model.backbone.layers._compiled_call_impl is None  # called by a part that is
    assert copy.deepcopy(model).backbone._compiled_call_impl is None
    compiler.end()
    assert model.backbone._compiled_call_impl is None
    assert model.backbone(torch.randn(2, 3, SIZE, SIZE)).shape == (2, Small.num_features)


def test_a_card_gets_graphs_and_the_start_of_each_step(monkeypatch, tmp_path: Path) -> None:
    """On a processor that says it is a card, with a compiler that compiles nothing."""
    marks, asked = [], []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: asked.append(options))
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: object())
    engine = trainer(tmp_path, steps=3, compiler=compiled.Compiler("cuda:1"))
    engine.fit(small(), views=(jitter, jitter), lr=0.1)
    assert len(marks) == 3
    assert {options["mode"] for options in asked} == {"reduce-overhead"}


def test_without_a_compiler_nothing_is_run(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs g\\+\\+, or CXX; install it, or leave it out"):
        compiled.Compiler("cpu")
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="on a card needs Triton"):
        compiled.refuse("cuda")
    command = ["run", "--plugins", "random_init", "--compile", "--seeds", "1"]
    folders = ["--runs-dir", tmp_path / "runs", "--leaderboards-dir", tmp_path / "boards"]
    assert main([*command, *map(str, folders)]) == 2
    assert "g++" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "results").exists()


def test_code_is_compiled_where_a_plugin_may_write(monkeypatch, tmp_path: Path) -> None:
    """The fork server has a place for all its children's code, which they may not write to."""
    from torch._inductor.runtime import cache_dir_utils

    for name in ("TMPDIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "server"))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    run = tmp_path / "run"
    run.mkdir()
    files.keep_temporary_files(run)
    places = [cache_dir_utils.cache_dir(), cache_dir_utils.triton_cache_dir(0)]
    with tempfile.NamedTemporaryFile() as file:
        places.append(file.name)
    assert all(Path(place).is_relative_to(run) for place in places)


def test_recomputed_blocks_are_not_compiled() -> None:
    with pytest.raises(UserError, match="compile and checkpointing exclude each other"):
        plan.override(plan.load_track("digits"), compile=True, checkpointing=True)
