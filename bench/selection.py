"""From what a user asked for to the runs of a plan: track, methods, cards, data, seeds."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import manager
from bench.errors import UserError
from bench.plan import (
    RAW_PIXELS_METHOD,
    RunSpec,
    Track,
    load_track,
    override,
    parse_seeds,
    parse_settings,
    pin_data,
    plan,
    with_floors,
)

QUICK_SEEDS = 3  # of the track's list, where no seeds were asked for; too few to rank


class NothingToRun(UserError):
    """No requested plugin could be loaded. The command line exits with 3."""


@dataclass(frozen=True)
class Selection:
    """What a request comes to.

    Attributes:
        track: the track, its data set pinned.
        specs: the runs, seed by seed.
        broken: {method: one line} for plugins that cannot be loaded; the others run without them.
        facts: of the data set, `bench.data.facts`.
    """

    track: Track
    specs: list[RunSpec]
    broken: dict[str, str]
    facts: dict[str, Any]


def select(
    plugins: str,
    track: str,
    *,
    runs_dir: Path,
    seeds: str | None = None,
    settings: Iterable[str] = (),
    device: str = "cpu",
    processes: int = 1,
    on_bad_image: str = "error",
    **overrides: Any,
) -> Selection:
    """Return the runs that a board of the requested plugins needs, floors and reference included.

    Args:
        plugins: names and files split by commas, or `all`.
        track: a shipped name, or a TOML file.
        seeds: as `parse_seeds`; None for the first three of the track's list.
        settings: `METHOD.FIELD=VALUE` each.
        overrides: of the track, as `bench.track.override` takes them; None leaves a part alone.

    Raises:
        UserError: any part of the request is refused.
        NothingToRun: every requested plugin fails to load; the first line says why.
    """
    from bench.probe import probe

    requests = {manager.method_name(name): name for name in manager.select(plugins)}
    chosen = override(load_track(track), **overrides)
    numbers = parse_seeds(seeds) if seeds is not None else list(chosen.seeds[:QUICK_SEEDS])
    names = with_floors(chosen, requests)
    fields = parse_settings(settings, [name for name in names if name != manager.RAW_PIXELS])
    asked = [requests.get(name, name) for name in names if name != manager.RAW_PIXELS]
    answer = probe(
        asked,
        recipe=chosen.recipe,
        overrides=fields,
        data={
            "name": chosen.data["name"],
            "image_size": chosen.image_size,
            "on_bad_image": on_bad_image,
        },
        seeds=numbers,
        runs_dir=runs_dir,
    )
    methods: dict[str, dict[str, Any]] = {}
    broken: dict[str, str] = {}
    for name in names:
        if name == manager.RAW_PIXELS:
            methods[name] = RAW_PIXELS_METHOD
            continue
        found = answer["methods"][requests.get(name, name)]
        if found["error"]:
            broken[name] = found["error"]
        else:
            methods[name] = found | {"plugin": _plugin(requests.get(name, name))}
    if all(name in broken for name in requests):
        raise NothingToRun("; ".join(broken[name] for name in requests))
    specs = plan(chosen, methods, answer["data"], seeds=numbers, device=device, processes=processes)
    pinned = pin_data(chosen, answer["data"]["facts"])
    return Selection(pinned, specs, broken, answer["data"]["facts"])


def default_device() -> str:
    """Return "cuda" if the driver is there, a card is visible and torch is not a CPU build."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    built = not importlib.metadata.version("torch").endswith("+cpu")
    return "cuda" if built and not hidden and Path("/dev/nvidiactl").exists() else "cpu"


def _plugin(request: str) -> str:
    """Return what a child in another folder can load: a file's path is made absolute."""
    if manager.is_path(request):
        return str(Path(request).expanduser().absolute())
    return request
