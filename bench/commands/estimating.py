"""`bench estimate`: the memory of a training step, without a card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench import display
from bench.errors import UserError
from bench.exits import OK, SOME_FAILED
from bench.options import FILE, GIGABYTES, POSITIVE, saving

if TYPE_CHECKING:
    from bench.fitting import Fit
    from bench.memory import Estimate


@click.command()
@click.option("--plugins", required=True, help="Names or files, split by commas, or `all`.")
@click.option("--backbone", required=True, help="The name of a timm model.")
@click.option("--image-size", type=POSITIVE, default=224, show_default=True, help="In pixels.")
@click.option("--batch-size", type=POSITIVE, required=True, help="Images per step, all cards.")
@click.option("--cards", type=POSITIVE, default=1, show_default=True, help="That share a batch.")
@click.option("--recipe", default="", help="Of the methods' cards; default their defaults.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@saving
@click.option(
    "--memory",
    type=GIGABYTES,
    default=80.0,
    show_default=True,
    help="Of a card, in GB of 10^9 bytes.",
)
@click.option("--json", "target", type=FILE, metavar="FILE", help="Write the same as JSON.")
def estimate(plugins: str, memory: float, target: Path | None, **options: Any) -> int:
    """Estimate what a training step holds on each card at its peak, and whether it fits.

    The method's own step runs on tensors without values, in a process of its own; no card and no
    data set is needed. Where it does not fit, further estimates say what would make it fit.
    """
    from bench import costing, fitting, manager
    from bench.files import write_atomically
    from bench.memory import LIMITS, Step, estimator
    from bench.probe import refuse_backbone
    from bench.saving import Way

    requests = manager.select(plugins)
    steps = [Step(plugin=request, **options) for request in requests]
    refuse_backbone(
        {"name": options["backbone"], "args": {}, "stem": None},
        options["image_size"],
        checkpointing=options["checkpointing"],
    )
    costing.refuse_unknown_recipe(options["recipe"], requests)
    if target is not None and not target.absolute().parent.is_dir():
        raise UserError(f"--json {target}: no folder {target.absolute().parent}")
    fits: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for step in steps:
        name = manager.method_name(step.plugin)
        try:
            with estimator() as ask:
                fits[name] = fitting.fit(step, round(memory * 1e9), ask)
        except UserError as error:
            refused[name] = str(error)
    if fits:
        saving = Way(options["chunk"], options["checkpointing"]).words
        click.echo(_page(fits, memory, options | {"saving": saving}, LIMITS))
    for line in refused.values():
        click.echo(f"Error: {line}", err=True)
    if target is not None:
        said = _document(fits, refused, memory, options, LIMITS)
        write_atomically(target, display.json(said).encode())
    return SOME_FAILED if refused else OK


def _page(fits: dict[str, Fit], memory: float, options: dict[str, Any], limits: str) -> str:
    from bench.cells import short
    from bench.memory import CATEGORIES, GIB

    headers = ("method", *CATEGORIES, "total, GiB", "GB", f"fits {memory:g} GB", "GFLOP/image")
    rows = []
    for name, found in fits.items():
        parts = [getattr(found.estimate, category) / GIB for category in CATEGORIES]
        total = found.estimate.total
        shown = [f"{part:.3f}" for part in parts]
        fitting = "yes" if found.fits else "NO"
        flops = short(found.estimate.flops_per_image / 1e9)
        rows.append((name, *shown, f"{total / GIB:.2f}", f"{total / 1e9:.2f}", fitting, flops))
    cards, batch = options["cards"], options["batch_size"]
    saving = f" ({options['saving']})" if options["saving"] else ""
    title = (
        f"{options['backbone']}, {options['image_size']} px, {options['precision']}, batch {batch}"
        f"{saving}: {batch // cards} images on each of {cards} cards; GiB per card at a step's peak"
    )
    ways = [line for name, found in fits.items() for line in _ways(name, found)]
    return "\n".join([title, "", display.table(headers, rows), "", *ways, limits])


def _ways(name: str, found: Fit) -> list[str]:
    if found.fits:
        return []
    words = {
        "batch": "at most {0.batch_per_card} images per card (batch {0.batch_size})",
        "precision": "{0.precision}",
        "cards": "{0.cards} cards ({0.batch_per_card} images each)",
        "checkpointing": "--checkpointing (blocks computed again)",
        "chunk": "--chunk {0.chunk} (gradient caching)",
    }
    lines = [f"{name} would fit with:"] if found.ways else [f"{name}: nothing tried makes it fit"]
    lines += [f"  {words[way.change].format(way.step)}: {_gb(way.estimate)}" for way in found.ways]
    lines += [f"  not by {line}" for line in found.ruled_out]
    return [*lines, f"  ({found.estimates} estimates)", ""]


def _gb(estimate: Estimate) -> str:
    return f"{estimate.total / 1e9:.2f} GB"


def _document(
    fits: dict[str, Fit],
    refused: dict[str, str],
    memory: float,
    options: dict[str, Any],
    limits: str,
) -> dict[str, Any]:
    return {
        "asked": options | {"memory_gb": memory},
        "unit": "bytes per card",
        "limits": limits,
        "methods": {
            name: dataclasses.asdict(fit) | {"fits": fit.fits} for name, fit in fits.items()
        },
        "refused": refused,
    }
