"""Commands about plugins: `bench list`, `bench info`, `bench check`."""

from __future__ import annotations

from pathlib import Path

import click

from bench import display
from bench.errors import UserError
from bench.exits import NOTHING_LOADED, OK
from bench.options import as_json


@click.command("list")
@click.option("--load", is_flag=True, help="Import each plugin, in a child, and say which fail.")
@as_json
def list_(load: bool, json: bool) -> int:
    """List the installed methods."""
    from bench import inventory

    found = inventory.methods(load=load)
    click.echo(display.json(found) if json else display.methods(found))
    return OK


@click.command()
@click.argument("name")
@as_json
def info(name: str, json: bool) -> int:
    """Show a method's card: an installed NAME or a file."""
    from bench import inventory, manager

    found = manager.find(name)
    answer = inventory.describe([name])[name]
    if answer["error"]:
        click.echo(f"Error: {answer['error']}", err=True)
        return NOTHING_LOADED
    file = found if isinstance(found, Path) else found.file
    click.echo(display.json(answer) if json else display.card(answer, str(file)))
    return OK


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check; may be repeated.")
@click.option("--expect", multiple=True, metavar="CHECK=WHY", help="A check that fails, and why.")
@click.option("--set", "settings", multiple=True, metavar="METHOD.FIELD=V", help="A variant.")
@as_json
def check(
    names: tuple[str, ...],
    only: tuple[str, ...],
    expect: tuple[str, ...],
    settings: tuple[str, ...],
    json: bool,
) -> int:
    """Check that plugins keep the contract: installed NAMES or files."""
    from bench.checks import main as conform

    expected = dict(_pair(text, "--expect", "CHECK=WHY") for text in expect)
    return conform(
        list(names),
        expected_failures=expected,
        as_json=json,
        only=only or None,
        settings=settings,
    )


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{option} {text!r}: expected {form}")
    return name, value
