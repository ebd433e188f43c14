"""A track: what the rows of one board have in common, read from TOML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus

from bench import trackfile
from bench.errors import UnknownName, UserError
from bench.identity import canonical_json, digest
from bench.metrics.names import BESIDE
from bench.trackfile import SHIPPED, shipped

GENERATION, CALIBRATION = "generation", "calibration"
PATCH_MODELS = re.compile(r"(test_)?(vit|deit3?|beit(v2)?|eva(02)?)(_|$)")  # timm's names


@dataclass(frozen=True)
class Track:
    """One fair comparison: everything that its rows have in common.

    Attributes:
        id: the shipped file's name where the content is the shipped one, else `name~<6 hex>` over
            the content. Rows of two ids never stand in one table. `auto` counts as fp32 in it.
        seeds: the fixed list; a run with fewer takes its beginning.
        recipe: the name of the plugins' recipe.
        floors: methods that every table carries; the harness's own raw pixels among them.
        reference: the method that learns from the labels, or None.
        data: name, image_size, store_size (only where images are stored larger than the backbone
            sees them, for views to crop from), limit (only that many training images, drawn without
            labels; or None), and sha256 and test_sha256, None unless `pin_data` filled them in.
        backbone: name, args, stem, as `bench.backbones.build` takes it.
        budget: one of `bench.budgets.KINDS` and how much of it.
        evaluations: {protocol: overrides of its settings}.
        trials: how many each tuned method gets; only rows with as many are ranked.
        headline: the metric that ranks and is tuned for, `PROTOCOL.METRIC`; by default the usual
            metric of the first evaluation.
        parity: pretraining and evaluations train on all training images, as papers' tables do;
            there are no validation images, and nothing may be selected.
        chunk: source images that methods embed at a time, over all processes, by gradient caching;
            None: the whole batch. Floors and references know nothing of it.
        division: "closed", where all rows have the track's backbone, batch and budget; or "open",
            where each row chooses its own, as long as it stays below the ceilings: the budget,
            which counts FLOPs, and max_parameters of the backbone.
        recipes_of: the id of another track whose tuned recipes this one uses; "" for its own.
        ceiling: the training FLOPs that an open track's rows may spend, where `override` gave the
            rows a budget of their own; None where the budget says it.
        smaller: ids of tracks that differ by a smaller budget alone, for the picture of accuracy
            against FLOPs.
        precision: fp32, bf16, or auto: the faster one here, see `bench.precision`.
        checkpointing: whether blocks of the backbone are computed again in the backward pass and
            not kept; floors know nothing of it.
        compile: whether networks are compiled, see `bench.compiled`; floors know nothing of it.
    """

    id: str
    title: str
    description: str
    smoke: bool
    seeds: tuple[int, ...]
    recipe: str
    batch_size: int
    precision: str
    threads: int
    jobs: int | None
    floors: tuple[str, ...]
    reference: str | None
    data: dict[str, Any]
    backbone: dict[str, Any]
    budget: dict[str, float]
    evaluations: dict[str, dict[str, Any]]
    trials: int
    headline: str
    parity: bool = False
    chunk: int | None = None
    checkpointing: bool = False
    compile: bool = False
    division: str = "closed"
    max_parameters: int | None = None
    recipes_of: str | None = None
    smaller: tuple[str, ...] = ()
    ceiling: float | None = None

    @property
    def is_open(self) -> bool:
        return self.division == "open"

    @property
    def headline_protocol(self) -> str:
        return self.headline.partition(".")[0]

    @property
    def headline_metric(self) -> str:
        return self.headline.partition(".")[2]

    @property
    def image_size(self) -> int:
        return self.data["image_size"]

    @property
    def store_size(self) -> int | None:
        """Side at which images are stored if that is larger than `image_size`."""
        return self.data.get("store_size")


def load_track(name_or_path: str) -> Track:
    """Return a track by its shipped name or from a TOML file.

    Raises:
        UnknownName: no shipped track has the name; or a key of the file is unknown.
        UserError: the file is missing, no TOML, or has a value out of its range.
    """
    if not name_or_path.endswith(".toml") and "/" not in name_or_path:
        if name_or_path not in shipped():
            raise UnknownName("track", name_or_path, shipped())
        path = SHIPPED / f"{name_or_path}.toml"
    else:
        path = Path(name_or_path).expanduser()
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", path.stem):
        raise UserError(
            f"track file {str(path)!r}: its name may have lower-case letters, digits, - and _ only"
        )
    return _track(path.stem, trackfile.read(path), f"track file {str(path)!r}")


def override(
    track: Track,
    *,
    dataset: str | None = None,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    stem: str | None = None,
    image_size: int | None = None,
    epochs: int | None = None,
    budget: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    precision: str | None = None,
    threads: int | None = None,
    chunk: int | None = None,
    checkpointing: bool | None = None,
    compile: bool | None = None,
    samples: int | None = None,
    allow_small: bool | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Track:
    """Return the track with parts replaced; unless nothing changes, its id becomes `name~<6 hex>`.

    An open track leaves backbone, batch and budget to its rows, and keeps its id with others.

    A new backbone is taken without the old one's arguments, and then given `backbone_args`. A
    convolutional one keeps the track's stem, unless `stem` is "none" or another, as in "3x2" or
    "7x2+pool" (kernel, stride, max-pool); a vision transformer has no stem and, unless told
    otherwise, its own patches where at least eight fit along the image's side, else smaller ones
    (`usual_patch`). `samples`, `allow_small` and `sampling` are settings of what the track measures
    generators by.

    Raises:
        UserError: a value is out of its range.
    """
    content = _content(track)
    for table, key, value in (
        ("data", "name", dataset),
        ("data", "image_size", image_size),
        ("data", "limit", limit),
        (None, "precision", precision),
        (None, "threads", threads),
        (None, "chunk", chunk),
        (None, "checkpointing", checkpointing),
        (None, "compile", compile),
    ):
        if value is not None:
            (content[table] if table else content)[key] = value
    _override_generation(track.id, content["evaluations"], samples, allow_small, sampling)
    own = {"epochs": epochs, "budget": budget, "batch_size": batch_size}
    own |= {"backbone": backbone, "backbone_args": backbone_args, "stem": stem}
    name = track.id.partition("~")[0]
    if not track.is_open:
        _choose(content, **own)
        return _track(name, content, "options")
    shared = _track(name, content, "options")
    content = _content(shared) | {"division": "closed", "max_parameters": None}
    _choose(content, **own)
    checked = trackfile.checked(content, "options")
    chosen = {key: checked[key] for key in ("backbone", "budget", "batch_size")}
    return dataclasses.replace(shared, **chosen, ceiling=shared.budget["flops"])


def _choose(
    content: dict[str, Any],
    *,
    backbone: str | None,
    backbone_args: Mapping[str, Any] | None,
    stem: str | None,
    epochs: int | None,
    budget: Mapping[str, float] | None,
    batch_size: int | None,
) -> None:
    """Change in place what rows of an open track choose for themselves."""
    if batch_size is not None:
        content["batch_size"] = batch_size
    if backbone is not None and backbone != content["backbone"]["name"]:
        patches = {"patch_size": usual_patch(backbone, content["data"]["image_size"])}
        content["backbone"] |= (
            {"name": backbone, "args": patches, "stem": None}
            if PATCH_MODELS.match(backbone)
            else {"name": backbone, "args": {}}
        )
    if backbone_args is not None:
        content["backbone"]["args"] = content["backbone"]["args"] | dict(backbone_args)
    if stem is not None:
        content["backbone"]["stem"] = parse_stem(stem)
    if epochs is not None and budget is not None:
        raise UserError("--epochs and --budget both say how much is trained; give one")
    if epochs is not None or budget is not None:
        content["budget"] = dict(budget) if budget else {"epochs": epochs}


def usual_patch(backbone: str, image_size: int) -> int:
    """Return the side of a vision transformer's patches in pixels: the largest that divides the
    image's side, is no larger than the model's own and leaves eight or more along a side."""
    named = re.search(r"patch(\d+)", backbone)
    most = min(int(named[1]) if named else 16, max(1, image_size // 8))
    return next(side for side in range(most, 0, -1) if image_size % side == 0)


def parse_stem(text: str) -> dict[str, Any] | None:
    """Return a stem as tracks have it; None for "none".

    Raises:
        UserError: it is neither "none" nor KERNELxSTRIDE with or without "+pool".
    """
    if text == "none":
        return None
    found = re.fullmatch(r"(\d)x(\d)(\+pool)?", text)
    if not found:
        raise UserError(
            f"stem {text!r}: expected none, or kernel and stride as in 3x2, or 7x2+pool with a "
            "max-pool after it"
        )
    return {"kernel": int(found[1]), "stride": int(found[2]), "max_pool": bool(found[3])}


def _override_generation(
    track: str,
    evaluations: dict[str, dict[str, Any]],
    samples: int | None,
    allow_small: bool | None,
    sampling: Mapping[str, Any] | None,
) -> None:
    """Change the settings of the protocols over samples in place."""
    given = {
        name: value
        for name, value in (
            ("samples", samples),
            ("reference", samples),
            ("allow_small", allow_small),
            ("sampling", dict(sampling) if sampling else None),
        )
        if value
    }
    if given and GENERATION not in evaluations:
        raise UserError(
            f"track {track} measures no samples; --samples, --allow-small and --sampling are for "
            f"tracks with [evaluations.{GENERATION}]"
        )
    for first, known in ((GENERATION, tuple(given)), (CALIBRATION, ("samples", "allow_small"))):
        own = {key: value for key, value in given.items() if key in known}
        for name in {first, first + BESIDE} & set(evaluations):
            evaluations[name] = evaluations[name] | own


def pin_data(track: Track, facts: Mapping[str, Any]) -> Track:
    """Return the track with a data set that is named by a path identified by its content instead.

    The id then is the same wherever the files lie, and another as soon as they change.
    """
    if ":" not in track.data["name"]:
        return track
    content = _content(track)
    pinned = {key: facts[key] for key in ("sha256", "test_sha256")}
    content["data"] |= pinned | {"name": data_name(facts["name"])}
    return _track(track.id.partition("~")[0], content, f"data set {facts['name']!r}")


def recipes_id(track: Track) -> str:
    """Return under which name a track's tuned recipes lie: its id, or the track's that it takes
    them from. Data that a path names are known here by their last folder or file alone, pinned or
    not: recipes are asked for before the data are looked at, and on machines where these lie
    elsewhere. Whether a recipe is of the same content, `recipes.training_sha256` says."""
    if track.recipes_of or ":" not in track.data["name"]:
        return track.recipes_of or track.id
    content = _content(track)
    content["data"] |= {"name": data_name(content["data"]["name"])}
    content["data"] |= {"sha256": None, "test_sha256": None}
    return _track(track.id.partition("~")[0], content, "recipes").id


def data_name(name: str) -> str:
    """Return a data set's name without folders: `npz:/home/ada/faces.npz` is `npz:faces.npz`."""
    kind, colon, path = name.partition(":")
    if kind == "timm":
        head, _, query = path.partition("?")
        kept = "&".join(part for part in query.split("&") if not part.startswith("root="))
        return f"timm:{head}?{kept}" if kept else f"timm:{head}"
    return f"{kind}:{Path(path).expanduser().absolute().name}" if colon else name


