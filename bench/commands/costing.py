"""`bench cost`: what a training step of each method costs, measured or estimated."""

from __future__ import annotations

from pathlib import Path

import click

from bench import display
from bench.errors import UserError
from bench.exits import NOTHING_LOADED, OK, SOME_FAILED
from bench.options import (
    GIGABYTES,
    POSITIVE,
    SECONDS,
    as_json,
    compiling,
    leaderboards_dir,
    saving,
)
from bench.saving import Way


@click.command()
@click.option("--plugins", required=True, help="Names or files, split by commas, or `all`.")
@click.option("--backbone", required=True, help="The name of a timm model.")
@click.option("--image-size", type=POSITIVE, required=True, help="Side of the images in pixels.")
@click.option("--batch-sizes", required=True, help="Source images over all cards, by commas.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--cards", type=POSITIVE, default=1, show_default=True, help="That share a batch.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--recipe", default="", help="A recipe of the methods; default: their papers'.")
@click.option("--threads", type=POSITIVE, default=1, show_default=True, help="Of one cell.")
@saving
@compiling
@click.option("--each-way", is_flag=True, help="Beside the plain step, each of these three alone.")
@click.option("--estimate", is_flag=True, help="Measure nothing: memory alone, without a card.")
@click.option("--memory", type=GIGABYTES, help="Of a card, in GB of 10^9 bytes; default: of ours.")
@click.option("--stall", type=SECONDS, default=900.0, help="Seconds that a window may take.")
@click.option("--force", is_flag=True, help="Measure again what is finished.")
@leaderboards_dir
@as_json
def cost(
    plugins: str,
    backbone: str,
    image_size: int,
    batch_sizes: str,
    device: str,
    cards: int,
    precision: str,
    recipe: str,
    threads: int,
    chunk: int | None,
    checkpointing: bool,
    compile: bool,
    each_way: bool,
    estimate: bool,
    memory: float | None,
    stall: float,
    force: bool,
    leaderboards_dir: Path,
    json: bool,
) -> int:
    """Measure memory and speed of each method's training step; render `cost.md`.

    Methods of one batch size take turns, each in a process of its own. Finished cells are kept.
    """
    from bench import cost_page, costing, manager
    from bench.commands.running import device_of

    request = costing.Request(
        plugins=tuple(manager.select(plugins)),
        backbone=backbone,
        image_size=image_size,
        batch_sizes=_batch_sizes(batch_sizes),
        leaderboards_dir=leaderboards_dir,
        device=device_of(device),
        cards=cards,
        precision=precision,
        recipe=recipe,
        threads=threads,
        way=Way(chunk, checkpointing, compile),
        each_way=each_way,
        estimate=estimate,
        card_bytes=None if memory is None else round(memory * 1e9),
        stall=stall,
        force=force,
    )
    cells, missing = costing.carry_out(request, click.echo if not json else _to_stderr)
    for reason in missing:
        click.echo(f"Error: {reason}", err=True)
    if not cells:
        return SOME_FAILED if estimate else NOTHING_LOADED
    if json:
        click.echo(display.json([cell.document() for cell in cells]))
    else:
        click.echo(f"table: {leaderboards_dir / cost_page.PAGE}")
    failed = missing or any(cell.status == "failed" for cell in cells)
    return SOME_FAILED if failed else OK


def _batch_sizes(given: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated list, each once.

    Raises:
        UserError: one of them is no whole number above 0.
    """
    parts = [part.strip() for part in given.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit() and int(part))]:
        raise UserError(
            f"--batch-sizes {given!r}: {wrong[0]!r} is no batch size; expected whole numbers above "
            "0, split by commas"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)
