"""timm backbones at any image size: the small-image stem, pooled stages, input transforms.

Two settings differ from timm's defaults. Residual nets are built with `zero_init_last=False`: with
timm's default an untrained one is nearly the identity and the random floor falls from 73 to 15 % on
Fashion-MNIST. A stem may be replaced by one 3x3 convolution, the field's choice for small images.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from bench.diffusion import linear_schedule
from bench.errors import UserError
from bench.identity import stream

MAX_STAGES = 6
INPUTS = ("rgb", "gray3", "lab_l", "noisy(t)")
NOISE_DRAWS = 4  # that features of noisy images are averaged over
OWN = ("pretrained", "num_classes", "in_chans", "img_size", "features_only", "checkpoint_path")


def build(spec: dict[str, Any], image_size: int) -> nn.Module:
    """Return the timm model of `spec` = {"name", "args", "stem"}: features out, random weights.

    `num_features` of the model is the width of what it returns, also where timm counts the layer
    before (MobileNets have a convolution after it).

    Args:
        spec: `stem` is None or {"kernel": k, "stride": s, "max_pool": bool}; ViTs take none.
        image_size: side of the images in pixels, for models that must know it.

    Raises:
        UserError: no such model, an argument that it refuses, an image size at which it gives no
            features, or a stem where none can be put.
    """
    import timm

    name, args, stem = spec["name"], dict(spec["args"]), spec["stem"]
    if name not in timm.list_models():
        hint = _nearest(name, timm.list_models())
        raise UserError(f"no timm model {name!r}; {hint}")
    if own := sorted(set(args) & set(OWN)):
        raise UserError(f"backbone argument {own[0]!r} of {name} is the host's own; leave it out")
    model = _create(name, args, image_size)
    if stem is not None:
        _replace_stem(model, name, stem)
    _refuse_cut_images(model, name, image_size)
    model.num_features = _width(model, name, image_size)
    return model


def _refuse_cut_images(model: nn.Module, name: str, image_size: int) -> None:
    """Raise UserError if patches do not fill the image: timm leaves the rest out without a word."""
    embed = getattr(model, "patch_embed", None)
    sides = getattr(embed, "patch_size", None)
    if not isinstance(sides, tuple) or getattr(embed, "dynamic_img_pad", False):
        return
    first = next((m for m in embed.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.stride != first.kernel_size:
        return  # patches that overlap lose nothing
    if any(image_size % side for side in sides):
        fits = [side for side in range(1, image_size // 4 + 1) if image_size % side == 0]
        raise UserError(
            f"{name} cuts images of {image_size} pixels into patches of {sides[0]}, which leave "
            f"{image_size % sides[0]} pixels unseen; set patch_size to one of {fits} "
            "(--backbone-args, args in a track), or another image size"
        )


def _nearest(name: str, known: list[str]) -> str:
    if (plain := name.partition(".")[0]) in known:
        return f"weights are random here: say {plain!r}, without the tag"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"


def _create(name: str, args: dict[str, Any], image_size: int) -> nn.Module:
    """Build with the host's settings where the model knows them; those it refuses draw nothing."""
    import timm

    ours: dict[str, Any] = {"zero_init_last": False, "img_size": image_size}
    if args.get("dynamic_img_size"):
        del ours["img_size"]
    state = torch.get_rng_state()
    while True:
        try:
            return timm.create_model(
                name, pretrained=False, num_classes=0, in_chans=3, **(ours | args)
            )
        except Exception as error:  # whatever a model makes of a user's arguments
            unknown = "unexpected keyword" in str(error)
            refused = [key for key in ours if unknown and key not in args and key in str(error)]
            if not refused:
                raise UserError(
                    f"timm refuses to build {name} with {args}: {_line(error)}"
                ) from None
            del ours[refused[0]]
            torch.set_rng_state(state)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@torch.no_grad()
def _width(model: nn.Module, name: str, image_size: int) -> int:
    """Return D of the features (B, D) that the model gives at this image size."""
    first = next(model.parameters())
    try:
        features = model.eval()(first.new_zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        text = f"{name} takes no images of {image_size} pixels: {_line(error)}"
        raise UserError(f"{text}; take a larger size or another backbone") from None
    model.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"{name} with these arguments returns {shape}; expected features (B, D)")
    return features.shape[1]


def _replace_stem(model: nn.Module, name: str, stem: dict[str, Any]) -> None:
    """Put one k x k convolution in the place of everything before the first stage."""
    if hasattr(model, "patch_embed"):
        raise UserError(
            f"{name} has patches and no stem; leave stem out (--stem none), set args.patch_size"
        )
    if hasattr(model, "conv1") and hasattr(model, "maxpool"):  # ResNets, deep stems too
        old = [m for m in model.conv1.modules() if isinstance(m, nn.Conv2d)]
        model.conv1 = _convolution(old[0], old[-1].out_channels, stem)
        if not stem["max_pool"]:
            model.maxpool = nn.Identity()
        return
    if stem["max_pool"]:
        raise UserError(f"{name} has no max-pool after its stem; set max_pool = false")
    if isinstance(getattr(model, "conv_stem", None), nn.Conv2d):  # EfficientNets, MobileNets
        model.conv_stem = _convolution(model.conv_stem, model.conv_stem.out_channels, stem)
    elif _is_convnext(model):
        old = [m for m in model.stem if isinstance(m, nn.Conv2d)]
        model.stem[0] = _convolution(old[0], old[-1].out_channels, stem)
        nn.init.trunc_normal_(model.stem[0].weight, std=0.02)  # as timm draws all of a ConvNeXt
        for index, layer in enumerate(model.stem):
            if index and isinstance(layer, nn.Conv2d):
                model.stem[index] = nn.Identity()
    else:
        raise UserError(f"no stem can be put into {name}; leave stem out (--stem none)")


