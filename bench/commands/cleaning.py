"""`bench clean`: room on the disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from bench.exits import OK
from bench.options import runs_dir


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@runs_dir
def clean(dry_run: bool, runs_dir: Path) -> int:
    """Remove what finished runs no longer need and what is made anew when a run asks for it.

    Results, backbones, samples, logs and unfinished runs stay.
    """
    from bench import cleaning

    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for waste in list(cleaning.waste(runs_dir)):
        counts[waste.kind] += 1
        sizes[waste.kind] += waste.size
        if not dry_run:
            cleaning.remove(waste)
    for kind, count in sorted(counts.items()):
        click.echo(f"{count} {kind}, {sizes[kind] / 2**30:.2f} GiB")
    done = "would be freed" if dry_run else "freed"
    click.echo(f"{sum(sizes.values()) / 2**30:.2f} GiB {done} in {runs_dir}")
    return OK
