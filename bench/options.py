"""The options that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.errors import UserError

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.IntRange(min=1)


class FiniteRange(click.FloatRange):
    """A number in a range, none that is infinite or no number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not finite; give a finite number.", param, ctx)
        return number


SECONDS = FiniteRange(min=0, min_open=True)
GIGABYTES = FiniteRange(min=0, min_open=True, max=1e9)


def json_object(option: str, text: str) -> dict[str, Any]:
    """Return what an option says as a JSON object.

    Raises:
        UserError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f'{option} {text!r}: expected a JSON object, {{"patch_size": 4}}')
    return value


def joined(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


as_json = click.option("--json", "json", is_flag=True, help="Print JSON.")
runs_dir = click.option(
    "--runs-dir", type=FOLDER, default=Path("runs"), show_default=True, help="The working folder."
)
leaderboards_dir = click.option(
    "--leaderboards-dir",
    type=FOLDER,
    default=Path("leaderboards"),
    envvar="BENCH_LEADERBOARDS",
    show_default=True,
    help="Where the published boards lie, and the ledger of test reads.",
)
on_bad_image = click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Whether broken image files stop a run, or are left out and counted.",
)
saving = joined(
    click.option("--chunk", type=POSITIVE, help="Source images embedded at a time; saves memory."),
    click.option("--checkpointing", is_flag=True, help="Recompute activations; saves memory."),
)
compiling = click.option("--compile", is_flag=True, help="Compile networks; CUDA graphs on a card.")
selecting = joined(
    click.option("--plugins", required=True, help="Names or files, split by commas, or `all`."),
    click.option("--track", default="digits", show_default=True, help="A track, or a TOML file."),
    click.option(
        "--dataset", help="Another data set: a name, npz:PATH, imagefolder:PATH, timm:NAME."
    ),
    click.option("--backbone", help="Another backbone: the name of a timm model."),
    click.option("--backbone-args", metavar="JSON", help="Arguments of it, as timm takes them."),
    click.option("--stem", metavar="KxS", help="Its first convolution, 3x2 or 7x2+pool; or none."),
    click.option("--image-size", type=POSITIVE, help="Another side of the images, in pixels."),
    click.option("--epochs", type=POSITIVE, help="Another budget, in epochs."),
    click.option(
        "--budget", metavar="KIND=N", help="Or in images, steps, flops or device-seconds."
    ),
    click.option("--batch-size", type=POSITIVE, help="Source images per step."),
    saving,
    compiling,
    click.option("--limit", type=POSITIVE, help="Only N training images, drawn at random."),
    click.option(
        "--samples", type=POSITIVE, help="Images that generators draw, and their reference."
    ),
    click.option("--allow-small", is_flag=True, help="Fewer than 1,000; the columns say so."),
    click.option(
        "--sampling", multiple=True, metavar="FIELD=V", help="Generators' other samplers."
    ),
    click.option("--seeds", help="3 is 0, 1, 2; 0,1,2 is a list. Default: the track's first 3."),
    click.option("--set", "settings", multiple=True, metavar="METHOD.FIELD=V", help="A variant."),
    click.option(
        "--hand-tuned",
        multiple=True,
        metavar="METHOD=N",
        help="Say that N trials by hand are behind a method's recipe.",
    ),
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Force it."),
    click.option("--threads", type=POSITIVE, help="Threads of one run."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--processes", type=POSITIVE, default=1, show_default=True, help="Of one run."),
    on_bad_image,
    runs_dir,
    leaderboards_dir,
)
