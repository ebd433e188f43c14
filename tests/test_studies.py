"""Studies: known information, known losses of information, and what a real head leaves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from bench import data, observations, observing, studies, studying
from bench.errors import UnknownName, UserError
from bench.studies import head_why, infonce_tight

FEW = infonce_tight.SETTINGS | {"candidates": [2, 8, 32], "samples": 2000, "steps": 60}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# infonce_tight


def test_the_optimal_critic_is_the_log_density_ratio():
    settings = FEW | {"coordinates": 3, "correlation": 0.6}
    x, y = torch.randn(5, 3, generator=generator()), torch.randn(5, 4, 3, generator=generator())
    found = infonce_tight.log_ratio(settings)(x, y)
    joint = multivariate_normal(np.zeros(2), [[1, 0.6], [0.6, 1]])
    for i in range(5):
        for j in range(4):
            slow = sum(
                joint.logpdf([float(a), float(b)])
                - multivariate_normal(0, 1).logpdf(float(a))
                - multivariate_normal(0, 1).logpdf(float(b))
                for a, b in zip(x[i], y[i, j], strict=True)
            )
            assert float(found[i, j]) == pytest.approx(slow, abs=1e-4)


def test_the_mean_log_ratio_of_pairs_is_the_information():
    x, y = infonce_tight.pairs(200_000, FEW, generator())
    mean = float(infonce_tight.log_ratio(FEW)(x, y[:, None]).mean())
    assert mean == pytest.approx(infonce_tight.information(FEW), abs=0.03)
    assert infonce_tight.information(FEW) == pytest.approx(6.643, abs=1e-3)


def test_a_critic_that_knows_nothing_bounds_nothing():
    bound = infonce_tight.estimate_bound(
        lambda x, y: torch.zeros(y.shape[:2]), FEW, 32, generator()
    )
    assert bound == pytest.approx(0.0, abs=1e-6)


def test_the_bound_of_two_candidates_is_the_slow_mean():
    """E log(1 + r'/r)^-1 + log 2 by an independent loop over candidates in numpy."""
    settings = FEW | {"coordinates": 2, "correlation": 0.7, "samples": 40_000}
    bound = infonce_tight.estimate_bound(
        infonce_tight.log_ratio(settings), settings, 2, generator()
    )
    drawn = np.random.default_rng(0)
    x, noise, other = drawn.normal(size=(3, 40_000, 2))
    y = 0.7 * x + np.sqrt(1 - 0.49) * noise

    def log_ratio(y: np.ndarray) -> np.ndarray:
        conditional = -((y - 0.7 * x) ** 2) / (2 * 0.51) - 0.5 * np.log(0.51)
        return (conditional + y**2 / 2).sum(1)

    slow = np.log(2) - np.log1p(np.exp(log_ratio(other) - log_ratio(y))).mean()
    assert bound == pytest.approx(slow, abs=0.02)


def test_no_bound_is_above_log_n_and_more_candidates_bound_tighter():
    observed = infonce_tight.observe(0, FEW)
    information = infonce_tight.information(FEW)
    for name in ("optimal", "learned"):
        bounds = [information - observed.shown[f"{name}_gap_{n}"] for n in FEW["candidates"]]
        assert all(bound <= np.log(n) for bound, n in zip(bounds, FEW["candidates"], strict=True))
        falls = np.diff(bounds)
        assert observed.values[f"{name}_smallest_fall"] == pytest.approx(falls.min())
        assert falls.min() > 0.2
    assert observed.shown["optimal_gap_32"] < observed.shown["learned_gap_32"]


def test_an_observation_is_a_function_of_its_seed():
    few = FEW | {"candidates": [2, 4], "samples": 100, "steps": 3}
    torch.manual_seed(1)
    first = infonce_tight.observe(3, few)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert infonce_tight.observe(3, few) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert infonce_tight.observe(4, few).values != first.values


# head_why


def test_transforms_are_what_they_say():
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    for turns, turn in enumerate(head_why.rotations()):
        slow = np.stack([[np.rot90(c, turns) for c in image] for image in images])
        assert np.array_equal(turn(images), slow)
    same, dark, bright, flat, stark = head_why.jitters(head_why.SETTINGS)
    assert np.array_equal(same(images), images)
    for factor, transform in ((0.6, dark), (1.4, bright)):
        assert np.array_equal(transform(images), np.rint(images * factor).clip(0, 255))
    for factor, transform in ((0.6, flat), (1.4, stark)):
        for image, found in zip(images.astype(float), transform(images), strict=True):
            mean = (image * np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(0).mean()
            slow = np.rint(mean + factor * (image - mean)).clip(0, 255)
            assert np.abs(found - slow).max() <= 1  # float32 may round the other way


def planted(count: int = 400) -> tuple[data.Dataset, data.Split]:
    """Return a data set whose images have one bright corner: rotations are easy to tell."""
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 40, (count, 1, 8, 8), dtype=np.uint8)
    images[:, :, :3, :3] += 150
    labels = np.arange(count) % 4
    whole = data.Dataset(
        name="planted",
        images={"train": images, "test": images[:200]},
        labels={"train": labels, "test": labels[:200]},
        class_names=tuple("abcd"),
        licence="",
        source="",
        sha256="d" * 64,
    )
    return whole, data.split(whole, 0)


class Corners(nn.Module):
    """A backbone whose pooled feature is the mean of each quarter of the image."""

    num_features = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images[:, :1], 2).flatten(1)


