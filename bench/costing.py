"""Measure cells of the cost table in turns, or estimate them; write each cell's result.

Imports no torch and no plugin: cards come from a probe, windows from one fresh process per cell.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ENGINE, compiled, cost_page, costs, judge
from bench.costs import Cost, Spec
from bench.errors import UnknownName, UserError
from bench.estimated import Estimated, Estimator, estimator, largest_batch
from bench.memory import Refused
from bench.probe import probe, refuse_backbone
from bench.results import Code, Machine
from bench.saving import Way, images_per_chunk
from bench.turns import Cell, Place, fields_of, free_bytes, holds_for, measure

CARD_SECONDS = 120.0
DEFAULTS = "defaults"  # what a card that lacks the recipe uses, as `cards.recipe_used` names it
Say = Callable[[str], None]
PLAIN = Way()


@dataclass(frozen=True)
class Request:
    """What `bench cost` was asked for.

    Attributes:
        plugins: as `manager.select` gives them.
        batch_sizes: source images per step over all cards.
        recipe: of the cards; "" and a name that only other cards have stand for a card's defaults.
        estimate: measure nothing.
        card_bytes: of a card that estimates are held against; by default of the card here.
        stall: seconds that a window may take.
        force: also cells that are finished.
        settings: of the protocol, over its own.
        way: how steps are taken.
        each_way: beside the plain step, each part of `way` alone.
    """

    plugins: tuple[str, ...]
    backbone: str
    image_size: int
    batch_sizes: tuple[int, ...]
    leaderboards_dir: Path
    device: str = "cpu"
    cards: int = 1
    precision: str = "fp32"
    recipe: str = ""
    threads: int = 1
    estimate: bool = False
    card_bytes: int | None = None
    stall: float = 900.0
    force: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    way: Way = PLAIN
    each_way: bool = False

    @property
    def ways(self) -> list[Way]:
        """The way of each of a method's cells."""
        return self.way.alone if self.each_way else [self.way]


def carry_out(request: Request, say: Say) -> tuple[list[Cost], list[str]]:
    """Measure or estimate what is not finished; return all cells that have a result, and a line for
    each plugin or cell that has none.

    A cell's result and the page are written as soon as the cells of its batch size are measured,
    which take turns; what was interrupted before is measured anew.

    Raises:
        UserError: something asked for cannot be; nothing is written for it.
    """
    protocol = costs.protocol(request.settings)
    _refuse(request)
    cells, missing = plan(request)
    if cells:
        refuse_backbone(
            cells[0].spec.backbone, request.image_size, checkpointing=request.way.checkpointing
        )
    found: list[Cost] = []
    with estimator() as estimate:
        work = _Work(request, protocol, _place(request), estimate, say, missing)
        for batch in dict.fromkeys(request.batch_sizes):
            found += work.group([cell for cell in cells if cell.spec.batch_size == batch])
    return found, missing


def _refuse(request: Request) -> None:
    for batch in request.batch_sizes:
        if batch % request.cards:
            raise UserError(
                f"batch size {batch} does not divide among {request.cards} cards; take a multiple"
            )
        if request.way.chunk is not None:
            images_per_chunk(request.way.chunk, batch, request.cards)
    if request.each_way and request.way == PLAIN:
        raise UserError(
            "--each-way measures --chunk N, --checkpointing and --compile; give one of them"
        )
    if request.way.compile:
        if request.estimate:
            raise UserError("--compile is measured, never estimated; leave it or --estimate out")
        if request.way.checkpointing and not request.each_way:
            raise UserError(
                "--compile and --checkpointing exclude each other; leave one out, or give "
                "--each-way for each alone"
            )
        compiled.refuse(request.device)


