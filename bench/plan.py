"""Plans: the runs that a board asks for.

Pure functions of a track, cards as JSON and facts of the data. Whatever decides the trained bytes
is resolved here, once, before it is hashed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import ENGINE, precision
from bench.budgets import PRICED, Price, flops_words, shortened, total_steps, words
from bench.cards import recipe_used
from bench.errors import UnknownName, UserError
from bench.identity import LIMIT_RULE, run_id
from bench.manager import RAW_PIXELS
from bench.track import Track, absolute_name, data_name, load_track, override, pin_data, shipped

__all__ = [
    "RAW_PIXELS_METHOD",
    "RunSpec",
    "Track",
    "absolute_name",
    "load_track",
    "override",
    "parse_counts",
    "parse_seeds",
    "parse_settings",
    "pin_data",
    "plan",
    "shipped",
    "total_steps",
    "variant",
    "with_floors",
]

SCHEMA = 1
MAX_SEEDS = 100
ROW_OF_CARD = ("title", "paper", "family", "role", "departs", "uses_labels", "input")
RAW_PIXELS_METHOD: dict[str, Any] = {
    "card": {
        "title": "Raw pixels",
        "paper": "",
        "family": "floor",
        "role": "floor",
        "departs": "nothing",
        "uses_labels": False,
        "input": "rgb",
        "defaults": {},
        "recipes": {},
    },
    "config": {},
    "sha256": "",
    "distribution": "",
    "version": "",
    "local": False,
}


@dataclass(frozen=True)
class RunSpec:
    """One run of a plan.

    Attributes:
        spec: what decides the trained bytes; its hash is in `run_id`.
        track: the track's id.
        plugin: what the child loads, a name or a file; None for the harness's own floor.
        dataset: what `bench.data.load` takes; the spec has its name without folders.
        row: what a board says of the method, as in the result schema.
        code: plugin_sha256, distribution, version, engine, as in the result schema.
        evaluations: [{"name": protocol, "overrides": {...}}].
    """

    run_id: str
    spec: dict[str, Any]
    track: str
    plugin: str | None
    dataset: str
    row: dict[str, Any]
    code: dict[str, Any]
    evaluations: list[dict[str, Any]]


def with_floors(track: Track, requests: Iterable[str]) -> list[str]:
    """Return the methods that a board needs: the track's floors, the requests, the reference."""
    wanted = [*track.floors, *requests, *([track.reference] if track.reference else [])]
    return list(dict.fromkeys(wanted))


def plan(
    track: Track,
    methods: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    *,
    seeds: Iterable[int],
    device: str = "cpu",
    processes: int = 1,
    prices: Mapping[str, Price] | None = None,
) -> list[RunSpec]:
    """Return the runs, seed by seed, so that an interrupted board has whole seeds.

    Args:
        methods: what `bench.probe.probe` says of each method, {name: {"card", "config", "sha256",
            "distribution", "version", "local"}}, and "plugin", the path of a local file. Of a
            tuned method also "from" (the configuration that a variant differs from), "tuning" and
            "notes". The harness's floor is `RAW_PIXELS: RAW_PIXELS_METHOD`.
        data: {"facts": bench.data.facts, "splits": {seed: {"sha256", "train", "val"}}}, sizes in
            images.
        device: "cpu" or "cuda"; where runs train, precision "auto" is the faster one there
            (`bench.precision.pin`).
        prices: what methods make of a budget that counts FLOPs or seconds; floors need none, and
            have an epoch.

    Raises:
        UserError: the batch does not fit the training set; or it or a chunk the number of
            processes; or a row would exceed an open track's ceilings; or the faster precision
            cannot be found.
    """
    for name, images in (("batch size", track.batch_size), ("chunk", track.chunk)):
        if images is not None and images % processes:
            raise UserError(
                f"{name} {images} cannot be shared by {processes} processes; "
                "choose a divisor for --processes"
            )
    if set(methods) - {RAW_PIXELS}:
        track = precision.pin(track, device)
    dataset, track = track.data["name"], pin_data(track, data["facts"])
    return [
        _run(
            track,
            dataset,
            name,
            method,
            data=data,
            seed=seed,
            price=(prices or {}).get(name),
        )
        for seed in seeds
        for name, method in methods.items()
    ]