def absolute_name(name: str) -> str:
    """Return a data set's name with a relative folder in it made absolute."""
    kind, colon, path = name.partition(":")
    if kind == "timm":
        head, mark, query = path.partition("?")
        parts = [
            f"root={quote(str(Path(unquote_plus(part[5:])).expanduser().absolute()))}"
            if part.startswith("root=")
            else part
            for part in query.split("&")
        ]
        return f"timm:{head}{mark}{'&'.join(parts)}"
    return f"{kind}:{Path(path).expanduser().absolute()}" if colon else name


def _track(name: str, content: dict[str, Any], origin: str) -> Track:
    checked = trackfile.checked(content, origin)
    if name.endswith("-parity") != checked.get("parity", False):
        raise UserError(
            f"{origin}: a track has parity = true if its name ends in -parity, and only then; its "
            "rows are no rows of a track that sets validation images aside"
        )
    identified = known(checked)
    track_id = name
    shipped_file = SHIPPED / f"{name}.toml"
    if not shipped_file.is_file() or canonical_json(identified) != canonical_json(
        known(trackfile.checked(trackfile.read(shipped_file), f"track file {str(shipped_file)!r}"))
    ):
        track_id = f"{name}~{digest(identified)[:6]}"
    lists = {k: tuple(checked[k]) for k in ("seeds", "floors", "smaller") if k in checked}
    return Track(id=track_id, **(checked | lists))


def known(checked: dict[str, Any]) -> dict[str, Any]:
    """Return what a track is known by. `auto` is known as fp32: runs in bf16 have another track."""
    return checked | ({"precision": "fp32"} if checked["precision"] == "auto" else {})


def _content(track: Track) -> dict[str, Any]:
    content = dataclasses.asdict(track)
    del content["id"], content["ceiling"]
    return content | {key: list(content[key]) for key in ("seeds", "floors", "smaller")}
