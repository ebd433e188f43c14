"""`bench export`: a run's backbone as a folder for others."""

from __future__ import annotations

from pathlib import Path

import click

from bench.exits import OK
from bench.options import FOLDER, runs_dir


@click.command()
@click.argument("run")
@click.option("--out", type=FOLDER, help="A new folder; default RUNS_DIR/exported/<run id>.")
@runs_dir
def export(run: str, out: Path | None, runs_dir: Path) -> int:
    """Write weights with timm's names, config.json and a model card of a finished RUN.

    RUN is a run's id or folder, or a result file whose backbone lies in the working folder.
    """
    from bench.export import export as write
    from bench.export import find

    finished = find(run, runs_dir)
    click.echo(str(write(finished, out or runs_dir / "exported" / finished.result.run_id)))
    return OK