def parse_seeds(text: str) -> list[int]:
    """Return the seeds: `3` is 0, 1, 2; `0,4` and `7,` are lists.

    Raises:
        UserError: not a number, negative, given twice, or more than 100.
    """
    parts = [part.strip() for part in text.split(",")]
    listed = len(parts) > 1
    if listed and parts[-1] == "":
        parts.pop()
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise UserError(f"--seeds {text!r}: expected a number of seeds, or a list such as 0,1,2")
    numbers = [int(part) for part in parts]
    if (not listed and not 1 <= numbers[0] <= MAX_SEEDS) or len(numbers) > MAX_SEEDS:
        raise UserError(f"--seeds {text!r}: expected between 1 and {MAX_SEEDS} seeds")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds {text!r} names a seed twice; name each once")
    return numbers if listed else list(range(numbers[0]))


def parse_settings(texts: Iterable[str], methods: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return {method: {field: text}} from `METHOD.FIELD=VALUE`.

    Raises:
        UnknownName: the method is not among those asked for.
        UserError: the text has another form, or sets a field twice.
    """
    known, found = list(methods), {}
    for text in texts:
        match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", text, re.DOTALL)
        if not match:
            raise UserError(f"--set {text!r}: expected METHOD.FIELD=VALUE")
        method, name, value = match.groups()
        if method not in known:
            raise UnknownName("method among the plugins", method, known)
        if found.setdefault(method, {}).setdefault(name, value) != value:
            raise UserError(f"--set gives {method}.{name} twice; give it once")
    return found


def parse_counts(texts: Iterable[str], methods: Iterable[str]) -> dict[str, int]:
    """Return {method: trials} from `METHOD=N`.

    Raises:
        UnknownName: the method is not among those asked for.
        UserError: the text has another form.
    """
    known, found = list(methods), {}
    for text in texts:
        match = re.fullmatch(r"(\w+)=([0-9]{1,6})", text)
        if not match:
            raise UserError(f"--hand-tuned {text!r}: expected METHOD=N, N trials made by hand")
        if match[1] not in known:
            raise UnknownName("method among the plugins", match[1], known)
        found[match[1]] = int(match[2])
    return found


def parse_sampling(texts: Iterable[str]) -> dict[str, Any]:
    """Return {field: value} from `FIELD=VALUE`; a value is JSON where it can be, else text.

    Raises:
        UserError: the text has another form, or sets a field twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        match = re.fullmatch(r"([a-z_][a-z0-9_]*)=(.+)", text)
        if not match or match[1] in found:
            raise UserError(f"--sampling {text!r}: expected FIELD=VALUE, each field once")
        try:
            found[match[1]] = json.loads(match[2])
        except ValueError:
            found[match[1]] = match[2]
    return found


def refuse_sampling(
    sampling: Mapping[str, Any] | None, methods: Iterable[Mapping[str, Any]]
) -> None:
    """Refuse a field that no method's sampling settings have: it would only name a column.

    Args:
        methods: what the probe says of each; those that cannot be used are left out.

    Raises:
        UserError: no method has the field, or any.
    """
    cards = [method["card"] for method in methods if not method["error"]]
    known = sorted({name for card in cards for name in card["sampling_fields"]})
    for field in (sampling or {}) if cards else ():
        if not known:
            raise UserError(
                f"--sampling {field}: no requested method has sampling settings; leave it out, or "
                "request a method that generates"
            )
        if field not in known:
            raise UnknownName("sampling field of the requested methods", field, known)


def variant(config: Mapping[str, Any], standard: Mapping[str, Any]) -> str:
    """Return what differs from the track's recipe, `temperature=0.5, head=none`, or nothing."""
    changed = {name: value for name, value in config.items() if value != standard[name]}
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in sorted(changed.items())
    )


