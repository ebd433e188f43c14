"""`bench eval`: more protocols for a run, or a checkpoint from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bench import display
from bench.errors import UnknownName, UserError
from bench.exits import OK
from bench.options import (
    FILE,
    POSITIVE,
    as_json,
    json_object,
    leaderboards_dir,
    on_bad_image,
    runs_dir,
)


@click.command("eval")
@click.argument("run", required=False)
@click.option("--evaluations", help="Protocols, split by commas; default all over features.")
@click.option("--track", help="A track that gives backbone, data and image size.")
@click.option("--backbone", help="The name of a timm model.")
@click.option("--backbone-args", default="{}", help="Its arguments as a JSON object.")
@click.option("--weights", type=FILE, help="A checkpoint: .safetensors, or .pt with tensors only.")
@click.option("--data", help="A data set: a name, npz:PATH, imagefolder:PATH, timm:NAME.")
@click.option("--image-size", type=POSITIVE, help="Side of the images in pixels; default 32.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Picks the validation split.")
@on_bad_image
@runs_dir
@leaderboards_dir
@as_json
def eval_(
    run: str | None,
    evaluations: str | None,
    runs_dir: Path,
    leaderboards_dir: Path,
    json: bool,
    **options: Any,
) -> int:
    """Evaluate a finished RUN further, or any checkpoint: --backbone, --weights, --data."""
    from bench import ledger
    from bench.evaluations import NAMES, over_features

    names = [name.strip() for name in evaluations.split(",")] if evaluations else over_features()
    if unknown := [name for name in names if name not in NAMES]:
        raise UnknownName("evaluation", unknown[0], NAMES)
    file = leaderboards_dir / ledger.FILE
    if run is not None:
        context = click.get_current_context()
        if given := [
            key
            for key in options
            if context.get_parameter_source(key) is ParameterSource.COMMANDLINE
        ]:
            option = given[0].replace("_", "-")
            raise UserError(f"--{option} is for checkpoints from elsewhere; leave it or RUN out")
        from bench.external import evaluate_run

        result, notes = evaluate_run(run, names, runs_dir, ledger_file=file), []
    else:
        seed, bad_image = options.pop("seed"), options.pop("on_bad_image")
        backbone, weights, where = _checkpoint(**options)
        from bench.external import evaluate_checkpoint

        result, notes = evaluate_checkpoint(
            backbone,
            weights,
            names=names,
            runs_dir=runs_dir,
            seed=seed,
            on_bad_image=bad_image,
            ledger_file=file,
            **where,
        )
    if json:
        click.echo(display.json(result.document()))
        return OK
    for note in [*result.row.notes, *(note for note in notes if note not in result.row.notes)]:
        click.echo(note)
    metrics = [
        (entry.id, key, f"{entry.metrics[key]:.2f}")
        for entry in result.evaluations.values()
        for key in entry.metrics
    ]
    click.echo(display.table(("evaluation", "metric", "percent"), metrics))
    return OK


def _checkpoint(
    *,
    track: str | None,
    backbone: str | None,
    backbone_args: str,
    weights: Path | None,
    data: str | None,
    image_size: int | None,
) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """Return the backbone's spec, the file, and the data set's name and size for `bench eval`."""
    spec = {"name": backbone, "args": json_object("--backbone-args", backbone_args), "stem": None}
    store_size = None
    if track is not None:
        from bench.track import load_track

        chosen = load_track(track)
        spec = chosen.backbone if backbone is None else spec
        data, image_size = data or chosen.data["name"], image_size or chosen.image_size
        store_size = chosen.store_size
    if weights is None or data is None or spec["name"] is None:
        raise UserError(
            "expected a RUN, or --weights with --backbone and --data or with --track; "
            "see `bench eval --help`"
        )
    images = {"dataset_name": data, "image_size": image_size or 32, "store_size": store_size}
    return spec, weights, images
