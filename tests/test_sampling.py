"""Drawing samples: chunks, randomness by address, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import sampling, sheets


def uniform(num_images: int, labels: Tensor | None) -> Tensor:
    return torch.rand(num_images, 3, 8, 8) * 2 - 1


def test_rounding_is_to_the_nearest_of_256_levels() -> None:
    levels = torch.arange(256, dtype=torch.float64)
    assert (sampling.to_uint8((levels / 127.5 - 1).float()) == levels.numpy()).all()
    nearly = torch.tensor([-1.0005, 1.0005])
    assert sampling.to_uint8(nearly).tolist() == [0, 255]


def test_a_chunk_draws_the_same_whatever_was_drawn_before() -> None:
    many = sampling.draw(uniform, 2 * sampling.CHUNK, 8, None, seed=3)
    torch.rand(5)
    few = sampling.draw(uniform, sampling.CHUNK, 8, None, seed=3)
    assert (many[: sampling.CHUNK] == few).all()
    assert (many[sampling.CHUNK :] != few).any()
    assert (sampling.draw(uniform, sampling.CHUNK, 8, None, seed=4) != few).any()


def test_labels_are_balanced_and_reach_their_chunk() -> None:
    asked: list[Tensor] = []

    def conditional(num_images: int, labels: Tensor) -> Tensor:
        assert len(labels) == num_images
        asked.append(labels)
        return torch.zeros(num_images, 3, 8, 8)

    labels = sampling.balanced_labels(sampling.CHUNK + 10, 4)
    sampling.draw(conditional, len(labels), 8, labels, seed=0)
    assert torch.equal(torch.cat(asked), labels)
    assert labels.bincount().tolist() == [65, 65, 65, 65]


BROKEN = {
    "a tensor": lambda n: np.zeros((n, 3, 8, 8)),
    r"expected \(10, 3, 8, 8\)": lambda n: torch.zeros(n - 1, 3, 8, 8),
    "expected floats": lambda n: torch.zeros(n, 3, 8, 8, dtype=torch.uint8),
    "2 of 10 images that are not finite": lambda n: torch.zeros(n, 3, 8, 8).index_fill_(
        0, torch.tensor([1, 4]), float("nan")
    ),
    r"values from 0 to 255, expected \[-1, 1\]": lambda n: torch.linspace(0, 255, n)[
        :, None, None, None
    ].expand(n, 3, 8, 8),
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_is_no_image_is_refused(said: str) -> None:
    with pytest.raises(sampling.BadSamples, match=said):
        sampling.draw(lambda num_images, labels: BROKEN[said](num_images), 10, 8, None, seed=0)


def test_chunks_that_took_long_are_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(num_images: int, labels: Tensor | None) -> Tensor:
        asked.append(num_images)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return uniform(num_images, labels)

    whole = sampling.draw(uniform, 600, 8, None, seed=4)
    monkeypatch.setattr(sampling, "KEPT_SECONDS", -1.0)
    chunks = sampling.Chunks(tmp_path, "some")
    with pytest.raises(KeyboardInterrupt):
        sampling.draw(counted, 600, 8, None, seed=4, chunks=chunks)
    again = sampling.Chunks(tmp_path, "some")
    assert np.array_equal(sampling.draw(counted, 600, 8, None, seed=4, chunks=again), whole)
    assert asked == [250, 250, 100, 100]
    assert again.seconds > 0  # of the first two, which it did not draw
    other = sampling.Chunks(tmp_path, "other")  # of other code or weights
    sampling.draw(uniform, 600, 8, None, seed=4, chunks=other)
    assert other.seconds == 0
    again.clear()
    assert {path.name.split("-")[1] for path in tmp_path.iterdir()} == {"other"}
    other.clear()
    monkeypatch.setattr(sampling, "KEPT_SECONDS", 60.0)
    sampling.draw(uniform, 250, 8, None, seed=4, chunks=other)
    assert not list(tmp_path.iterdir())


def test_a_long_chunk_gives_signs_of_life_and_the_same_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.ModuleDict({"network": nn.Dropout(0.5)})
    signs = []

    def steps(num_images: int, labels: Tensor | None) -> Tensor:
        images = torch.rand(num_images, 3, 4, 4)
        for _ in range(5):
            images = model["network"](images).clamp(-1, 1)
        return images

    plain = sampling.draw(steps, 20, 4, None, seed=0)
    monkeypatch.setattr(sampling, "BEAT_SECONDS", 0.0)
    with sampling.signs_of_life(model, lambda: signs.append(1)):
        again = sampling.draw(steps, 20, 4, None, seed=0)
    assert len(signs) == 5
    assert np.array_equal(again, plain)
    sampling.draw(steps, 20, 4, None, seed=0)
    assert len(signs) == 5  # its hooks are gone


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    images = sampling.draw(uniform, 12, 8, None, seed=0)
    facts = sampling.save(tmp_path, "samples-x.npy", images)
    drawn = facts | {"file": "samples-x.npy", "sampling": {"steps": 5}, "num_classes": 4}
    read = sampling.read(tmp_path, drawn, 12, 8)
    assert (read.images == images).all()
    assert read.labels.tolist() == [0, 1, 2, 3] * 3
    with pytest.raises(sampling.BadSamples, match="expected"):
        sampling.read(tmp_path, drawn, 13, 8)
    sampling.save(tmp_path, "samples-x.npy", 255 - images)
    with pytest.raises(sampling.BadSamples, match="was changed"):
        sampling.read(tmp_path, drawn, 12, 8)


def test_a_sheet_shows_each_image_where_it_belongs() -> None:
    import io

    from PIL import Image

    images = np.zeros((6, 3, 4, 4), np.uint8)
    images[:, 0] = 10 * np.arange(6)[:, None, None]
    page = np.array(Image.open(io.BytesIO(sheets.sheet(images.reshape(2, 3, 3, 4, 4)))))
    assert page.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    corners = page[2::6, 2::6, 0][:2, :3]
    assert corners.tolist() == [[0, 10, 20], [30, 40, 50]]
    assert (page[:2] == 255).all()


def test_pictures_that_are_none_are_left_out_and_said(tmp_path: Path) -> None:
    pictures = {
        "good": torch.zeros(2, 3, 3, 8, 8),
        "../evil": torch.zeros(1, 1, 3, 8, 8),
        "flat": torch.zeros(3, 8, 8),
        "nan": torch.full((1, 1, 3, 8, 8), float("nan")),
        "huge": torch.zeros(1, 600, 3, 8, 8),
        "none": None,
        "samples": torch.zeros(2, 3, 3, 8, 8),  # the harness's own, which nobody chooses
        "neighbours": torch.zeros(2, 3, 3, 8, 8),
        "reconstructed": torch.zeros(2, 3, 3, 8, 8),
    }
    refused = sheets.write_pictures(tmp_path, pictures)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["good.png"]
    assert len(refused) == 8
    assert sheets.write_pictures(tmp_path, [1]) == [
        "picture returned list, expected a dict of tensors"
    ]


@pytest.mark.parametrize("limit", [None, 30])
def test_a_limited_training_set_has_no_reconstructions(tmp_path: Path, limit: int | None) -> None:
    """Its reference is drawn from the whole split, of which the method saw a part."""

    class Plugin:
        def has(self, hook: str) -> bool:
            return hook == "reconstruct"

        def call(self, hook: str, model: None, **given: object) -> Tensor:
            if hook == "generate":
                return torch.zeros(given["num_images"], 3, 8, 8)
            return given["images"]

    settings = {"samples": 20, "reference": 20, "extractor": "pixels", "allow_small": True}
    data = {"limit": limit} if limit else {}
    orders = {
        "spec": {"seed": 0, "data": data},
        "evaluations": [{"name": "generation", "overrides": settings}],
    }
    meter = SimpleNamespace(beat=lambda step: None)
    trainer = SimpleNamespace(
        meter=meter,
        step_index=3,
        stop_signal=None,
        device="cpu",
        image_size=8,
        identity_hash="",
    )
    card = SimpleNamespace(sampling=None, conditional=False)
    stored = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(8, 2).repeat(8, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling.cards, "sampling_object", lambda card, given: None)
        patch.setattr(sampling.cards, "sampling_values", lambda settings: {})
        drawn = sampling.draw_all(tmp_path, orders, Plugin(), card, None, trainer, stored, 2)
    (facts,) = drawn.values()
    assert ("reconstructions" in facts) == (limit is None)
    read = sampling.read(tmp_path, facts, 20, 8)
    if limit is None:
        rows = sampling.reference_rows(30, 20, 0)
        assert (read.reconstructions[:, 0, 0, 0] == rows).all()
    else:
        assert read.reconstructions is None