def plan(request: Request) -> tuple[list[Cell], list[str]]:
    """Return the cells asked for, batch by batch, and a line for each plugin without a card.

    Raises:
        UnknownName: none of the plugins has the recipe.
    """
    described = _described(request.recipe, request.plugins)
    broken = [facts["error"] for facts in described.values() if facts["error"]]
    usable = {plugin: facts for plugin, facts in described.items() if not facts["error"]}
    cells = [
        Cell(plugin, facts["card"]["title"], _spec(facts, request, batch, way), _code(facts))
        for batch in dict.fromkeys(request.batch_sizes)
        for plugin, facts in usable.items()
        for way in request.ways
    ]
    return cells, broken


def refuse_unknown_recipe(recipe: str, plugins: Sequence[str]) -> None:
    """Raise UnknownName if a recipe is named that none of the plugins has; "" names none."""
    if recipe:
        _described(recipe, plugins)


def _described(recipe: str, plugins: Sequence[str]) -> dict[str, Any]:
    described = probe(
        list(plugins), recipe=recipe, overrides={}, data=None, seeds=[], runs_dir=Path()
    )["methods"]
    usable = [facts for facts in described.values() if not facts["error"]]
    unused = usable and all(facts["base"] == DEFAULTS for facts in usable)
    if unused and recipe not in ("", DEFAULTS):
        known = {name for facts in usable for name in facts["card"]["recipes"]}
        raise UnknownName("recipe of these methods", recipe, [DEFAULTS, *sorted(known)])
    return described


def _spec(facts: Mapping[str, Any], request: Request, batch: int, way: Way) -> Spec:
    return Spec(
        method=facts["name"],
        config=facts["config"],
        recipe=facts["base"],
        backbone={"name": request.backbone, "args": {}, "stem": None},
        image_size=request.image_size,
        batch_size=batch,
        cards=request.cards,
        precision=request.precision,  # type: ignore[arg-type]
        device=request.device,  # type: ignore[arg-type]
        threads=request.threads,
        **way._asdict(),
    )


def _code(facts: Mapping[str, Any]) -> Code:
    return Code(
        plugin_sha256=facts["sha256"],
        distribution=facts["distribution"] or "",
        version=facts["version"] or "",
        engine=ENGINE,
    )


def _place(request: Request) -> Place:
    if request.estimate:
        return here("cpu", request.threads, request.card_bytes)
    return here(request.device, request.threads, request.card_bytes)


def here(device: str, threads: int, card_bytes: int | None = None) -> Place:
    """Return this machine, and the facts of its first card where `device` is "cuda"."""
    orders = {"device": "cpu", "spec": {"threads": threads}}
    machine = Machine(**judge.machine(orders))
    if device == "cpu":
        return Place(machine, card_bytes=card_bytes)
    facts = _card()
    machine = machine.model_copy(update={"device": facts["name"]})
    return Place(machine, facts["uuid"], card_bytes or facts["bytes"])


def _card() -> dict[str, Any]:
    """Return name, uuid and bytes of the first card, asked for in a process that then ends."""
    command = [sys.executable, "-m", "bench.measuring", "--card"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=CARD_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"torch did not describe the card in {CARD_SECONDS:g} s") from None
    if said.returncode:
        lines = said.stderr.strip().splitlines()
        raise UserError(lines[-1] if lines else "torch could not describe the card")
    return json.loads(said.stdout)


