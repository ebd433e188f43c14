"""docs/hooks.md is what bench/hookspecs.py says, names all of it, and its example trains."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import fill_hooks
import numpy as np
import pytest
import torch
from torch import nn

from bench import Batch, Engine, MethodCard, augment, hookspecs
from bench.engine import Trainer

PAGE = fill_hooks.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_specification_says() -> None:
    assert fill_hooks.filled(PAGE) == PAGE, "run python tests/fill_hooks.py"


def test_every_hook_has_a_heading_its_signature_and_its_text() -> None:
    hooks = {name: f for name, f in vars(hookspecs).items() if hasattr(f, "bench_spec")}
    assert len(hooks) >= 5
    for name, hook in hooks.items():
        section = PAGE.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert f"def {name}(" in section
        for argument in inspect.signature(hook).parameters:
            assert re.search(rf"\b{argument}: ", section), f"{name}({argument})"
        first = inspect.getdoc(hook).splitlines()[0]
        assert first in section
        assert f"`{name}`" in PAGE.partition("## The hooks")[0]  # in the table of when


@pytest.mark.parametrize(
    ("mark", "names"),
    [
        ("card", [field.name for field in dataclasses.fields(MethodCard)]),
        ("engine", list(Engine.__annotations__)),
    ],
)
def test_every_field_has_a_row_with_a_meaning(mark: str, names: list[str]) -> None:
    part = PAGE.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0]
    for name in names:
        (row,) = (line for line in part.splitlines() if line.startswith(f"| `{name}` |"))
        assert len(row.rstrip(" |").rpartition(" | ")[2]) > 5, row


def test_every_method_of_the_engine_has_a_heading() -> None:
    methods = {name for name, f in vars(Engine).items() if inspect.isfunction(f) and name[0] != "_"}
    assert methods >= {"fit", "prepare", "batches", "step"}
    assert {name for name in methods if f"\n### engine.{name}\n" in PAGE} == methods


def test_batches_and_views_are_there() -> None:
    for name in Batch._fields:
        assert f"`Batch.{name}: " in PAGE
    assert "`View = Callable" in PAGE


def test_the_loop_of_the_page_spends_the_budget(tmp_path: Path) -> None:
    part = PAGE.partition("has its own loop:")[2]
    code = re.search(r"```python\n(.*?)```", part, re.DOTALL)[1]

    class Brightness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros(()))

        def forward(self, view0: torch.Tensor, view1: torch.Tensor) -> torch.Tensor:
            return ((view0 + view1) / 2 - self.level).pow(2).mean()

    images = np.full((8, 3, 4, 4), 200, np.uint8)
    engine = Trainer(images, None, None, steps=5, batch_size=4, seed=0, folder=tmp_path)
    names = {"model": Brightness(), "view": augment.identity, "engine": engine}
    exec(compile(code, str(fill_hooks.PAGE), "exec"), names)
    assert engine.progress == 1
    assert 0 < float(names["model"].level.detach()) < 0.1  # five steps of at most 2e-3 each
