"""A run's backbone as a folder for others: weights under timm's names, config, model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from bench import integrity, modelcard, results, worker
from bench.errors import UserError
from bench.results import Result

WEIGHTS = "model.safetensors"
STEM_LAYERS = (nn.Conv2d, nn.Identity)  # all that `bench.backbones.build` ever puts in


@dataclass(frozen=True)
class Finished:
    """A finished run: its result, the result's file, and the file of its backbone."""

    result: Result
    path: Path
    weights: Path


@dataclass(frozen=True)
class Recipe:
    """How a backbone is built outside of `bench`.

    Attributes:
        args: arguments of `timm.create_model` beside the name and `num_classes=0`.
        layers: module's name -> its constructor in `torch.nn`, for what the track put in the place
            of timm's stem. Empty where `timm.create_model` alone builds the backbone.
        complete: whether args and layers are known to build it.
    """

    args: dict[str, Any]
    layers: dict[str, str]
    complete: bool


def find(run: str, runs_dir: Path) -> Finished:
    """Return a finished run by its id or folder, or by a result whose backbone lies in `runs_dir`.

    Raises:
        UserError: no such run, it is not finished, not valid, or trained nothing.
    """
    given = Path(run)
    if given.suffix == ".json":
        path, folder = given, runs_dir / results.read(given).run_id
    else:
        folder = given if (given / "run.json").is_file() else runs_dir / given.name
        orders = worker.read_orders(folder)
        path = results.path_of_run(orders, folder.resolve().name, folder.resolve().parent)
    result = results.read(path)
    if result.status != "done":
        reason = f": {result.reason}" if result.reason else ""
        raise UserError(f"{result.run_id} is {result.status}{reason}; only sound runs are exported")
    if "backbone.safetensors" not in result.artifacts or not result.spec.get("backbone"):
        raise UserError(f"{result.run_id} trained no backbone; there is nothing to export")
    return Finished(result, path, folder / "backbone.safetensors")


def export(run: Finished, out: Path) -> Path:
    """Write weights, config.json and README.md into a new folder; return it.

    The weights are the run's own bytes: their sha256 is the one that its result records.

    Raises:
        UserError: the folder exists, or the backbone is not what the result records.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it")
    spec = run.result.spec
    sha256 = run.result.artifacts["backbone.safetensors"].sha256
    try:
        load = partial(integrity.load_backbone, spec["backbone"], spec["image_size"])
        backbone = load(run.weights, sha256)
    except integrity.IntegrityError as error:
        raise UserError(f"{run.result.run_id} in {run.weights.parent}: {error}") from None
    recipe = recipe_of(backbone, spec, run.weights)
    config = configuration(run.result, recipe, backbone.num_features)
    card = modelcard.render(
        run.result,
        modelcard.context(run.path, run.result),
        loading=loading(spec, recipe),
        num_features=backbone.num_features,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        whole = Path(folder) / out.name
        whole.mkdir()
        shutil.copyfile(run.weights, whole / WEIGHTS)
        (whole / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (whole / "README.md").write_text(card, encoding="utf-8")
        whole.rename(out)
    return out


@torch.no_grad()
def recipe_of(backbone: nn.Module, spec: dict[str, Any], weights: Path) -> Recipe:
    """Return how to build a run's backbone, found by doing so and comparing features.

    Equal names and shapes do not suffice: a convolution of another stride, or a pooling that is
    not there, has the same weights.
    """
    name, args, size = spec["backbone"]["name"], spec["backbone"]["args"], spec["image_size"]
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = backbone.eval()(images)
    found = None
    for given in ({**args, "img_size": size}, args):
        try:
            plain = timm.create_model(name, num_classes=0, **given)
        except (TypeError, RuntimeError, ValueError, AssertionError):
            continue  # convolutional networks take no img_size
        layers = dict(_replaced(backbone, plain))
        if any(type(layer) not in STEM_LAYERS for layer in layers.values()):
            continue
        for path, layer in layers.items():
            plain.set_submodule(path, _like(layer))
        try:
            plain.load_state_dict(backbone.state_dict(), strict=True)
        except RuntimeError:
            continue
        if torch.allclose(plain.eval()(images), wanted, rtol=1e-5, atol=1e-6):
            found = Recipe(given, {path: repr(layer) for path, layer in layers.items()}, True)
            break
    return found or Recipe(args, {}, False)


def _replaced(
    ours: nn.Module, theirs: nn.Module, path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and layer of each place in which two networks differ."""
    for name, child in ours.named_children():
        other = getattr(theirs, name, None)
        if repr(child) == repr(other):
            continue
        if type(child) is type(other) and next(child.children(), None) is not None:
            yield from _replaced(child, other, f"{path}{name}.")
        else:
            yield f"{path}{name}", child


def _like(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Conv2d):
        return nn.Identity()
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        bias=layer.bias is not None,
    )


def configuration(run: Result, recipe: Recipe, num_features: int) -> dict[str, Any]:
    """Return config.json: timm's own form, and under `bench` all that decided the weights.

    `architecture`, by which timm finds a model, is there only where timm's model is this backbone.
    """
    size = run.spec["image_size"]
    plain = recipe.complete and not recipe.layers
    named = {"architecture": run.spec["backbone"]["name"]} if plain else {}
    return named | {
        "num_classes": 0,
        "num_features": num_features,
        "model_args": recipe.args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "mean": [0.5, 0.5, 0.5],  # [0, 1] to [-1, 1], as `bench.backbones.to_input`
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": 0,
        },
        "bench": {
            "run_id": run.run_id,
            "track": run.track,
            "spec": run.spec,
            "input": modelcard.input_kind(run),
            "replaced_layers": recipe.layers,
            "weights_sha256": run.artifacts["backbone.safetensors"].sha256,
            "protocols": [
                {"id": entry.id, "version": entry.version, "hash": key, "metrics": entry.metrics}
                for key, entry in sorted(run.evaluations.items())
            ],
        },
    }


def loading(spec: dict[str, Any], recipe: Recipe) -> list[str]:
    """Return the card's Python: each text builds the backbone and loads its weights.

    Where timm alone does not build it there are two: with the replaced layers, and with `bench`.
    """
    name, args = spec["backbone"]["name"], "".join(f", {k}={v!r}" for k, v in recipe.args.items())
    if recipe.complete and not recipe.layers:
        weights = f'checkpoint_path="{WEIGHTS}"'
        return [
            f'import timm\n\nbackbone = timm.create_model("{name}", num_classes=0{args}, {weights})'
        ]
    load = f'backbone.load_state_dict(load_file("{WEIGHTS}"))'
    by_bench = [
        "from bench.backbones import build",
        "from safetensors.torch import load_file",
        "",
        f"backbone = build({spec['backbone']!r}, {spec['image_size']})",
        load,
    ]
    by_timm = [
        "import timm",
        "from safetensors.torch import load_file",
        "from torch import nn",
        "",
        f'backbone = timm.create_model("{name}", num_classes=0{args})',
        *(f'backbone.set_submodule("{at}", nn.{layer})' for at, layer in recipe.layers.items()),
        load,
    ]
    ways = [by_timm, by_bench] if recipe.complete else [by_bench]
    return ["\n".join(lines) for lines in ways]
