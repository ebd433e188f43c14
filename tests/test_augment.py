"""Views equal torchvision's and PIL's image by image; draws are sliced over processes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from bench import augment
from bench.seeing import see

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(12, 3, 20, 24, generator=GENERATOR)
SQUARE = torch.rand(16, 3, 32, 32, generator=GENERATOR)


def stacked(function: object, *parameters: Tensor) -> Tensor:
    rows = [
        function(image, *(float(p) for p in each)) for image, *each in zip(*parameters, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_equals_torchvision(name: str) -> None:
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    factors = torch.linspace(low, high, len(IMAGES))
    ours = getattr(augment, f"adjust_{name}")(IMAGES, factors)
    theirs = stacked(getattr(tv, f"adjust_{name}"), IMAGES, factors)
    assert torch.allclose(ours, theirs, atol=2e-6)


def test_jitter_applies_each_image_s_own_order() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = torch.rand(24, 3, 6, 6, generator=GENERATOR)
    factors = torch.rand(24, 4, generator=GENERATOR) * 0.8 + 0.6
    factors[:, 3] -= 1.0
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    expected = []
    for image, row, order in zip(images, factors, orders, strict=True):
        for which in order.tolist():
            image = steps[which](image, float(row[which]))
        expected.append(image)
    assert torch.allclose(augment.jitter(images, factors, orders), torch.stack(expected), atol=5e-6)


def test_grayscale_and_solarize_equal_torchvision() -> None:
    gray = tv.rgb_to_grayscale(IMAGES, num_output_channels=3)
    assert torch.allclose(augment.to_grayscale(IMAGES), gray, atol=1e-3)  # weights of 4 digits
    for threshold in (0.5, 0.3):
        theirs = tv.solarize(IMAGES, threshold)
        assert torch.allclose(augment.invert_above(IMAGES, threshold), theirs)


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
def test_blur_equals_torchvision(kernel_size: int) -> None:
    sigmas = torch.linspace(0.1, 2.0, len(IMAGES))
    theirs = torch.stack(
        [
            tv.gaussian_blur(image, [kernel_size, kernel_size], [float(sigma)] * 2)
            for image, sigma in zip(IMAGES, sigmas, strict=True)
        ]
    )
    assert torch.allclose(augment.blur(IMAGES, sigmas, kernel_size), theirs, atol=1e-5)


@pytest.mark.parametrize("size", [8, 20, 48])
def test_crop_is_within_a_grey_level_of_pil(size: int) -> None:
    pixels = torch.randint(0, 256, (40, 3, 32, 32), generator=GENERATOR, dtype=torch.uint8)
    draws = augment.Draws.of(pixels, 3)
    boxes = augment.sample_boxes(draws, 32, 32)
    ours = augment.crop_resize(pixels.float() / 255, boxes, size)
    for image, (top, left, height, width), result in zip(pixels, boxes.tolist(), ours, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        box = (left, top, left + width, top + height)
        theirs = picture.crop(box).resize((size, size), Image.Resampling.BILINEAR)
        difference = result.permute(1, 2, 0).numpy() * 255 - np.asarray(theirs, dtype=float)
        assert np.abs(difference).max() <= 1.0 + 1e-3  # float32


def test_boxes_keep_their_ranges_and_lie_inside() -> None:
    images = torch.zeros(4000, 1, 1, 1)
    boxes = augment.sample_boxes(
        augment.Draws.of(images, 0), 64, 64, scale=(0.2, 0.8), ratio=(0.5, 2.0)
    ).double()
    top, left, height, width = boxes.unbind(1)
    area, aspect = height * width / 64**2, width / height
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 64) & (left + width <= 64)).all())
    assert 0.18 < float(area.min()) < float(area.max()) < 0.83
    assert 0.45 < float(aspect.min()) < float(aspect.max()) < 2.2
    # The aspect is log-uniform: as often tall as wide. 4,000 draws, sd 0.8 %.
    assert float((aspect > 1).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_pad_and_crop_shifts_by_up_to_the_padding() -> None:
    one = torch.zeros(200, 3, 8, 8)
    one[:, :, 4, 4] = 1
    seen = augment.pad_and_crop(2)(one, augment.Draws.of(one, 0))
    rows = seen[:, 0].amax(2).argmax(1)
    assert sorted(set(rows.tolist())) == [2, 3, 4, 5, 6]
    assert torch.equal(seen.sum((1, 2, 3)), one.sum((1, 2, 3)))


def test_quarter_turns_and_small_angles_equal_torchvision() -> None:
    turns = torch.arange(16) % 4
    expected = torch.stack(
        [torch.rot90(x, int(k), (1, 2)) for x, k in zip(SQUARE, turns, strict=True)]
    )
    assert torch.equal(augment.rotate90(SQUARE, turns), expected)
    angles = torch.linspace(-40, 40, 16)
    theirs = torch.stack(
        [
            tv.rotate(x, float(a), interpolation=tv.InterpolationMode.BILINEAR)
            for x, a in zip(SQUARE, angles, strict=True)
        ]
    )
    assert torch.allclose(augment.rotate(SQUARE, angles), theirs, atol=1e-4)


VIEWS = {
    "crop": augment.random_resized_crop(),
    "multi-crop": augment.random_resized_crop(16),
    "random_crop": augment.random_crop(24),
    "flip": augment.horizontal_flip(),
    "jitter": augment.color_jitter(0.8, 0.8, 0.8, 0.2),
    "grayscale": augment.grayscale(0.5),
    "blur": augment.gaussian_blur(),
    "solarize": augment.solarize(0.5),
    "pad": augment.pad_and_crop(),
    "rotation": augment.rotation(20),
    "all": augment.compose(
        augment.random_resized_crop(),
        augment.horizontal_flip(),
        augment.color_jitter(0.8, 0.8, 0.8, 0.2),
        augment.grayscale(),
        augment.gaussian_blur(),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_process_sees_its_slice_of_the_global_batch(name: str) -> None:
    images = SQUARE.double()

    def seen(rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return VIEWS[name](images[rows], augment.Draws(generator, 16, rows))

    whole = seen(slice(0, 16))
    parts = torch.cat([seen(slice(0, 8)), seen(slice(8, 16))])
    assert torch.allclose(whole, parts, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", VIEWS)
def test_views_draw_per_image_and_stay_in_range(name: str) -> None:
    same = SQUARE[:1].expand(16, -1, -1, -1).contiguous()
    before = same.clone()
    one, two = (VIEWS[name](same, augment.Draws.of(same, 7)) for _ in range(2))
    other = VIEWS[name](same, augment.Draws.of(same, 8))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(same, before)
    assert float(one.min()) >= -1e-6
    assert float(one.max()) <= 1 + 1e-6
    assert len({tuple(x.flatten().tolist()) for x in one}) > 1


def test_gray_images_stay_gray_and_lose_only_colour() -> None:
    gray = SQUARE[:, :1].expand(-1, 3, -1, -1).contiguous()
    seen = VIEWS["all"](gray, augment.Draws.of(gray, 1))
    assert torch.allclose(seen[:, :1].expand_as(seen), seen, atol=1e-6)
    fast = VIEWS["all"](gray, augment.Draws.of(gray, 1, gray=True))
    assert torch.allclose(fast, seen, atol=1e-5)
    colour = augment.color_jitter(0, 0, 0.9, 0.5, p=1.0)
    assert torch.allclose(colour(gray, augment.Draws.of(gray, 2)), gray, atol=1e-6)
    assert torch.allclose(augment.grayscale(1.0)(gray, augment.Draws.of(gray, 3)), gray, atol=1e-6)


@pytest.mark.parametrize("gray", [False, True])
def test_a_step_sees_views_from_minus_one_to_one_and_leaves_the_images(gray: bool) -> None:
    """An identity returns the very tensor that all views share, and gray ones one plane thrice."""
    images = SQUARE[:, :1].expand(-1, 3, -1, -1) if gray else SQUARE
    images = images.clone(memory_format=torch.channels_last)  # where a copy is easily forgotten
    before = images.clone()
    flip = augment.compose(augment.horizontal_flip(p=1.0))
    views = (augment.identity, flip, augment.horizontal_flip(p=1.0))
    seen = see(views, images, augment.Draws.of(images, 0, gray=gray))
    assert torch.equal(images, before)
    for found, expected in zip(seen, (before, before.flip(3), before.flip(3)), strict=True):
        assert torch.equal(found, expected * 2 - 1)
        assert found.is_contiguous(memory_format=torch.channels_last)
        found.zero_()
    assert torch.equal(images, before)
