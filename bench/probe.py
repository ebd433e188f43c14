"""Ask plugins for their cards and data sets for their facts, in a short-lived child.

The planner imports neither torch nor plugins; it reads the JSON that this process prints to a pipe.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import confine
from bench.errors import UserError

SECONDS = 600.0  # without a word; who downloads or decodes speaks every ten


def fork_server() -> multiprocessing.context.ForkServerContext:
    """Return the context whose server has torch, timm and the harness imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.preload"])
    return context


def start_server(*meanwhile: str) -> None:
    """Start the fork server, and import the modules `meanwhile` here while it imports torch.

    Without this the first process that is asked for starts it, and waits.
    """
    fork_server()
    forkserver.ensure_running()
    for module in meanwhile:
        importlib.import_module(module)


def probe(
    names: list[str],
    *,
    recipe: str,
    overrides: dict[str, dict[str, str]],
    data: dict[str, Any] | None,
    seeds: list[int],
    runs_dir: Path,
    evaluations: dict[str, dict[str, Any]] | None = None,
    headline: str = "",
    tuned: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return {"methods": {name: facts or {"error": line}}, "data": {"facts", "splits"},
    "protocols": [{"id", "version", "hash", "headline"}]}.

    Args:
        names: installed names or paths of local files.
        data: {"name", "image_size", "store_size", "parity", "on_bad_image", "test"} or None for no
            data; only with `test` is the test split opened, to hash it. With `backbone`, whether it
            can be built, and with `checkpointing` whether it can recompute its activations.
        evaluations: {protocol: overrides of its settings}.
        headline: `PROTOCOL.METRIC`; the metric stands as `headline` in that protocol's answer.
        tuned: {method: every field of a tuned configuration}; overrides over it are `tuned` in
            the method's answer, None where it does not fit the card.

    Raises:
        UserError: a value of `overrides` or the data set is refused, or the process died.
    """
    asked = {
        "names": names,
        "recipe": recipe,
        "overrides": overrides,
        "data": None,
        "seeds": seeds,
        "evaluations": evaluations or {},
        "headline": headline,
        "tuned": tuned or {},
    }
    answer = _ask(asked)
    if data is not None:  # in a process of its own: no plugin was ever there
        answer |= {"data": _ask(asked | {"names": [], "data": data})["data"]}
    return answer


def refuse_backbone(spec: dict[str, Any], image_size: int, *, checkpointing: bool = False) -> None:
    """Raise UserError, one line, if timm cannot build a backbone of `spec` for images of a side, or
    the backbone cannot recompute its activations where it must."""
    asked: dict[str, Any] = {"names": [], "evaluations": {}, "headline": "", "data": None}
    wanted = {"spec": spec, "image_size": image_size, "checkpointing": checkpointing}
    _ask(asked | {"backbone": wanted})


def _ask(asked: dict[str, Any]) -> dict[str, Any]:
    subject = ", ".join(asked["names"]) or (asked["data"] or {}).get("name") or "a backbone"
    return ask(_answer, asked, f"describes {subject}")


def ask(
    target: Callable[[Connection, dict[str, Any]], None], asked: dict[str, Any], does: str
) -> dict[str, Any]:
    """Return what a short-lived process answers; what it `said` before goes to standard error.

    Args:
        target: runs there and sends dicts: {"said": line}, then the answer or {"refused": line}.
        does: what the process does, for errors: "describes digits".

    Raises:
        UserError: it refused, died, or was silent for `SECONDS`.
    """
    context = fork_server()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(send, asked), daemon=True)
    process.start()
    send.close()
    try:
        while True:
            if not receive.poll(SECONDS):
                raise UserError(f"the process that {does} took over {SECONDS:g} s; it was stopped")
            answer = receive.recv()
            if "said" not in answer:
                break
            print(answer["said"], file=sys.stderr, flush=True)  # a download goes on
    except EOFError:
        process.join()
        raise UserError(
            f"the process that {does} ended with {process.exitcode} before it answered"
        ) from None
    finally:
        process.kill()
        process.join()
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer


def die_with_planner() -> None:
    """End this process, made by the fork server, when the planner is gone."""
    planner = multiprocessing.parent_process()
    if planner is not None:
        confine.die_with_writer(signal.SIGTERM, planner.sentinel)


def be_quiet() -> None:
    """Send what this process and its libraries print nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(null, stream)


def _answer(send: Connection, asked: dict[str, Any]) -> None:
    die_with_planner()
    be_quiet()
    if asked["names"]:  # plugin code: what it wrote here, its run could read
        confine.confine_writes([], [Path(os.devnull)])
    try:
        if "backbone" in asked:
            _build(**asked["backbone"])
        methods = {name: _method(name, asked) for name in asked["names"]}
        protocols = _protocols(asked["evaluations"], asked["headline"])
        data = _data(asked, lambda line: send.send({"said": line}))
        send.send({"methods": methods, "data": data, "protocols": protocols})
    except UserError as error:
        send.send({"refused": str(error)})


def _build(spec: dict[str, Any], image_size: int, checkpointing: bool) -> None:
    """Build a backbone as every run would: what cannot be is refused now."""
    from bench import backbones, recompute

    backbone = backbones.build(spec, image_size)
    if checkpointing:
        recompute.enable(backbone, spec["name"])


def _method(name: str, asked: dict[str, Any]) -> dict[str, Any]:
    from bench import cards, manager

    try:
        plugin = manager.load(name)
        card = plugin.call("describe")
        faults = cards.problems(card)
        if faults:
            return {"error": f"{plugin.name}: incomplete card: {'; '.join(faults)}"}
        described = cards.card_to_dict(card)
    except UserError as error:
        return {"error": str(error)}
    except (Exception, SystemExit) as error:
        return {"error": f"{name}: describe raised {type(error).__name__}: {error}"}
    overrides, recipe = asked["overrides"].get(plugin.name, {}), asked["recipe"]
    config = cards.config_from(card, recipe, overrides, method=plugin.name)
    tuned = None
    if (values := asked["tuned"].get(plugin.name)) is not None:
        with contextlib.suppress(UserError):  # of an older card; the session says so
            cards.config_object(card, values)
            tuned = cards.config_from(card, recipe, overrides, method=plugin.name, tuned=values)
    return {
        "error": None,
        "card": described,
        "config": config,
        "standard": cards.config_from(card, recipe, {}),
        "base": cards.recipe_used(described, recipe),
        "tuned": tuned,
        "sha256": plugin.sha256,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "local": plugin.local,
        "name": plugin.name,
    }


def _protocols(asked: dict[str, dict[str, Any]], headline: str) -> list[dict[str, Any]]:
    from bench import evaluations

    ranking, _, metric = headline.partition(".")
    protocols = [evaluations.protocol(name, overrides) for name, overrides in asked.items()]
    return [
        {
            "id": p.id,
            "version": p.version,
            "hash": p.hash,
            "headline": metric if p.name == ranking else "",
        }
        for p in protocols
    ]


def _data(asked: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any] | None:
    from bench import data, evaluations

    if asked["data"] is None:
        return None
    wanted = asked["data"]
    if wanted.get("backbone"):
        _build(wanted["backbone"], wanted["image_size"], bool(wanted.get("checkpointing")))
    dataset = data.load(
        wanted["name"],
        image_size=wanted["image_size"],
        store_size=wanted.get("store_size"),
        test=wanted.get("test", False),
        on_bad_image=wanted.get("on_bad_image", "error"),
        say=say,
    )
    evaluations.refuse_missing(asked["evaluations"], dataset)
    splits = {}
    for seed in asked["seeds"]:
        split = data.split(dataset, seed, parity=wanted.get("parity", False))
        splits[seed] = {
            "sha256": split.sha256,
            "train": len(split.train),
            "val": len(split.val),
        }
    facts, train = data.facts(dataset), [split["train"] for split in splits.values()]
    if train:
        evaluations.refuse_sizes(asked["evaluations"], min(train), facts["sizes"].get("test", 0))
    return {"facts": facts, "splits": splits}
