"""The pictures of a page: what each shows, and what draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import figures, recipes, statistics, training_flops
from bench.beside import Beside
from bench.columns import is_distance
from bench.rows import build

if TYPE_CHECKING:
    from bench.page_files import Page


def figure_name(track_id: str) -> str:
    """Return the file name of a track's picture of accuracy against cost."""
    return f"{track_id}.svg"


def tuning_name(track_id: str) -> str:
    """Return the file name of a track's picture of its trials."""
    return f"{track_id}-tuning.svg"


def flops_name(track_id: str) -> str:
    """Return the file name of a track's picture of accuracy against training FLOPs."""
    return f"{track_id}-flops.svg"


def tuning_curves(page: Page, beside: Beside) -> list[figures.Curve]:
    """Return the expected best validation score of each of the page's methods that was tuned."""
    titles = {result.method: result.row.title or result.method for result in page.results}
    return [
        figures.Curve(
            label=titles[recipe.method],
            scores=tuple(
                recipes.expected_best(
                    [trial.score for trial in recipe.trials],
                    lowest=is_distance(recipe.headline["id"], recipe.headline["metric"]),
                )
            ),
        )
        for recipe in beside.recipes_of(page.track)
        if recipe.method in titles
    ]


def flops_curves(page: Page, pages: Sequence[Page], beside: Beside) -> list[figures.Sweep]:
    """Return each main method's headline by its training GFLOPs, on a track and on its smaller
    ones; none where the track names no smaller ones."""
    others = page.track.get("smaller", ())
    found: dict[str, dict[float, statistics.Cell]] = {}
    for each in [p for p in pages if others and p.track["id"] in (page.track["id"], *others)]:
        board = build(each.track, each.results)
        for row in board.rows:
            cell = board.cells.get((row.key, board.headline)) if board.headline else None
            spent = training_flops.of_run(beside.flops, row.first.spec)
            if row.section == "main" and cell is not None and spent:
                label = row.first.row.title or row.first.method
                found.setdefault(label, {})[spent / 1e9] = cell
    return [
        figures.Sweep(
            label=label,
            points=tuple((x, c.mean, c.low, c.high) for x, c in sorted(cells.items())),
        )
        for label, cells in sorted(found.items())
        if len(cells) > 1
    ]


def of_page(
    page: Page, pages: Sequence[Page], beside: Beside
) -> dict[str, tuple[figures.Rows, Callable[[Any], str]]]:
    """Return a page's pictures: file name -> what it shows, and what draws that."""
    name = page.track["id"]
    methods = [r.row.title or r.method for r in page.results if r.row.role == "method"]
    cost = partial(figures.cost_svg, methods=methods)
    tuned = partial(figures.tuning_svg, methods=methods)
    spent = partial(figures.sweep_svg, xlabel="training GFLOP of a run", digits=2, methods=methods)
    headline = build(page.track, page.results).headline
    ylabel = headline.title if headline is not None else ""
    if headline is not None and headline.is_distance:
        cost = partial(cost, ylabel=headline.title)
        tuned = partial(tuned, unit=headline.title)
    drawn = {
        figure_name(name): (cost_points(page), cost),
        tuning_name(name): (tuning_curves(page, beside), tuned),
        flops_name(name): (flops_curves(page, pages, beside), partial(spent, ylabel=ylabel)),
    }
    return {name: shown for name, shown in drawn.items() if shown[0]}


def cost_points(page: Page) -> list[figures.Point]:
    """Return what a page's picture shows: its main rows with numbers; none if nothing trained."""
    board = build(page.track, page.results)
    points = [
        figures.Point(
            label=row.first.row.title or row.first.method,
            role=row.first.row.role,
            seconds=float(np.median([result.cost.train_seconds for result in row.good])),
            accuracy=cell.mean,
            low=cell.low,
            high=cell.high,
        )
        for row in board.rows
        if row.section == "main"
        and board.headline is not None
        and (cell := board.cells.get((row.key, board.headline))) is not None
    ]
    return points if any(point.seconds > 0 for point in points) else []
