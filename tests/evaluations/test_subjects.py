"""What protocols are given, and that those which train leave everything else as it was."""

from __future__ import annotations

import types

import pytest
import torch
from subjects import subject as made

from bench import evaluations, features, judge
from bench.evaluations import Evaluation, Subject


@pytest.fixture
def subject() -> Subject:
    return made()


def test_every_copy_of_the_backbone_is_fresh(subject: Subject) -> None:
    first = subject.backbone()
    with torch.no_grad():
        first.conv1.weight.zero_()
    second = subject.backbone()
    assert second.conv1.weight.abs().sum() > 0


def test_images_are_in_the_order_of_features_and_labels(subject: Subject) -> None:
    for split in ("train", "validation", "test"):
        seen = features.embed(subject.backbone(), subject.images(split))["last"]
        assert torch.allclose(seen, getattr(subject.features, split)["last"], rtol=1e-3, atol=1e-5)


def test_a_closed_test_split_cannot_be_asked_for(subject: Subject) -> None:
    closed = made(test=False)
    with pytest.raises(LookupError, match="closed"):
        closed.images("test")
    assert len(closed.images("validation")) == 60


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A protocol over images that draws from torch's own generator and counts its threads."""
    seen: list[tuple[float, int]] = []

    def evaluate(subject: Subject, settings: dict, seed: int) -> Evaluation:
        seen.append((float(torch.rand(())), torch.get_num_threads()))
        torch.set_num_threads(5)
        return Evaluation({}, {"drawn": seen[-1][0]}, {})

    module = types.SimpleNamespace(
        ID="draws", VERSION=1, SETTINGS={}, NEEDS="images", evaluate=evaluate, seen=seen
    )
    monkeypatch.setattr(evaluations, "NAMES", (*evaluations.NAMES, "draws"))
    real = evaluations._module
    monkeypatch.setattr(evaluations, "_module", lambda n: module if n == "draws" else real(n))
    return module


def test_torch_is_left_as_it_was_found(subject: Subject, draws: types.SimpleNamespace) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    evaluations.protocol("draws").evaluate(subject, 0)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    evaluations.protocol("draws").evaluate(subject, 0)
    evaluations.protocol("draws").evaluate(subject, 1)
    (first, used), (again, _), (other, _) = draws.seen
    assert first == again != other
    assert used == 1


def test_raw_pixels_have_entries_of_features_only(
    subject: Subject, draws: types.SimpleNamespace
) -> None:
    seen = features.raw_pixels(subject.dataset, subject.split)
    floor = Subject(seen, None, subject.dataset, subject.split, "rgb", 16, True, threads=1)
    assert floor.backbone() is None
    protocols = [evaluations.protocol(name) for name in ("knn", "draws")]
    assert [e["id"] for e in judge.all_entries(protocols, floor, 0).values()] == ["knn"]
    both = judge.all_entries(protocols, subject, 0)
    assert [entry["id"] for entry in both.values()] == ["knn", "draws"]


def test_default_evaluations_are_those_over_features(draws: types.SimpleNamespace) -> None:
    assert {"linear_probe", "knn"} <= set(evaluations.over_features())
    assert "draws" not in evaluations.over_features()
