"""The process of one measured cell: `python -m bench.measuring FOLDER DESCRIPTOR PARENT`.

`FOLDER/cell.json` says what to build; orders come and answers go as JSON over a socket. Nothing is
written outside the folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.confine import confine_writes, die_with_parent
from bench.errors import Diverged, Unsupported, UserError, lacks_memory
from bench.files import keep_temporary_files


def main(arguments: list[str]) -> int:
    """Carry out the cell's orders; return the exit status, 0 if the other side knows the end.

    `--card` instead prints name, uuid and bytes of the first CUDA card as JSON.
    """
    if arguments == ["--card"]:
        return _card()
    folder, link = Path(arguments[0]), Connection(int(arguments[1]))
    die_with_parent(signal.SIGKILL, int(arguments[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    orders = json.loads((folder / "cell.json").read_text())
    keep_temporary_files(folder)
    driver = [Path("/dev"), Path.home() / ".nv"] if orders["spec"]["device"] == "cuda" else []
    confine_writes([folder, *driver], [Path(os.devnull)])

    def tell(answer: dict[str, Any]) -> None:
        link.send_bytes(json.dumps(answer).encode())

    def ask() -> dict[str, Any]:
        try:
            return json.loads(link.recv_bytes())
        except EOFError:
            raise SystemExit(1) from None

    try:
        work(folder, orders, ask, tell)
    except Unsupported as error:
        tell({"lost": "unsupported", "reason": str(error)})
    except (UserError, Diverged) as error:
        tell({"lost": "failed", "reason": str(error)})
    except Exception as error:
        traceback.print_exc()
        tell({"lost": "out_of_memory" if lacks_memory(error) else "failed", "reason": _line(error)})
    return 0


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def work(folder: Path, orders: dict[str, Any], ask: Any, tell: Any) -> None:
    """Build the cell and take steps as ordered; the last answer says what was built.

    Raises:
        Unsupported: the plugin cannot train this cell, or trains no step.
        UserError, Diverged: as in a run.
    """
    import numpy as np
    import torch

    from bench import backbones, cards, gauge, heap, manager, recompute
    from bench.compiled import Compiler
    from bench.identity import stream

    spec, settings = orders["spec"], orders["settings"]
    channels, side = orders["stored"]
    heap.keep_freed_memory()
    torch.set_num_threads(spec["threads"])
    pretend_cards(spec["cards"])
    torch.manual_seed(stream(0, "init"))
    before = gauge.peak_rss()
    backbone = backbones.build(spec["backbone"], spec["image_size"])
    compiler = Compiler(spec["device"]) if spec["compile"] else None
    recomputation = None
    if spec["checkpointing"]:
        recomputation = recompute.enable(backbone, spec["backbone"]["name"])
    plugin = manager.load(orders["plugin"])
    card = plugin.call("describe")
    config = cards.config_object(card, spec["config"])
    labels = None
    if card.uses_labels:
        labels = np.arange(settings["num_images"]) % settings["num_classes"]
    engine = gauge.Gauge(
        gauge.stored(side, settings, channels=channels),
        labels,
        settings["num_classes"] if card.uses_labels else None,
        ask=ask,
        tell=tell,
        steps=settings["epochs"] * (settings["num_images"] // spec["batch_size"]),
        batch_size=spec["batch_size"],
        image_size=spec["image_size"],
        seed=0,
        folder=folder,
        precision=spec["precision"],
        device="cuda:0" if spec["device"] == "cuda" else "cpu",
        world=spec["cards"],
        chunk=spec["chunk"],
        recomputation=recomputation,
        compiler=compiler,
    )
    engine.place(backbone)
    try:
        plugin.call("pretrain", backbone=backbone, config=config, engine=engine)
    except gauge.Finished:
        tell(
            {
                "parameters": sum(p.numel() for p in backbone.parameters()),
                "earlier_stages": engine.earlier_stages,
                "rss_before": before,
                "stored": engine.on_card,
            }
        )
        return
    raise Unsupported("it trains no step, so there is nothing to time")


def pretend_cards(cards: int) -> None:
    """Have this process be the first of `cards`, with the exchanges between them left out.

    torch's fake process group: what is gathered has its full size, gradients go through their
    buckets, and every card is taken to hold what this one holds. Nothing travels.
    """
    if cards == 1:
        return
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=cards, store=FakeStore())


def _card() -> int:
    import torch

    if not torch.cuda.is_available():
        print("torch sees no CUDA device; --device cpu measures the processor", file=sys.stderr)
        return 1
    facts = torch.cuda.get_device_properties(0)
    found = {"name": facts.name, "uuid": f"GPU-{facts.uuid}", "bytes": facts.total_memory}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
