"""Where a claim's runs stand: one track with its data, its methods and their recipes, as planned.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import budgets, manager, recipes, session
from bench.errors import UserError
from bench.plan import RAW_PIXELS, RAW_PIXELS_METHOD
from bench.probe import probe
from bench.track import pin_data, recipes_id

if TYPE_CHECKING:
    from bench.claim import Side
    from bench.track import Track


@dataclass(frozen=True)
class Ground:
    """What planning on one track needs.

    Attributes:
        data: facts and splits, as `bench.plan.plan` takes them. kept: {method: tuned recipe}.
        methods: {method: its probe}. protocols: what the probe says of the track's own.
        asking: what a second probe for other settings is asked with.
    """

    track: Track
    data: dict[str, Any]
    kept: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    protocols: list[dict[str, Any]]
    asking: dict[str, Any]


def ground(
    track: Track,
    methods: Iterable[str],
    seeds: list[int],
    evaluations: dict[str, dict[str, Any]],
    *,
    runs_dir: Path,
    leaderboards_dir: Path,
) -> Ground:
    """Return what is known of a track and of those of the methods that are installed.

    Raises:
        UserError: the data set or an evaluation is refused.
    """
    names = [name for name in dict.fromkeys(methods) if name in manager.installed()]
    folders = session.recipe_folders(leaderboards_dir)
    kept = {name: r for name in names if (r := recipes.find(folders, recipes_id(track), name))}
    asking: dict[str, Any] = {
        "recipe": track.recipe,
        "tuned": {name: recipe.config for name, recipe in kept.items()},
        "runs_dir": runs_dir,
        "headline": track.headline,
    }
    answer = probe(
        names,
        overrides={},
        seeds=seeds,
        evaluations=evaluations | track.evaluations,
        data={
            "name": track.data["name"],
            "image_size": track.image_size,
            "store_size": track.store_size,
            "parity": track.parity,
            "on_bad_image": "error",
            "test": True,
            "backbone": track.backbone,
        },
        **asking,
    )
    return Ground(track, answer["data"], kept, answer["methods"], answer["protocols"], asking)


def method_of(
    where: Ground, name: str, side: Side, known: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    """Return a method with a side's settings; None if it is not installed.

    Raises:
        UserError: the method's card is faulty, or a setting does not fit it.
    """
    if name == RAW_PIXELS:
        return dict(RAW_PIXELS_METHOD)
    if name not in where.methods:
        return None
    key = f"{where.track.id} {name} {sorted(side.settings.items())}"
    if key not in known:
        found = where.methods[name]
        if side.settings:
            texts = {field: _text(value) for field, value in side.settings.items()}
            again = probe([name], overrides={name: texts}, seeds=[], data=None, **where.asking)
            found = again["methods"][name]
        if found["error"]:
            raise UserError(found["error"])
        found = found | {"plugin": name}
        if name in where.kept:
            pinned = pin_data(where.track, where.data["facts"])
            found = session.tuned(found, where.kept[name], pinned, where.protocols)
        known[key] = found
    return known[key]


def protocol_hash(evaluation: dict[str, Any], runs_dir: Path) -> str:
    """Return the hash of an evaluation's protocol."""
    answer = probe(
        [],
        recipe="",
        overrides={},
        data=None,
        seeds=[],
        runs_dir=runs_dir,
        evaluations={evaluation["name"]: evaluation["overrides"]},
    )
    return answer["protocols"][0]["hash"]


def holds(track: Track) -> str:
    """Return what runs on a track hold for, in words."""
    return f"{session.backbone_words(track)}, {track.id}, {budgets.words(track.budget)}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
