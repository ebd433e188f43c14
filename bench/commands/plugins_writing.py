"""Commands for plugin authors: `bench new-plugin`."""

from __future__ import annotations

from pathlib import Path

import click

from bench.exits import OK
from bench.options import FOLDER


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--into", type=FOLDER, metavar="DIR", help="The package's folder; default bench-NAME."
)
@click.option("--author", help="For LICENSE and metadata; default git's user.name.")
def new_plugin(name: str, into: Path | None, author: str | None) -> int:
    """Write an installable package with a method NAME that works, its tests and its CI."""
    from bench import new_plugin as scaffold

    written = scaffold.write(name, into, author=author)
    click.echo("\n".join(str(path) for path in written))
    return OK
