"""Images that are stored larger than the backbone sees them: crops, centres, refusals, ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import augment, backbones, data, manager, plan
from bench.engine import Trainer
from bench.errors import UserError

STORED, SEEN = 16, 12
DRAW = np.random.default_rng(11)
IMAGES = DRAW.integers(0, 256, (40, 3, STORED, STORED), dtype=np.uint8)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    labels = np.arange(40) % 4
    np.savez(
        tmp_path / "large.npz",
        x_train=IMAGES,
        y_train=labels,
        x_test=IMAGES[::-1],
        y_test=labels,
        x_unlabeled=IMAGES[:30],
    )
    return f"npz:{tmp_path / 'large.npz'}"


def test_evaluations_get_the_centre_and_pretraining_the_whole(archive: str, tmp_path: Path) -> None:
    dataset = data.load(archive, image_size=SEEN, store_size=STORED)

    for key in ("train", "test", "unlabeled"):
        whole = dataset.stored(key)
        assert whole.shape[2:] == (STORED, STORED)
        assert np.array_equal(dataset.images[key], whole[:, :, 2:14, 2:14])
    split = data.split(dataset, 0)
    folder = data.materialise(dataset, split, tmp_path / "arrays")
    assert np.array_equal(data.pretraining(folder, uses_labels=True)[0], IMAGES[split.train])
    assert np.array_equal(data.pretraining(folder, uses_labels=False)[0], IMAGES[:30])
    only = dataset.only("unlabeled", np.array([2, 7]))
    assert np.array_equal(only.stored("unlabeled"), IMAGES[[2, 7]])
    assert len(only.images["unlabeled"]) == 2


def test_hashes_are_those_of_the_stored_images(archive: str) -> None:
    plain = data.load(archive, image_size=STORED)

    larger = data.load(archive, image_size=SEEN, store_size=STORED)

    assert (larger.sha256, larger.test_sha256) == (plain.sha256, plain.test_sha256)
    assert plain.larger == {}
    assert plain.stored("train") is plain.images["train"]
    assert data.load(archive, image_size=SEEN, store_size=SEEN).larger == {}


@pytest.mark.parametrize("store_size", [11, 0, 5000, 16.0])
def test_a_store_size_below_the_image_size_is_refused(store_size, archive: str) -> None:
    with pytest.raises(UserError, match="store size"):
        data.load(archive, image_size=SEEN, store_size=store_size)


def unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).float() / 255


def test_random_resized_crops_come_out_at_the_size_that_is_seen() -> None:
    images = unit(IMAGES)

    seen = augment.random_resized_crop()(images, augment.Draws.of(images, 3, size=SEEN))

    boxes = augment.sample_boxes(augment.Draws.of(images, 3), STORED, STORED)
    assert torch.equal(seen, augment.crop_resize(images, boxes, SEEN))
    tile = augment.random_resized_crop(5)(images, augment.Draws.of(images, 3, size=SEEN))
    assert tile.shape[2:] == (5, 5)
    again = augment.random_resized_crop()(tile, augment.Draws.of(tile, 3, size=SEEN))
    assert again.shape[2:] == (5, 5)  # never larger than what it is given


def test_shifted_crops_are_windows_of_the_padded_image_anywhere() -> None:
    places = torch.arange(1, STORED * STORED + 1).view(1, 1, STORED, STORED).float()
    images = places.expand(4000, 3, -1, -1)
    padded = torch.nn.functional.pad(places, [2] * 4)[0, 0]

    seen = augment.pad_and_crop(2)(images, augment.Draws.of(images, 5, size=SEEN))

    assert seen.shape == (4000, 3, SEEN, SEEN)
    windows = padded.unfold(0, SEEN, 1).unfold(1, SEEN, 1).reshape(-1, SEEN * SEEN)
    found = {tuple(row.tolist()) for row in seen[:, 0].flatten(1).unique(dim=0)}
    # 81 places, 4,000 draws: one is missed less than once in 10^19.
    assert found == {tuple(row.tolist()) for row in windows}


class Mean(nn.Module):
    """The mean of what it sees, under BatchNorm; keeps the last images."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.backbone(images).square().mean()