def _is_convnext(model: nn.Module) -> bool:
    stem = getattr(model, "stem", None)
    return isinstance(stem, nn.Sequential) and isinstance(stem[0], nn.Conv2d)


def _convolution(old: nn.Conv2d, channels: int, stem: dict[str, Any]) -> nn.Conv2d:
    """Return the new stem, initialised as ResNets are (He et al. 2015, fan out)."""
    kernel = stem["kernel"]
    new = nn.Conv2d(
        old.in_channels,
        channels,
        kernel,
        stride=stem["stride"],
        padding=kernel // 2,
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def stages(backbone: nn.Module, images: Tensor, *, one_pass: bool = False) -> dict[str, Tensor]:
    """Return pooled features (B, D) per stage, in order; the last, "last", is `backbone(images)`.

    Stages are timm's `forward_intermediates`, averaged over space (a ViT's patch tokens); of many
    blocks at most six are taken, evenly, and named by their number.

    Args:
        one_pass: compute "last" from the same pass as the stages, for backbones where
            `is_one_pass` says that it is the same.
    """
    if not hasattr(backbone, "forward_intermediates"):
        return {"last": backbone(images)}
    final, maps = backbone.forward_intermediates(images)
    last = backbone.forward_head(final) if one_pass else backbone(images)
    pooled = {
        name: values.mean((2, 3)) if values.ndim == 4 else values.mean(1)
        for name, values in _chosen(maps).items()
    }
    return pooled | {"last": last}


def stage_maps(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the stages' maps, (B, D, h, w) or (B, N, D), in order and named as `stages` does.

    A backbone without intermediates has "last" only, its features (B, D).
    """
    if not hasattr(backbone, "forward_intermediates"):
        return {"last": backbone(images)}
    return _chosen(backbone.forward_intermediates(images, intermediates_only=True))


def _chosen(maps: list[Tensor]) -> dict[str, Tensor]:
    count = min(MAX_STAGES, len(maps))
    chosen = sorted({round((i + 1) * len(maps) / count) - 1 for i in range(count)})
    return {f"stage{i + 1}": maps[i] for i in chosen}


def is_one_pass(backbone: nn.Module, images: Tensor) -> bool:
    """Return whether head and intermediates of one pass give the bytes of `backbone(images)`."""
    if not (hasattr(backbone, "forward_intermediates") and hasattr(backbone, "forward_head")):
        return False
    final, _ = backbone.forward_intermediates(images)
    return torch.equal(backbone.forward_head(final), backbone(images))


def to_input(images: Tensor, kind: str = "rgb", draw: int = 0) -> Tensor:
    """Return uint8 (B, 1 or 3, H, W) as float32 (B, 3, H, W) in [-1, 1], beyond it with noise.

    Args:
        kind: rgb; gray3 (luma, three times); lab_l (CIE L* of the image, three times); noisy(t)
            (x_t of q(x_t | image), t the index in the linear schedule of 1,000 steps; the same
            noise in all channels of an image that has but one).
        draw: which of the NOISE_DRAWS fixed noises, for noisy(t).
    """
    return from_unit(images.float().div(255), kind, draw)


def from_unit(unit: Tensor, kind: str = "rgb", draw: int = 0) -> Tensor:
    """Return float (B, 1 or 3, H, W) in [0, 1], as views give it, as `to_input` returns it."""
    planes = unit.shape[1]
    if planes == 1:
        unit = unit.expand(-1, 3, -1, -1)
    step = noise_step(kind)
    if kind == "rgb" or step is not None:
        shown = unit
    elif kind == "gray3":
        luma = unit.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        shown = (unit * luma).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    elif kind == "lab_l":
        shown = lightness(unit).expand(-1, 3, -1, -1)
    else:
        raise UserError(f"no input kind {kind!r} in this release; known: {', '.join(INPUTS)}")
    shown = (shown * 2 - 1).contiguous()
    return shown if step is None else with_noise(shown, step, draw, planes)


def noise_step(kind: str) -> int | None:
    """Return t of the input kind noisy(t), None of any other kind."""
    found = re.fullmatch(r"noisy\((\d+)\)", kind)
    return int(found[1]) if found else None


def with_noise(images: Tensor, step: int, draw: int, planes: int = 3) -> Tensor:
    """Return x_step of q(x_step | images) (Ho et al. 2020, Eq. 4) under a fixed noise.

    One noise for all images, so that what a backbone says of an image does not depend on the
    others that are shown with it. With one plane of it, all channels get the same.
    """
    generator = torch.Generator().manual_seed(stream(0, "evaluate", "noisy", draw))
    noise = torch.randn(1, planes, *images.shape[2:], generator=generator)
    kept = float(linear_schedule().alpha_bars[step])
    return math.sqrt(kept) * images + math.sqrt(1 - kept) * noise.to(images)


def lightness(unit: Tensor) -> Tensor:
    """Return CIE L* / 100 of sRGB (B, 3, H, W) in [0, 1], white D65: (B, 1, H, W) in [0, 1]."""
    linear = torch.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    weights = unit.new_tensor([0.2126729, 0.7151522, 0.0721750]).view(1, 3, 1, 1)
    luminance = (linear * weights).sum(1, keepdim=True)
    small = luminance <= (6 / 29) ** 3
    root = torch.where(
        small, luminance * (841 / 108) + 4 / 29, luminance.clamp_min(1e-8) ** (1 / 3)
    )
    return (1.16 * root - 0.16).clamp(0, 1)