class Forgets(nn.Module):
    """A head that keeps the sum of the features alone."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h.sum(1, keepdim=True).expand(-1, 2).contiguous()


def test_what_the_head_forgets_is_found(monkeypatch, tmp_path):
    dataset, _ = planted()
    run = studies.Run(
        tmp_path, {"image_size": 8, "data": {"sha256": "d" * 64}}, {}, "t", "planted", "rgb", {}, ""
    )
    noted = []
    monkeypatch.setattr(studies.Run, "note_test_read", lambda run, *said: noted.append(said))
    monkeypatch.setattr(head_why.data, "load", lambda name, **sizes: dataset)
    monkeypatch.setattr(head_why, "networks", lambda run: (Corners(), Forgets()))
    monkeypatch.setattr(
        head_why, "embed", lambda net, images, kind: {"last": net(torch.from_numpy(images).float())}
    )
    found = head_why.observe(0, head_why.SETTINGS, run)
    assert len(noted) == 1
    assert found.shown["rotation_h"] > 99
    assert found.shown["rotation_z"] < 45  # of four
    assert found.shown["jitter_h"] - found.shown["jitter_z"] < found.values["rotation_h_minus_z"]
    assert found.values["rotation_h_minus_z"] == pytest.approx(
        100 * (found.correct["rotation_h"].mean() - found.correct["rotation_z"].mean())
    )


def test_an_image_has_its_transform_whatever_the_split():
    dataset, split = planted()
    other = data.split(dataset, 1)
    turned = [
        head_why.transformed(dataset, s, "rotation", head_why.rotations()) for s in (split, other)
    ]
    by_place = [
        dict(zip(s.train.tolist(), t["train"][1].tolist(), strict=True))
        for s, t in zip((split, other), turned, strict=True)
    ]
    both = by_place[0].keys() & by_place[1].keys()
    assert len(both) > 200
    assert all(by_place[0][place] == by_place[1][place] for place in both)
    assert torch.equal(turned[0]["test"][1], turned[1]["test"][1])
    assert len(set(turned[0]["test"][1].tolist())) == 4
    images, labels = turned[0]["test"]
    for image, label, was in zip(images, labels, dataset.images["test"], strict=True):
        assert np.array_equal(image, np.rot90(was, int(label), axes=(1, 2)))


def test_a_run_without_a_head_is_refused(tmp_path):
    run = studies.Run(tmp_path / "net-s0", {}, {}, "t", "digits", "rgb", {}, "")
    with pytest.raises(UserError, match=r"net-s0 kept no head; run it again with --force"):
        head_why.networks(run)


# observations


def observed(**changes) -> observations.Observed:
    bits = {"a": np.array([True, True, False, True]), "b": np.array([False, True, False, False])}
    from bench.packing import pack_bits

    fields = {
        "schema": 1,
        "study": "infonce_tight",
        "version": 1,
        "settings": {},
        "hash": "0" * 12,
        "holds": "",
        "seed": 0,
        "values": {"gap": 50.0},
        "correct": {name: pack_bits(b) for name, b in bits.items()},
        "num_images": 4,
        "parts": {"gap": {"a": 1.0, "b": -1.0}},
    }
    return observations.Observed.model_validate(fields | changes)


def test_an_observation_comes_back_as_it_was(tmp_path):
    path = tmp_path / observations.file_name("infonce_tight", 0)
    observations.write(path, observed())
    back = observations.read(path)
    assert back.model_copy(update={"content_sha256": ""}) == observed()
    assert back.images("gap").tolist() == [100.0, 0.0, 0.0, 100.0]


def test_a_damaged_observation_is_refused(tmp_path):
    path = tmp_path / observations.file_name("infonce_tight", 0)
    with pytest.raises(UserError, match="cannot be read"):
        observations.read(path)
    observations.write(path, observed(values={"gap": 51.0}))
    with pytest.raises(UserError, match=r"gap is 51.0, its images give 50.0"):
        observations.read(path)
    observations.write(path, observed())
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match="altered since it was written"):
        observations.read(path)
    observations.write(path, observed(seed=2))
    with pytest.raises(UserError, match="of another name"):
        observations.read(path)


def test_an_unknown_study_is_refused():
    with pytest.raises(UnknownName, match="head_why"):
        studies.study("head_wy")


def test_a_studys_hash_covers_its_settings(monkeypatch):
    before = studies.study("infonce_tight")
    monkeypatch.setitem(infonce_tight.SETTINGS, "samples", 5)
    assert studies.study("infonce_tight").hash != before.hash
    assert dataclasses.replace(before, hash="") != before


def test_an_observation_of_another_version_is_made_anew(tmp_path):
    path = tmp_path / observations.file_name("infonce_tight", 0)
    job = observing.Job("infonce_tight", 0, None, path)
    assert not studying._is_current(job)
    for hashed, current in (("0" * 12, False), (studies.study("infonce_tight").hash, True)):
        observations.write(path, observed(hash=hashed))
        assert studying._is_current(job) == current
