"""What a card would need, as far as a processor can show it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from bench import backbones, child, driver, evaluations, judge
from bench.errors import UserError, lacks_memory
from bench.finite import FiniteCheck
from bench.gauge import Stored
from bench.integrity import load_backbone
from bench.store import resident

SPEC = {"name": "test_resnet", "args": {}, "stem": None}


def test_a_backbone_is_judged_where_it_is_asked_to_be(tmp_path: Path) -> None:
    content = save(backbones.build(SPEC, 32).state_dict())
    (tmp_path / "weights").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()

    placed = load_backbone(SPEC, 32, tmp_path / "weights", sha256, device="meta")

    assert {tensor.device.type for tensor in placed.state_dict().values()} == {"meta"}


def test_without_a_card_runs_of_one_are_judged_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [evaluations.prepare_device(name) for name in ("cpu", "cuda")] == ["cpu", "cpu"]


def test_on_a_card_evaluations_are_in_full_precision_and_repeatable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flags = (
        (torch.backends.cuda.matmul, "allow_tf32", False),
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cudnn, "benchmark", False),
        (torch.backends.cudnn, "deterministic", True),
    )
    before = [getattr(module, name) for module, name, _ in flags]
    try:
        for module, name, wanted in flags:
            setattr(module, name, not wanted)
        assert evaluations.prepare_device("cpu") == "cpu"
        assert [getattr(module, name) == wanted for module, name, wanted in flags] == [False] * 4
        assert evaluations.prepare_device("cuda") == "cuda"
        assert [getattr(module, name) == wanted for module, name, wanted in flags] == [True] * 4
    finally:
        for (module, name, _), value in zip(flags, before, strict=True):
            setattr(module, name, value)


def test_a_result_names_the_device_of_a_card_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "get_device_name", fails)
    assert judge.machine({"device": "cuda", "spec": {"threads": 1}})["device"] == "cuda"


@pytest.mark.parametrize(
    ("visible", "there", "said"),
    [
        (None, True, None),
        ("0,1", True, None),
        ("-1", True, "every card is hidden"),
        ("", True, "every card is hidden"),
        (None, False, "no NVIDIA driver"),
    ],
)
def test_a_card_that_cannot_be_seen_is_refused_before_anything_starts(
    visible: str | None,
    there: bool,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "DRIVERS", (str(tmp_path if there else tmp_path / "none"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert driver.card_is_there() == (said is None)
    driver.cuda_is_asked("cpu")
    if said is None:
        driver.cuda_is_asked("cuda")
    else:
        with pytest.raises(UserError, match=said):
            driver.cuda_is_asked("cuda")


def test_a_processs_card_is_that_of_its_rank_on_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (child._device("cuda", 3), child._device("cpu", 3)) == ("cuda:3", "cpu")
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "1")
    assert child._device("cuda", 9) == "cuda:1"


@pytest.mark.parametrize("fused", [True, False])
def test_only_a_fused_optimizer_is_told_to_skip(fused: bool) -> None:
    """Others refuse a step that comes with the flag."""
    model = nn.Linear(2, 1)
    update = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    finite = FiniteCheck(torch.device("cpu"), 1, defer=True)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()

    finite.check(torch.tensor(float("nan")), update, 7)
    update.step()

    assert torch.equal(model.weight, before) == fused
    with pytest.raises(Exception, match="diverged at step 7"):
        finite.raise_if_diverged()


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_which_errors_say_that_memory_was_lacking(error: Exception, lacking: bool) -> None:
    assert lacks_memory(error) == lacking


def test_of_images_that_stand_for_many_those_that_differ_are_resident() -> None:
    base = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)
    shown = resident(Stored(base, 1000), torch.device("cpu"))
    assert torch.equal(shown, torch.from_numpy(base))


@pytest.mark.parametrize("part", [1, 100, 1 << 26])
def test_images_are_resident_whatever_is_copied_at_a_time(part: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)
    assert torch.equal(resident(images, torch.device("cpu"), part=part), torch.from_numpy(images))