@dataclass
class _Work:
    """One call of `bench cost`: what it knows of all its cells."""

    request: Request
    protocol: costs.Protocol
    place: Place
    estimate: Estimator
    say: Say
    missing: list[str]
    largest: dict[tuple[str, str], int | None] = field(default_factory=dict)

    def group(self, cells: Sequence[Cell]) -> Iterator[Cost]:
        """Yield the results of cells of one batch size, kept or new; new ones are written."""
        wanted = []
        for cell in cells:
            kept = None if self.request.force else self._kept(cell)
            if kept is None:
                wanted.append(cell)
            elif self._is_of_another_card(kept):
                yield self._write(cell, kept)  # the largest batch is another card's
            else:
                self.say(f"{cost_page.line(kept)} (kept)")
                yield kept
        measured = []
        for cell in wanted:
            found = self._estimate(cell)
            if isinstance(found, Refused) and self.request.estimate:
                self.say(f"{cell.spec.label}, batch {cell.spec.batch_size}: n/a: {found}")
            elif isinstance(found, Refused):
                yield self._write(cell, self._unsupported(cell, found))
            elif found and (self.request.estimate or self._is_too_large(cell, found)):
                yield self._write(cell, self._estimated(cell, found))
            elif not self.request.estimate:
                measured.append(cell)
        for cell, cost in measure(measured, self.place, self.protocol, self.request.stall):
            yield self._write(cell, cost)

    def _is_of_another_card(self, cost: Cost) -> bool:
        card = self.place.card_bytes
        return card not in (None, cost.memory.card) and cost.status != "unsupported"

    def _is_too_large(self, cell: Cell, found: Estimated) -> bool:
        """Return whether not to try; what a compiled step holds is known of none but itself."""
        return not cell.spec.compile and found.total > self._room()

    def _room(self) -> float:
        """Return the bytes that a cell may take here."""
        if self.request.device == "cpu":
            return free_bytes()
        return self.place.card_bytes or math.inf

    def _estimate(self, cell: Cell) -> Estimated | Refused | None:
        """Return what the cell's step takes, why the method refuses it, or None where its step
        cannot be estimated."""
        try:
            return self.estimate(cell.plugin, cell.spec, cell.spec.batch_per_card)
        except Refused as refusal:
            return refusal
        except UserError as error:
            if self.request.estimate:
                self.missing.append(f"{cell.spec.label}, batch {cell.spec.batch_size}: {error}")
            return None

    def _kept(self, cell: Cell) -> Cost | None:
        """Return the cell's finished result of this code, protocol and versions, or None."""
        machine = self.place.machine
        at = holds_for(cell, machine) if not self.request.estimate else ""
        file = costs.path(self.request.leaderboards_dir, costs.name(cell.spec, at))
        try:
            cost = costs.read(file)
        except UserError:
            return None
        versions = [(m.torch, m.timm, m.python) for m in (cost.machine, machine)]
        same = cost.protocol.hash == self.protocol.hash and cost.code == cell.code
        same = same and cost.harness == costs.harness(estimated=cost.status == costs.ESTIMATED)
        if at and cost.machine.cores != machine.cores:
            return None  # virtual machines of several sizes have processors of one name
        if cost.status == "out_of_memory" and (cost.others or cell.spec.device == "cpu"):
            return None  # of what was free then, on a card that others had a part of
        return cost if cost.status in costs.KEPT and same and versions[0] == versions[1] else None

    def _estimated(self, cell: Cell, found: Estimated) -> Cost:
        fields = fields_of(cell, self.place, self.protocol)
        more = {
            "cell": costs.name(cell.spec, ""),
            "status": costs.ESTIMATED,
            "harness": costs.harness(estimated=True),
            "memory": costs.Memory(estimated=found.sizes),
            "flops_per_image": found.flops_per_image,
        }
        return costs.with_derived(fields | more)

    def _unsupported(self, cell: Cell, refusal: Refused) -> Cost:
        fields = fields_of(cell, self.place, self.protocol)
        return costs.with_derived(fields | {"status": "unsupported", "reason": str(refusal)})

    def _write(self, cell: Cell, cost: Cost) -> Cost:
        card, key = self.place.card_bytes, (cell.plugin, cell.spec.way)
        if card is not None and cost.status != "unsupported":
            if key not in self.largest:
                self.largest[key] = largest_batch(self.estimate, cell.plugin, cell.spec, card)
            memory = cost.memory.model_copy(update={"card": card})
            update = {"largest_batch": self.largest[key], "memory": memory}
            cost = cost.model_copy(update=update)
        costs.write(self.request.leaderboards_dir, cost)
        cost_page.write(self.request.leaderboards_dir)
        self.say(cost_page.line(cost))
        return cost
