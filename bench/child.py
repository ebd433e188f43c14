"""The process that runs one plugin: pretrain, leave the backbone, say what became of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from bench.confine import confine_writes, die_with_parent, hide
from bench.errors import Diverged, Unsupported, UserError, lacks_memory

STATUS_OF_EXIT = {"done": 0, "unsupported": 0, "diverged": 0, "invalid": 0}
NO_UPDATE = (
    "pretrain returned without one engine.step, so no update is known of what it trained: train by "
    'engine.fit or give losses to engine.step; a method that trains nothing says role="floor"'
)
WORKED_IN = ("data", "results", "results-dev", "studies", "reproduced")  # of a working folder
HEAD_BYTES = 64 * 2**20  # a larger head is not kept; none of ours comes near


def run(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Run the plugin that `folder/run.json` names and return the outcome.

    Raises:
        Interrupted: a signal stopped the run; its checkpoint is written.
    """
    from bench.manager import one_line, place

    orders = json.loads((folder / "run.json").read_text())
    try:
        return _train(folder, orders, rank, world)
    except Unsupported as error:
        return _outcome("unsupported", str(error))
    except Diverged as error:
        return _outcome("diverged", str(error))
    except MemoryError as error:
        return _outcome("out_of_memory", str(error) or "MemoryError")
    except SystemExit as error:
        return _outcome("failed", f"the plugin called sys.exit({error.code!r}){place(error)}")
    except UserError as error:
        return _outcome("failed", one_line(error) + place(error))
    except (Exception, KeyboardInterrupt, GeneratorExit) as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(": ") + place(error)
        return _outcome("out_of_memory" if lacks_memory(error) else "failed", reason)


def _outcome(status: str, reason: str = "", **more: Any) -> dict[str, Any]:
    return {"status": status, "reason": reason} | more


