"""Backbones: any timm model at small sizes, byte-equal from one seed, stated in a line."""

from __future__ import annotations

import pytest
import torch

from bench import backbones
from bench.errors import UserError

STEM = {"kernel": 3, "stride": 1, "max_pool": False}
CONVOLUTIONAL = (
    "resnet10t",
    "resnet18",
    "test_resnet",
    "test_convnext",
    "mobilenetv4_conv_small",
    "convnext_atto",
)
VITS = ("test_vit", "vit_tiny_patch16_224")


def spec(name: str, stem: dict | None = None, **args: object) -> dict:
    return {"name": name, "args": args, "stem": stem}


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    ("name", "stem"),
    [(n, s) for n in CONVOLUTIONAL for s in (None, STEM)] + [(n, None) for n in VITS],
)
def test_every_backbone_gives_features_and_stages(name: str, stem: dict, size: int) -> None:
    torch.manual_seed(0)
    backbone = backbones.build(spec(name, stem), size).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        last = backbone(images)
        found = backbones.stages(backbone, images)
    assert last.shape == (2, backbone.num_features)
    assert torch.equal(found["last"], last)
    assert list(found)[-1] == "last"
    assert 2 <= len(found) <= backbones.MAX_STAGES + 1
    assert all(values.ndim == 2 and values.isfinite().all() for values in found.values())


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *VITS])
def test_one_pass_gives_the_bytes_of_the_output(name: str) -> None:
    torch.manual_seed(0)
    backbone = backbones.build(spec(name), 32).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert backbones.is_one_pass(backbone, images)
        one = backbones.stages(backbone, images, one_pass=True)
        two = backbones.stages(backbone, images)
    assert list(one) == list(two)
    assert all(torch.equal(one[stage], two[stage]) for stage in one)


def test_a_backbone_whose_head_is_elsewhere_takes_two_passes() -> None:
    backbone = backbones.build(spec("test_resnet"), 32).eval()
    plain = backbone.forward
    backbone.forward = lambda images: plain(images) + 1
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not backbones.is_one_pass(backbone, images)
        assert torch.equal(backbones.stages(backbone, images)["last"], backbone(images))


def test_stages_are_spatial_means_and_mean_patch_tokens() -> None:
    images = torch.randn(2, 3, 32, 32)
    net = backbones.build(spec("test_resnet"), 32).eval()
    vit = backbones.build(spec("vit_tiny_patch16_224", patch_size=8), 32).eval()
    with torch.no_grad():
        maps = net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images)))))
        assert torch.allclose(backbones.stages(net, images)["stage2"], maps.mean((2, 3)))
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        for block in vit.blocks[:4]:
            tokens = block(tokens)
        found = backbones.stages(vit, images)
    assert list(found) == [f"stage{i}" for i in (2, 4, 6, 8, 10, 12)] + ["last"]
    assert torch.allclose(found["stage4"], tokens[:, 1:].mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "args", "size", "lost"),
    [("test_vit", {"patch_size": 3}, 32, 2), ("vit_tiny_patch16_224", {}, 40, 8)],
)
def test_patches_that_do_not_fill_the_image_are_refused(name, args, size, lost) -> None:
    with pytest.raises(UserError, match=rf"leave {lost} pixels unseen; set patch_size to one of"):
        backbones.build(spec(name, **args), size)


def test_patches_that_overlap_lose_nothing() -> None:
    assert backbones.build(spec("pvt_v2_b0"), 64).num_features > 0


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_stem_is_one_convolution_at_the_given_stride(name: str) -> None:
    sizes = {}
    for stride in (1, 2):
        backbone = backbones.build(spec(name, STEM | {"stride": stride}), 32).eval()
        first = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d))
        assert first.kernel_size == (3, 3)
        assert first.padding == (1, 1)
        with torch.no_grad():
            maps = backbone.forward_intermediates(
                torch.randn(1, 3, 32, 32), intermediates_only=True
            )
        sizes[stride] = maps[0].shape[-1]
    assert sizes[1] == 2 * sizes[2]


def test_seed_decides_every_byte() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(backbones.build(spec("resnet18", STEM), 32).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


def test_settings_that_a_model_refuses_draw_nothing() -> None:
    import timm

    torch.manual_seed(0)
    ours = backbones.build(spec("test_convnext"), 32).state_dict()
    torch.manual_seed(0)
    plain = timm.create_model("test_convnext", num_classes=0).state_dict()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


def test_untrained_residual_branches_are_not_zero() -> None:
    state = backbones.build(spec("resnet18"), 32).state_dict()
    assert all(bool(state[f"layer{i}.0.bn2.weight"].all()) for i in (1, 2, 3, 4))
    state = backbones.build(spec("regnety_002"), 32).state_dict()
    assert all(bool(value.all()) for key, value in state.items() if key.endswith("conv3.bn.weight"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spec("resnet81"), "no timm model 'resnet81'; did you mean"),
        (spec("resnet18.a1_in1k"), "say 'resnet18', without the tag"),
        (spec("resnet18", checkpoint_path="x"), "'checkpoint_path' of resnet18 is the host's own"),
        (spec("resnet18", global_pool=""), r"returns \(1, 512, 1, 1\); expected features"),
        (spec("vit_tiny_patch16_224", patch_size=64), "vit_tiny_patch16_224"),
        (spec("test_convnext", STEM | {"max_pool": True}), "test_convnext has no max-pool"),
        (spec("densenet121", STEM), "no stem can be put into densenet121"),
        (spec("resnet18", layerz=3), "timm refuses to build resnet18"),
        (spec("test_vit", STEM), "has patches and no stem"),
    ],
)
def test_bad_backbone_is_one_line(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        backbones.build(wrong, 32)
    assert "\n" not in str(caught.value)


def test_inputs_are_pure_transforms_of_the_image() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    rgb = backbones.to_input(images)
    assert torch.allclose((rgb + 1) * 127.5, images.float(), atol=1e-4)
    for kind in ("gray3", "lab_l"):
        shown = backbones.to_input(images, kind)
        assert torch.equal(shown[:, 0], shown[:, 2])
    gray = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(backbones.to_input(gray, "gray3"), backbones.to_input(gray), atol=1e-5)
    white = backbones.to_input(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), "lab_l")
    assert torch.allclose(white, torch.ones_like(white), atol=1e-4)
    with pytest.raises(UserError, match="no input kind 'lab'"):
        backbones.to_input(images, "lab")
