"""What lies beside the results in a folder of boards: ledger, recipes, reproductions, claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import claims, cost_page, ledger, recipes, reproductions, sheets, training_flops
from bench.errors import UserError
from bench.recipes import Recipe
from bench.reproductions import Record
from bench.training_flops import Counts


@dataclass(frozen=True)
class Beside:
    """What pages show of a boards' folder besides its results.

    Attributes:
        ledger: the lines of test reads.
        recipes: track id -> the tuned recipes of its methods, by name.
        reproduced: runs that were trained again, the latest last.
        problems: a line for each file that cannot be read.
        claims: the file name of the page of claims, if the folder has studies.
        costs: the file name of the page of costs, if the folder has any.
        sheets: track id -> file names of the sheets of images in `sheets/<track>/`.
        flops: training FLOPs that were counted, see `bench.training_flops`.
    """

    ledger: Sequence[Mapping[str, Any]] = ()
    recipes: Mapping[str, tuple[Recipe, ...]] = field(default_factory=dict)
    reproduced: Sequence[Record] = ()
    problems: tuple[str, ...] = ()
    claims: str = ""
    costs: str = ""
    sheets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flops: Counts = field(default_factory=dict)

    def recipes_of(self, track: Mapping[str, Any]) -> tuple[Recipe, ...]:
        """Return the recipes of a page's track; see `bench.track.recipes_id`."""
        return self.recipes.get(str(track.get("recipes", track["id"])), ())


def read(folder: Path, *, recipes_folder: Path | None = None) -> Beside:
    """Return what lies in a boards' folder.

    Args:
        recipes_folder: where recipes lie if not in the folder's own `recipes/`.
    """
    found: dict[str, list[Recipe]] = {}
    problems = ledger.problems(folder / ledger.FILE)
    place = recipes_folder or folder / recipes.FOLDER
    for file in sorted(place.glob("*/*.toml")):
        try:
            recipe = recipes.read(file)
        except UserError as error:
            problems.append(str(error).replace(str(file), f"{file.parent.name}/{file.name}"))
        else:
            found.setdefault(file.parent.name, []).append(recipe)
    try:
        flops = training_flops.read(folder)
    except UserError as error:
        flops, problems = {}, [*problems, str(error).replace(f"{folder}/", "")]
    return Beside(
        flops=flops,
        ledger=ledger.read(folder / ledger.FILE),
        recipes={track: tuple(kept) for track, kept in found.items()},
        reproduced=reproductions.read(folder),
        problems=tuple(problems),
        claims=claims.PAGE if claims.exists(folder) else "",
        costs=cost_page.PAGE if cost_page.exists(folder) else "",
        sheets=sheets.published(folder),
    )