def _train(folder: Path, orders: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from bench import ENGINE, backbones, cards, data, heap, manager, recompute, sampling
    from bench.compiled import Compiler
    from bench.data import resize
    from bench.engine import Trainer
    from bench.files import keep_temporary_files
    from bench.identity import digest, stream
    from bench.passes import PassCounter

    spec = orders["spec"]
    keep_temporary_files(folder / "tmp")
    heap.keep_freed_memory()  # on CUDA it is no fork of the worker
    torch.set_num_threads(spec["threads"])
    if world > 1:
        _join(folder, rank, world, orders["device"])
    plugin = manager.load(orders["plugin"])
    if plugin.sha256 != orders["code"]["plugin_sha256"]:
        raise UserError(
            f"{plugin.name}'s code was changed after the run was planned; run the command again"
        )
    card = plugin.call("describe")
    uses_labels = orders["row"]["uses_labels"]
    if card.uses_labels != uses_labels:
        raise UserError(
            f"the card now says uses_labels={card.uses_labels}; the run was planned with "
            f"{uses_labels}; a card is the same whenever it is asked for"
        )
    config = cards.config_object(card, spec["config"])
    images, labels, meta = data.pretraining(orders["arrays"], uses_labels)
    shown = resize.centre(images, spec["image_size"])
    trainer: Trainer | None = None

    def examine(step: int) -> None:
        from bench.health import health

        assert trainer is not None
        with counter.paused():
            trainer.meter.record_health(step, health(backbone, shown, spec["seed"]))

    seed_everything(stream(spec["seed"], "init"))
    backbone = backbones.build(spec["backbone"], spec["image_size"])
    recomputation = None
    if spec.get("checkpointing"):
        recomputation = recompute.enable(backbone, spec["backbone"]["name"])
    device = _device(orders["device"], rank)
    compiler = Compiler(device) if spec.get("compile") else None
    trainer = Trainer(
        images,
        labels,
        meta["num_classes"] if uses_labels else None,
        steps=spec["budget"]["steps"],
        batch_size=spec["batch_size"],
        image_size=spec["image_size"],
        seed=spec["seed"],
        folder=folder,
        identity_hash=digest([spec, plugin.sha256, ENGINE, world]),
        precision=spec["precision"],
        device=device,
        rank=rank,
        world=world,
        chunk=spec.get("chunk"),
        recomputation=recomputation,
        compiler=compiler,
        mixed=meta["mixed"] and (uses_labels or meta["num_labeled"] == len(images)),
        checkpoint_seconds=orders.get("checkpoint_seconds", 60.0),
        on_checkpoint=examine,
    )
    counter = PassCounter(
        backbone, spec["image_size"], trainer.meter.passes, traced=compiler is not None
    )
    trainer.heed_signals()
    before = _global_state(torch)
    trainer.place(backbone)
    model = plugin.call("pretrain", backbone=backbone, config=config, engine=trainer)
    changed = [name for name, value in _global_state(torch).items() if value != before[name]]
    counter.remove()
    if compiler is not None:
        compiler.end()
    trained = getattr(model, "backbone", None)
    if not isinstance(trained, torch.nn.Module):
        raise UserError(
            f"pretrain returned {type(model).__name__}; expected a module with attribute backbone"
        )
    if card.role != "floor" and not trainer.meter.updates:
        return _outcome("invalid", NO_UPDATE)
    drawn = trainer.step_index * trainer.batch_size / world
    passes = {
        f"passes_{kind}": round(count / drawn, 4) if drawn else 0.0
        for kind, count in trainer.meter.passes.items()
    }
    cost = {
        "train_seconds": trainer.meter.seconds,
        "images_per_second": _median(trainer.meter.windows),
        "peak_memory_gib": trainer.meter.peak_gib,
        "parameters": sum(p.numel() for p in trained.parameters()),
        **passes,
    }
    if world > 1:  # what follows is rank 0's, and may take longer than a collective waits
        dist.barrier()
        dist.destroy_process_group()
    artifacts, samples, refused = _save(folder, model) if rank == 0 else {}, {}, []
    if rank == 0 and card.sampling is not None and sampling.wanted(orders["evaluations"]):
        try:
            samples = sampling.draw_all(
                folder, orders, plugin, card, model, trainer, images, meta["num_classes"]
            )
        except sampling.BadSamples as error:
            return _outcome("invalid", str(error))
        refused = _picture(folder, orders, plugin, card, model, trainer)
    if samples:
        cost["sampling_seconds"] = sum(s["seconds"] for s in samples.values())
    files = [f for s in samples.values() for f in (s, s.get("reconstructions")) if f]
    artifacts |= {file["file"]: {k: file[k] for k in ("sha256", "bytes")} for file in files}
    notes = [*refused, *([f"changed global state: {', '.join(changed)}"] if changed else [])]
    if card.role == "method" and trainer.step_index < trainer.steps:
        notes.append(f"stopped after {trainer.step_index} of {trainer.steps} steps")
    if card.role == "method" and trainer.meter.updates < trainer.step_index:
        notes.append(f"{trainer.meter.updates} updates in {trainer.step_index} steps")
    health_values = trainer.meter.health
    return _outcome(
        "done",
        artifacts=artifacts,
        cost=cost,
        notes=notes,
        health=health_values,
        samples=samples,
        considered=[protocol.hash for protocol in sampling.wanted(orders["evaluations"])],
    )


def seed_everything(seed: int) -> None:
    """Seed torch, and the generators of Python and NumPy that a plugin may use by mistake.

    Only torch's is seeded anew in every step: what draws from the others in its loop starts the
    same in every run, and is not the same after a resume.
    """
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _picture(
    folder: Path, orders: dict[str, Any], plugin: Any, card: Any, model: Any, trainer: Any
) -> list[str]:
    """Write the method's own pictures, by the settings of the first protocol over samples; return a
    line for each that is left out."""
    import torch

    from bench import cards, sampling, sheets
    from bench.identity import stream

    if not plugin.has("picture"):
        return []
    protocol, *_ = sampling.wanted(orders["evaluations"])
    settings = cards.sampling_object(card, protocol.settings["sampling"])
    torch.manual_seed(stream(orders["spec"]["seed"], "generate", "picture"))
    with torch.no_grad():
        try:
            pictures = plugin.call("picture", model=model, engine=trainer, sampling=settings)
        except Exception as error:  # of the plugin: the run and its samples are whole without it
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            return [f"the pictures are left out: {said[:200]}"]
    return sheets.write_pictures(folder, pictures)


def _join(folder: Path, rank: int, world: int, device: str) -> None:
    import torch
    import torch.distributed as dist

    method = "env://" if "MASTER_ADDR" in os.environ else f"file://{folder / 'tmp' / 'rendezvous'}"
    where: dict[str, Any] = {"backend": "gloo"}
    if device == "cuda":  # barriers and copies that name no card take the process's own
        torch.cuda.set_device(_device(device, rank))
        where = {"backend": "nccl", "device_id": torch.device(_device(device, rank))}
    dist.init_process_group(init_method=method, rank=rank, world_size=world, **where)


def _device(name: str, rank: int) -> str:
    """Return the process's device; under torchrun its card is that of its rank on its machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', rank)}" if name == "cuda" else name


def _global_state(torch: Any) -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "working directory": str(Path.cwd()),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _median(values: list[float]) -> float:
    import statistics

    return statistics.median(values) if values else 0.0


def _save(folder: Path, model: Any) -> dict[str, Any]:
    """Write the backbone, and beside it the head where the method has one; return the artifacts."""
    import torch

    artifacts = {"backbone.safetensors": _save_state(folder, "backbone", model.backbone)}
    head = getattr(model, "head", None)
    if isinstance(head, torch.nn.Module):
        size = sum(t.nbytes for t in head.state_dict().values() if isinstance(t, torch.Tensor))
        if 0 < size <= HEAD_BYTES:
            artifacts["head.safetensors"] = _save_state(folder, "head", head)
    return artifacts


def _save_state(folder: Path, name: str, module: Any) -> dict[str, Any]:
    import hashlib

    from safetensors.torch import save

    from bench.files import write_atomically

    tensors = {k: v for k, v in module.state_dict().items() if hasattr(v, "detach")}
    # Clones: tensors that share memory, as tied weights do, are refused otherwise.
    content = save({key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()})
    write_atomically(folder / f"{name}.safetensors", content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _places(folder: Path, orders: dict[str, Any]) -> tuple[list[Path], list[Path]]:
    """Return what the plugin must not read, and what of it it may.

    Hidden: the data set's own files, arrays, other runs, results (their bits give labels away),
    published ones too, and the encoders of the package. A label-free plugin so finds no label and
    no backbone that was trained on labels; no plugin a test image.
    """
    arrays, boards = Path(orders["arrays"]), Path(orders["ledger"]).parent
    hidden = [Path(place) for place in orders.get("hidden", ())]
    hidden += [arrays.parent, Path(orders["results"]), Path(__file__).parent / "encoders"]
    hidden += [boards / name for name in ("results", "studies")]
    for working in (folder.parent, folder.parent.parent):  # what `reproduce` does lies in another's
        others = [orders.parent for orders in working.glob("*/run.json")]
        if others:
            hidden += [working / name for name in WORKED_IN]
            hidden += [other for other in others if other != folder]
    names = ["images.npy", "meta.json", *(["labels.npy"] if orders["row"]["uses_labels"] else [])]
    own_file = [Path(orders["plugin"])] if orders["plugin"].endswith(".py") else []
    return hidden, [folder, *own_file, *(arrays / name for name in names)]


def confined(folder: Path, rank: int, world: int, pipe: int | None) -> int:
    """Give up the right to write elsewhere and to read the data set, run, tell the outcome; return
    the exit status.

    0: told; 1: told that it failed; 130, 143: stopped by a signal, checkpoint written.
    """
    from bench.engine import Interrupted

    orders = json.loads((folder / "run.json").read_text())
    (folder / "tmp").mkdir(exist_ok=True)
    driver = [Path("/dev"), Path.home() / ".nv"] if orders["device"].startswith("cuda") else []
    kept = confine_writes([folder, *driver], [Path(os.devnull)])
    if not (hide(*_places(folder, orders)) and kept):
        print("this kernel has no Landlock: the plugin may read and write wherever the user may")
    try:
        outcome = run(folder, rank, world)
    except Interrupted as stop:
        outcome = _outcome("interrupted", str(stop))
        status = 128 + stop.signum
    else:
        status = STATUS_OF_EXIT.get(outcome["status"], 1)
    text = json.dumps(outcome).encode()
    if pipe is None:
        (folder / f"outcome-{rank}.json").write_bytes(text)
    else:
        os.write(pipe, text)
    return status


def main(arguments: list[str]) -> int:
    """`python -m bench.child RUN_DIR [--worker PID OUTCOME_FD]`, also under torchrun."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    pipe = None
    if arguments[1:2] == ["--worker"]:
        die_with_parent(signal.SIGKILL, int(arguments[2]))
        pipe = int(arguments[3])
    return confined(Path(arguments[0]).resolve(), rank, world, pipe)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