def _run(
    track: Track,
    dataset: str,
    name: str,
    method: Mapping[str, Any],
    *,
    data: Mapping[str, Any],
    seed: int,
    price: Price | None,
) -> RunSpec:
    card, facts, split = method["card"], data["facts"], _split(data, seed)
    trains = name != RAW_PIXELS
    # Methods without labels pretrain on the unlabeled split where there is one; the others take as
    # many steps.
    most = facts["sizes"].get("unlabeled", split["train"])
    num_images = min(most, track.data["limit"] or most)
    limited = {"limit": num_images, "drawn": LIMIT_RULE} if num_images < most else {}
    steps = _steps(track, name, card["role"], num_images, price) if trains else 0
    recipe = recipe_used(card, track.recipe)
    standard = card["defaults"] if recipe == "defaults" else card["recipes"][recipe]
    asked, start = method["config"], method.get("from", standard)
    config, cut = shortened(asked, start, steps, num_images // track.batch_size)
    spec = {
        "schema": SCHEMA,
        "method": name,
        "config": config,
        "seed": seed,
        "data": {
            "name": data_name(facts["name"]),
            "sha256": facts["sha256"],
            "split": split["sha256"],
        }
        | limited
        | ({"store_size": track.store_size} if track.store_size else {})
        | ({"parity": True} if track.parity else {}),
        "image_size": track.image_size,
        "backbone": track.backbone if trains else None,
        "budget": {"steps": steps},
        "batch_size": track.batch_size,
        "precision": track.precision if trains else "fp32",
        "threads": track.threads,
    } | _saving(track, card["role"])
    if method["local"]:
        spec["local"] = method["sha256"]
    priced = price.note if price else ""
    row = {key: card[key] for key in ROW_OF_CARD} | {
        "variant": variant(asked, start),
        "origin": ("local" if method["local"] else "installed") if trains else "floor",
        "tuning": method.get("tuning", "0") if trains else "",
        "recipe": recipe if trains else "",
        "notes": [*method.get("notes", ()), *(note for note in (cut, priced) if note)],
    }
    code = {
        "plugin_sha256": method["sha256"],
        "distribution": method["distribution"],
        "version": method["version"],
        "engine": ENGINE,
    }
    return RunSpec(
        run_id=run_id(spec),
        spec=spec,
        track=track.id,
        plugin=(method.get("plugin") or name) if trains else None,
        dataset=dataset,
        row=row,
        code=code,
        evaluations=[{"name": n, "overrides": given} for n, given in track.evaluations.items()],
    )


def _steps(track: Track, name: str, role: str, num_images: int, price: Price | None) -> int:
    """Return a method's steps; floors have an epoch where others have what FLOPs or seconds buy."""
    priced = next(iter(track.budget)) in PRICED
    if priced and role == "floor":
        return total_steps({"epochs": 1}, num_images, track.batch_size)
    if priced and price is None:
        raise UserError(
            f"track {track.id} has a budget of {words(track.budget)}, which `bench run` and `bench "
            "plan` turn into steps; take a track whose budget counts epochs, steps or images"
        )
    rate = price.images_per_unit if price and priced else None
    steps = total_steps(track.budget, num_images, track.batch_size, images_per_unit=rate)
    if not track.is_open or role == "floor" or price is None:
        return steps
    ceiling, spent = track.ceiling or track.budget["flops"], price.flops(steps * track.batch_size)
    if spent > ceiling:
        raise UserError(
            f"{name}: {steps} steps of {track.batch_size} images are {flops_words(spent)}, and "
            f"track {track.id} allows {flops_words(ceiling)}; lower --epochs, or leave it out"
        )
    if track.max_parameters and price.parameters > track.max_parameters:
        raise UserError(
            f"{name}: the backbone has {price.parameters} parameters, and track {track.id} allows "
            f"{track.max_parameters}; take a smaller one"
        )
    return steps


def _saving(track: Track, role: str) -> dict[str, Any]:
    """Return which of the track's ways to save memory or time a run goes.

    Floors train nothing that takes either, and references learn from labels, which no chunk sees.
    """
    chunk = {"chunk": track.chunk} if track.chunk and role == "method" else {}
    again = {"checkpointing": True} if track.checkpointing and role != "floor" else {}
    compiled = {"compile": True} if track.compile and role != "floor" else {}
    return chunk | again | compiled


def _split(data: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """Return a seed's split; JSON has turned the seeds into text."""
    splits = data["splits"]
    return splits[seed] if seed in splits else splits[str(seed)]