def trainer(folder: Path, images: np.ndarray, **more: int) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(images, None, None, steps=3, batch_size=8, seed=0, folder=folder, **more)


def test_the_engine_hands_out_crops_of_the_size_that_is_seen(tmp_path: Path) -> None:
    engine = trainer(tmp_path, IMAGES, image_size=SEEN)
    assert engine.image_size == SEEN

    model = engine.fit(Mean(), views=(augment.random_resized_crop(),), lr=0.1)

    assert model.seen.shape == (8, 3, SEEN, SEEN)


def test_what_a_view_leaves_whole_is_cut_to_its_centre(tmp_path: Path) -> None:
    """Generators and data-dependent initialisation look at images as evaluations do."""

    def seen(view) -> Tensor:
        engine = trainer(tmp_path / "cut", IMAGES, image_size=SEEN)
        return next(engine.batches((augment.random_resized_crop(), view))).views[1]

    def mirror(images: Tensor, draws: augment.Draws) -> Tensor:
        return images.flip(-1)

    engine = trainer(tmp_path / "whole", IMAGES)
    whole = next(engine.batches((augment.random_resized_crop(), augment.identity))).views[1]
    cut = whole[..., 2:14, 2:14]  # 16 px to 12
    assert torch.equal(seen(augment.identity), cut)
    assert torch.equal(seen(mirror), cut.flip(-1))


@pytest.mark.parametrize("name", ["random_init", "vae", "gan", "ddpm"])
def test_methods_that_do_not_crop_train_on_images_stored_larger(name: str, tmp_path: Path) -> None:
    plugin = manager.load(name)
    card = plugin.call("describe")
    config = card.recipes.get("small", card.defaults)
    if name == "random_init":
        config = dataclasses.replace(config, rescaled=True)
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 40, 40), dtype=np.uint8)
    engine = trainer(tmp_path, images, image_size=32)
    net = backbones.build({"name": "test_resnet", "args": {}, "stem": None}, 32)
    plugin.call("pretrain", backbone=net, config=config, engine=engine)
    assert engine.step_index <= 3


def test_settled_statistics_are_those_of_the_centres(tmp_path: Path) -> None:
    model = Mean()
    larger = trainer(tmp_path / "a", IMAGES, image_size=SEEN)
    larger.settle(larger.place(model.backbone))
    statistics = model.backbone[1].running_mean.clone()
    centres = trainer(tmp_path / "b", np.ascontiguousarray(IMAGES[:, :, 2:14, 2:14]))

    centres.settle(centres.place(model.backbone))

    assert torch.equal(statistics, model.backbone[1].running_mean)


TRACK = """
title = "Stored larger"
description = "A track."
seeds = [0]
recipe = "small"
batch_size = 8
[data]
name = "digits"
image_size = 32
{more}
[backbone]
name = "resnet18"
[budget]
steps = 1
[evaluations.knn]
"""


def track(folder: Path, more: str = "") -> plan.Track:
    path = folder / "larger.toml"
    path.write_text(TRACK.format(more=more))
    return plan.load_track(str(path))


def test_a_track_without_store_size_has_the_id_that_it_had(tmp_path: Path) -> None:
    plain = track(tmp_path)

    assert plain.store_size is None
    assert "store_size" not in plain.data
    assert track(tmp_path, "store_size = 32") == plain
    larger = track(tmp_path, "store_size = 40")
    assert larger.store_size == 40
    assert larger.id != plain.id
    for bad in (31, 4, 2000):
        with pytest.raises(UserError, match="store_size"):
            track(tmp_path, f"store_size = {bad}")
    with pytest.raises(UserError, match="store_size 40 must not be below image_size 64"):
        plan.override(larger, image_size=64)
