"""What a plugin does while it trains, recorded in its own process: the evidence of `bench check`.

`bench.checks` writes a local plugin of two lines into a run's folder:

    from bench.observe import observed
    describe, pretrain = observed("mine", folder="/tmp/...", stop_at=5)

The child runs it as any other; the hooks of the method named there are called through it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl, manager
from bench.engine import Interrupted
from bench.identity import stream

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that change files, and which of their arguments are paths.
CHANGES = {
    "os.chmod": (0,),
    "os.link": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
}


def observed(
    plugin: str, *, folder: str, stop_at: int | None = None
) -> tuple[Callable[..., MethodCard], Callable[..., nn.Module]]:
    """Return hooks that do what those of `plugin` do, and leave `observed-<rank>.json` in `folder`.

    The record: `floor` and `uses_labels`, as the card says; `begun`, `ended`, steps when pretrain
    was called and left; `stopped`, whether a signal ended it; `fit`, whether the engine's loop ran;
    `influential`, the backbone's parameters that its features depend on; `gradients`, {parameter:
    largest absolute gradient}; `writes`, paths outside the folder; `parameters`, {name: sha256} of
    the module that pretrain returned, if it did.

    Args:
        plugin: an installed name or a file's path.
        stop_at: send SIGTERM to this process while this step (from 0) trains the backbone.
    """
    sys.dont_write_bytecode = True  # importing the plugin is no write of its own
    writes: list[str] = []
    sys.addaudithook(partial(_note_writes, Path(folder).resolve(), writes))
    loaded = manager.load(plugin)

    @hookimpl
    def describe() -> MethodCard:
        return loaded.call("describe")

    @hookimpl
    def pretrain(backbone: nn.Module, config: Any, engine: Engine) -> nn.Module:
        record: dict[str, Any] = {"begun": engine.step_index, "fit": False, "stopped": False}
        record["floor"] = describe().role == "floor"
        record["uses_labels"] = describe().uses_labels
        record["influential"] = influential(backbone, engine.image_size)
        record["gradients"] = gradients = dict.fromkeys(record["influential"], 0.0)
        for name, parameter in backbone.named_parameters():
            parameter.register_hook(partial(_note_gradient, gradients, name))
            parameter.register_hook(partial(_stop, engine, stop_at))
        _note_fit(engine, record)
        try:
            model = loaded.call("pretrain", backbone=backbone, config=config, engine=engine)
            record["parameters"] = {n: _sha256(p) for n, p in model.named_parameters()}
            return model
        except Interrupted:
            record["stopped"] = True
            raise
        finally:
            record |= {"ended": engine.step_index, "writes": sorted(set(writes))}
            path = Path(folder) / f"observed-{engine.rank}.json"
            path.write_text(json.dumps(record))

    return describe, pretrain


def influential(backbone: nn.Module, image_size: int) -> list[str]:
    """Return the parameters on which the features depend, as evaluations compute them.

    Random numbers come from a generator of their own, and buffers stay as they are.
    """
    generator = torch.Generator().manual_seed(stream(0, "evaluate", "influential"))
    twin = copy.deepcopy(backbone).eval().float()
    device = next(twin.parameters()).device
    images = torch.rand(4, 3, image_size, image_size, generator=generator) * 2 - 1
    features = twin(images.to(device))  # (4, D)
    weights = torch.rand(features.shape, generator=generator)
    named = dict(twin.named_parameters())
    found = torch.autograd.grad(
        (features * weights.to(device)).sum(), list(named.values()), allow_unused=True
    )
    return [n for n, g in zip(named, found, strict=True) if g is not None and bool(g.any())]


def _note_gradient(gradients: dict[str, float], name: str, gradient: Tensor) -> None:
    gradients[name] = max(gradients.get(name, 0.0), float(gradient.abs().max().nan_to_num()))


def _stop(engine: Engine, stop_at: int | None, gradient: Tensor) -> None:
    if stop_at is not None and engine.step_index == stop_at:
        signal.raise_signal(signal.SIGTERM)


def _note_fit(engine: Engine, record: dict[str, Any]) -> None:
    fit = engine.fit

    def noted(*args: Any, **kwargs: Any) -> nn.Module:
        record["fit"] = True
        return fit(*args, **kwargs)

    engine.fit = noted


def _note_writes(folder: Path, writes: list[str], event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        paths = arguments[:1] if arguments[2] & WRITING else ()
    else:
        paths = [arguments[i] for i in CHANGES.get(event, ())]
    for path in paths:
        if isinstance(path, int):  # a descriptor, opened before
            continue
        target = Path(os.path.realpath(os.fsdecode(path)))
        if target != Path(os.devnull) and folder not in (target, *target.parents):
            writes.append(str(target))


def _sha256(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
