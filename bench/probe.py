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
PLUGIN_SECONDS = 120.0  # that the import of a plugin and its card may take, torch's before it


class NoAnswer(UserError):
    """A process that ended or was silent; `at` is the plugin that it had begun, "" for none."""

    def __init__(self, does: str, became: str, at: str) -> None:
        subject = f"{at}: the process that imports it" if at else f"the process that {does}"
        super().__init__(f"{subject} {became}")
        self.at = at


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

    A plugin that ends the process, or is not imported in time, has an error and spoils no other.

    Raises:
        UserError: a value of `overrides`, of the evaluations' sampling or the data set is refused,
            or the process died outside a plugin.
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
    if any(given.get("extractor") == "inception" for given in asked["evaluations"].values()):
        ask(_fetch, {}, "fetches Inception's weights")  # what is confined could not
    answer = _ask_plugins(asked)
    if data is not None:  # in a process of its own: no plugin was ever there
        answer |= {"data": _ask(asked | {"names": [], "data": data})["data"]}
    return answer


def refuse_backbone(spec: dict[str, Any], image_size: int, *, checkpointing: bool = False) -> None:
    """Raise UserError, one line, if timm cannot build a backbone of `spec` for images of a side, or
    the backbone cannot recompute its activations where it must."""
    asked: dict[str, Any] = {"names": [], "evaluations": {}, "headline": "", "data": None}
    wanted = {"spec": spec, "image_size": image_size, "checkpointing": checkpointing}
    _ask(asked | {"backbone": wanted})


def _ask_plugins(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask without the plugins that end the process, once more after each; those have an error."""
    broken: dict[str, Any] = {}
    while True:
        usable = [name for name in asked["names"] if name not in broken]
        try:
            answer = _ask(asked | {"names": usable})
        except NoAnswer as error:
            if error.at not in usable:
                raise
            broken[error.at] = {"error": str(error)}
        else:
            described = answer["methods"] | broken
            return answer | {"methods": {name: described[name] for name in asked["names"]}}


def _ask(asked: dict[str, Any]) -> dict[str, Any]:
    subject = ", ".join(asked["names"]) or (asked["data"] or {}).get("name") or "a backbone"
    seconds = PLUGIN_SECONDS if asked["names"] else SECONDS
    return ask(_answer, asked, f"describes {subject}", seconds=seconds)


def ask(
    target: Callable[[Connection, dict[str, Any]], None],
    asked: dict[str, Any],
    does: str,
    *,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Return what a short-lived process answers; what it `said` before goes to standard error.

    Args:
        target: runs there and sends dicts: {"said": line} or {"at": the plugin that it begins},
            then the answer or {"refused": line}.
        does: what the process does, for errors: "describes digits".
        seconds: how long it may be silent.

    Raises:
        NoAnswer: it died, or was silent for too long.
        UserError: it refused.
    """
    context = fork_server()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(send, asked), daemon=True)
    process.start()
    send.close()
    at = ""
    try:
        while True:
            if not receive.poll(seconds):
                raise NoAnswer(does, f"took over {seconds:g} s; it was stopped", at)
            answer = receive.recv()
            if "said" in answer:
                print(answer["said"], file=sys.stderr, flush=True)  # a download goes on
            elif "at" in answer:
                at = answer["at"]
            else:
                break
    except EOFError:
        process.join(seconds)
        became = f"ended with {process.exitcode} before it answered"
        raise NoAnswer(does, became, at) from None
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
        methods = {}
        for name in asked["names"]:
            send.send({"at": name})
            methods[name] = _method(name, asked)
        send.send({"at": ""})
        protocols = _protocols(asked["evaluations"], asked["headline"])
        data = _data(asked, lambda line: send.send({"said": line}))
        send.send({"methods": methods, "data": data, "protocols": protocols})
    except UserError as error:
        send.send({"refused": str(error)})


def _fetch(send: Connection, asked: dict[str, Any]) -> None:
    """Download Inception's weights if they are nowhere; no plugin is here."""
    from bench import extractors

    die_with_planner()
    be_quiet()
    try:
        extractors.inception(download=True)
        send.send({})
    except UserError as error:
        send.send({"refused": str(error)})


def _build(spec: dict[str, Any], image_size: int, checkpointing: bool) -> None:
    """Build a backbone as every run would: what cannot be is refused now."""
    from bench import backbones, recompute

    backbone = backbones.build(spec, image_size)
    if checkpointing:
        recompute.enable(backbone, spec["name"])


def _method(name: str, asked: dict[str, Any]) -> dict[str, Any]:
    from bench import cards

    recipe = asked["recipe"]
    try:
        plugin, card = _card(name)
        faults = cards.problems(card)
        if faults:
            return {"error": f"{plugin.name}: incomplete card: {'; '.join(faults)}"}
        described = cards.card_to_dict(card)
        standard = cards.config_from(card, recipe, {})
    except UserError as error:
        return {"error": str(error), "observer": isinstance(error, Observes)}
    overrides = asked["overrides"].get(plugin.name, {})
    config = cards.config_from(card, recipe, overrides, method=plugin.name)
    _refuse_sampling(plugin.name, card, asked["evaluations"])
    tuned = None
    if (values := asked["tuned"].get(plugin.name)) is not None:
        with contextlib.suppress(UserError):  # of an older card; the session says so
            cards.config_object(card, values)
            tuned = cards.config_from(card, recipe, overrides, method=plugin.name, tuned=values)
    return {
        "error": None,
        "card": described,
        "config": config,
        "standard": standard,
        "base": cards.recipe_used(described, recipe),
        "tuned": tuned,
        "sha256": plugin.sha256,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "local": plugin.local,
        "name": plugin.name,
    }


class Observes(UserError):
    """A plugin that is no method: it only watches runs end."""


def _card(name: str) -> tuple[Any, Any]:
    """Return a plugin and its card; whatever the plugin raises becomes a line.

    Raises:
        UserError: the plugin cannot be imported, or has no card.
    """
    from bench import manager

    does = "the import"
    try:
        plugin = manager.load(name)
        if plugin.has("run_finished") and not plugin.has("describe"):
            raise Observes(f"{plugin.name} is an observer and trains nothing; see --observers")
        does = "describe"
        return plugin, plugin.call("describe")
    except UserError:
        raise
    except BaseException as error:  # also an interrupt: the planner has had its own
        cause = f"{type(error).__name__}: {manager.one_line(error)}".rstrip(": ")
        raise UserError(f"{name}: {does} raised {cause}{manager.place(error)}") from None


def _refuse_sampling(method: str, card: Any, evaluations: dict[str, dict[str, Any]]) -> None:
    """Refuse values for the method's sampling settings that its run would refuse once trained."""
    from bench import cards

    for overrides in evaluations.values() if card.sampling is not None else ():
        try:
            cards.sampling_object(card, overrides.get("sampling") or {})
        except UserError as error:
            raise UserError(f"sampling of {method}: {error}") from None


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
        sizes = facts["sizes"]
        others = sizes.get("test", 0), sizes.get("unlabeled", 0)
        evaluations.refuse_sizes(asked["evaluations"], min(train), *others)
    return {"facts": facts, "splits": splits}
