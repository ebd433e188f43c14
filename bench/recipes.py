"""Tuned recipes: what a method's trials on a track found, one TOML file for each.

`leaderboards/recipes/<track>/<method>.toml` holds every trial with its validation score, the
configuration that won, and a hash over all of it. Runs of the track use the configuration.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.files import write_atomically
from bench.identity import digest
from bench.track import known

if TYPE_CHECKING:
    from bench.track import Track

FOLDER = "recipes"
NOT_TRAINED = (
    *("title", "description", "seeds", "smoke", "trials", "jobs", "floors", "reference"),
    *("parity", "recipes_of", "smaller"),
)
OTHER_CODE = "its recipe was tuned with other code of the method"


@dataclass(frozen=True)
class Trial:
    """One full-budget run that never reports.

    Attributes:
        changed: the fields of the search space, with the trial's values.
        score: of the headline on validation, in percent (or its own unit, where it is a distance);
            None where the run gave none.
        status: as in the result schema.
        seconds: of training.
    """

    number: int
    seed: int
    changed: dict[str, Any]
    score: float | None
    status: str
    seconds: float
    run_id: str


@dataclass(frozen=True)
class Recipe:
    """What tuning found.

    Attributes:
        track_sha256: over all that decides the trials' training, see `training_sha256`.
        base: the plugin's recipe that trial 0 is.
        search: the card's search space; `standard`: every field of trial 0.
        config: every field of the trial that won.
        headline: {"id", "version", "hash", "metric"} of what was scored.
        code: {"plugin_sha256", "engine"} that trained.
    """

    track: str
    track_sha256: str
    method: str
    base: str
    search: dict[str, Any]
    standard: dict[str, Any]
    config: dict[str, Any]
    headline: dict[str, Any]
    code: dict[str, Any]
    winner: int
    trials: tuple[Trial, ...]


def training_sha256(track: Track) -> str:
    """Return the hash of what a track's trials depend on, besides the method: of data that a path
    names on their content, if `pin_data` filled it in, but no test image."""
    content = known(dataclasses.asdict(track))
    content["data"] = content["data"] | {"test_sha256": None}  # "" where tuning read none
    for field in dataclasses.fields(track):  # hashes are as if a younger key did not exist
        if field.default is not dataclasses.MISSING and content[field.name] == field.default:
            del content[field.name]
    kept = {key: value for key, value in content.items() if key not in ("id", *NOT_TRAINED)}
    return digest(kept | {"evaluations": None})  # the headline has a hash of its own


def path(folder: Path, track: str, method: str) -> Path:
    """Return where a recipe lies in a folder of recipes."""
    return folder / track / f"{method}.toml"


def fits(
    recipe: Recipe,
    *,
    track_sha256: str,
    trials: int,
    search: Mapping[str, Any],
    standard: Mapping[str, Any],
    headline: str,
) -> str:
    """Return why a recipe is not one of today's method on today's track, or "".

    Args:
        standard: every field of the plugin's recipe that the track names.
        headline: the hash of the protocol that ranks.
    """
    if recipe.track_sha256 != track_sha256:
        return "the track has changed since"
    if len(recipe.trials) != trials:
        return f"it has {len(recipe.trials)} trials, the track asks for {trials}"
    if recipe.headline["hash"] != headline:
        return "it was scored by another protocol"
    if dict(recipe.search) != dict(search):
        return "the method's search space has changed since"
    if dict(recipe.standard) != dict(standard):
        return "the method's own recipe has changed since"
    return ""


def find(folders: Iterable[Path], track: str, method: str) -> Recipe | None:
    """Return the recipe of the first folder that has one.

    Raises:
        UserError: the file is damaged.
    """
    for folder in folders:
        if (file := path(folder, track, method)).is_file():
            return read(file)
    return None


def expected_best(scores: Sequence[float | None], *, lowest: bool = False) -> list[float]:
    """Return the expected best validation score after 1, 2, ... n trials, in the scores' unit.

    Of n trials drawn with replacement from the observed ones (Dodge et al. 2019, Section 3.1,
    Eq. 7): sum over the sorted scores v_i of v_i ((i / N)^n - ((i - 1) / N)^n). A trial without a
    score counts as 0.

    Args:
        lowest: whether the lowest score is the best; a trial without one then counts as the worst.
    """
    if lowest:
        known = [score for score in scores if score is not None]
        signed = [-max(known) if score is None else -score for score in scores]
    else:
        signed = [0.0 if score is None else score for score in scores]
    ordered = sorted(signed)
    total = len(ordered)
    sign = -1 if lowest else 1
    return [
        sign
        * sum(
            value * ((rank / total) ** count - ((rank - 1) / total) ** count)
            for rank, value in enumerate(ordered, start=1)
        )
        for count in range(1, total + 1)
    ]


def write(file: Path, recipe: Recipe) -> None:
    """Write a recipe, whole or not at all."""
    document = dataclasses.asdict(recipe)
    lines = [
        "# Written by `bench tune`; the hash is over everything else. Not to be edited by hand.",
        f"sha256 = {_value(digest(document))}",
        *(f"{key} = {_value(document[key])}" for key in ("track", "track_sha256", "method")),
        *(f"{key} = {_value(document[key])}" for key in ("base", "winner")),
    ]
    for table in ("headline", "code", "search", "standard", "config"):
        lines += ["", f"[{table}]", *_table(document[table])]
    for trial in document["trials"]:
        changed = trial.pop("changed")
        lines += ["", "[[trials]]", *_table(trial), "[trials.changed]", *_table(changed)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, ("\n".join(lines) + "\n").encode())


def read(file: Path) -> Recipe:
    """Return the recipe in a file.

    Raises:
        UserError: the file cannot be read, is no recipe, or was edited.
    """
    try:
        document = _restored(tomllib.loads(file.read_text(encoding="utf-8")))
        sha256 = document.pop("sha256")
        trials = tuple(Trial(**trial) for trial in document.pop("trials"))
        recipe = Recipe(trials=trials, **document)
    except OSError as error:
        raise UserError(f"recipe {file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"recipe {file} is damaged ({error}); tune again") from None
    if digest(dataclasses.asdict(recipe)) != sha256:
        raise UserError(
            f"recipe {file} was edited since `bench tune` wrote it; tune again, or give values "
            "with --set"
        )
    return recipe


NONE = "none"  # TOML has no null; a text of this kind is written as a one-item table


def _value(value: Any) -> str:
    """Return a JSON value as TOML; None, which TOML lacks, as the table {none = true}."""
    if value is None:
        return f"{{ {NONE} = true }}"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=True)


def _table(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(item)}" for key, item in values.items()]


def _restored(value: Any) -> Any:
    if value == {NONE: True}:
        return None
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return value


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
