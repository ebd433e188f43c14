"""Evaluate without training: more protocols for a run, or a checkpoint from elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.identity import digest, file_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.results import Result

HEADS = ("fc.", "head.", "classifier.")
NESTED = ("state_dict", "model", "module", "teacher", "student")
THREADS = 1  # for evaluations that train
UNKNOWN_DATA = "external: training data unknown"


def evaluate_run(
    run: str, names: list[str], runs_dir: Path, *, ledger_file: Path | None = None
) -> Result:
    """Add the protocols `names` to the result of a finished run, from its backbone's bytes.

    Args:
        run: a run id, its folder, or its result file.
        ledger_file: where this look at the test split is written down; default: the boards' own.

    Raises:
        UserError: no such run, or its backbone is not the one that the result records.
    """
    import torch

    from bench import data, evaluations, features, integrity, judge, ledger, noisy, results, worker

    evaluations.refuse_without_method(names)
    folder = given = Path(run)
    if not (folder / "run.json").is_file():
        folder = runs_dir / folder.name.removesuffix(".json")
    orders = worker.read_orders(folder)
    here = folder.resolve().parent
    own = given.is_file() and given.resolve().is_relative_to(here)
    path = given if own else results.path_of_run(orders, folder.resolve().name, here)
    kept, spec = results.read(path), orders["spec"]
    torch.set_num_threads(spec["threads"])
    if orders["plugin"] is None or kept.status != "done":
        raise UserError(f"{folder.name} is {kept.status} and has no backbone; nothing to evaluate")
    if kept.evaluations and not any(entry.test_reads for entry in kept.evaluations.values()):
        raise UserError(f"{path} is of --dev or a trial, whose test split stays closed")
    dataset, split = data.of_spec(
        orders["dataset"], spec, test=True, on_bad_image=orders["on_bad_image"]
    )
    file = ledger_file or ledger.usual_folder() / ledger.FILE
    looks = [line for line in ledger.read(file) if line["run_id"] == folder.name]
    then = [line["test_sha256"] for line in looks]
    if then and then[-1] != dataset.test_sha256:
        raise UserError(
            f"{orders['dataset']}: its test images or labels hash to {dataset.test_sha256[:12]}, "
            f"and to {then[-1][:12]} when {folder.name} was judged; put them back as they were"
        )
    evaluations.refuse_missing(names, dataset)
    chosen = {name: evaluations.chooses(name, {}) for name in names}
    if spec["data"].get("parity") and any(chosen.values()):
        name = next(name for name in names if chosen[name])
        raise UserError(
            f"{folder.name} is a run of a parity track, which has no validation images; {name} "
            f"chooses {chosen[name]}"
        )
    sha256 = kept.artifacts["backbone.safetensors"].sha256
    device = evaluations.prepare_device(orders["device"])
    load = integrity.loader(spec, folder / "backbone.safetensors", sha256, device)
    try:
        backbone = load()
    except (integrity.IntegrityError, FileNotFoundError) as error:
        raise UserError(f"{folder.name} cannot be evaluated: {error}") from None
    ledger.append(
        file,
        ledger.of_run(
            track=orders["track"],
            spec=spec,
            run_id=folder.name,
            code=orders["code"],
            protocols=[evaluations.protocol(name, {}).hash for name in names],
            test_sha256=dataset.test_sha256,
        ),
    )
    kind = noisy.resolve(kept.row.input, backbone, dataset, split)
    seen = features.extract(backbone, dataset, split, kind=kind)
    subject = evaluations.Subject(
        seen, load, dataset, split, kind, spec["image_size"], True, spec["threads"]
    )
    for name in names:
        protocol = evaluations.protocol(name, {})
        if protocol.hash not in kept.evaluations:
            shown = noisy.seen_by([protocol], subject, backbone)[protocol.hash]
            found = {protocol.hash: judge.entry(protocol, shown, spec["seed"])}
            if kind != "rgb":
                noisy.store_plain(found, [protocol], subject, backbone, spec["seed"])
            entry = results.EvaluationEntry.model_validate(found[protocol.hash])
            kept = results.add_evaluation(path, protocol.hash, entry)
    return kept


def evaluate_checkpoint(
    backbone_spec: dict[str, Any],
    weights: Path,
    dataset_name: str,
    *,
    image_size: int,
    names: list[str],
    runs_dir: Path,
    store_size: int | None = None,
    seed: int = 0,
    on_bad_image: str = "error",
    ledger_file: Path | None = None,
) -> tuple[Result, list[str]]:
    """Evaluate a checkpoint from elsewhere; return its result and what was done to load it.

    Args:
        on_bad_image: as for `bench.data.load`.
        ledger_file: as for `evaluate_run`.

    Raises:
        UserError: the file is no checkpoint, or does not fit the backbone.
    """
    import torch

    from bench import ENGINE, data, evaluations, features, judge, ledger, results
    from bench.backbones import build
    from bench.track import data_name

    begun = time.monotonic()
    torch.set_num_threads(THREADS)
    evaluations.refuse_without_method(names)
    backbone = build(backbone_spec, image_size)
    notes = load_external(backbone, weights)
    dataset = data.load(
        dataset_name, image_size=image_size, store_size=store_size, on_bad_image=on_bad_image
    )
    evaluations.refuse_missing(names, dataset)
    split = data.split(dataset, seed)
    facts = data.facts(dataset)
    sha256 = file_sha256(weights)
    method = "".join(c if c.isalnum() else "_" for c in weights.stem.lower())[:60]
    spec = {
        "schema": results.SCHEMA,
        "method": method,
        "config": {},
        "seed": seed,
        "data": {
            "name": data_name(facts["name"]),
            "sha256": facts["sha256"],
            "split": split.sha256,
        }
        | ({"store_size": store_size} if store_size else {}),
        "image_size": image_size,
        "backbone": backbone_spec,
        "budget": {"steps": 0},
        "batch_size": 0,
        "precision": "fp32",
        "threads": THREADS,
        "weights": sha256,
    }
    track = f"external-{digest([facts['sha256'], image_size, backbone_spec])[:6]}"
    run_id = f"{method}-s{seed}-{digest(spec)[:10]}"
    protocols = [evaluations.protocol(name, {}) for name in names]
    path = runs_dir / "results" / track / f"{run_id}.json"
    try:  # before the look at the test split, which counts
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the result's folder {path.parent} cannot be made ({error.strerror}); choose another "
            "--runs-dir"
        ) from None
    ledger.append(
        ledger_file or ledger.usual_folder() / ledger.FILE,
        ledger.of_run(
            track=track,
            spec=spec,
            run_id=run_id,
            code={},
            protocols=[protocol.hash for protocol in protocols],
            test_sha256=dataset.test_sha256,
        ),
    )
    seen = features.extract(backbone, dataset, split)

    def load() -> nn.Module:
        fresh = build(backbone_spec, image_size)
        load_external(fresh, weights)
        return fresh

    subject = evaluations.Subject(seen, load, dataset, split, "rgb", image_size, True, THREADS)
    try:
        entries = judge.all_entries(protocols, subject, seed)
    except (evaluations.NonFinite, evaluations.BackboneChanged) as error:
        raise UserError(f"{weights.name}: {error}; no number is given") from None
    document = {
        "schema": results.SCHEMA,
        "run_id": run_id,
        "track": track,
        "spec": spec,
        "status": "done",
        "row": {"origin": "external", "title": weights.name, "notes": [UNKNOWN_DATA, *notes]},
        "code": {"engine": ENGINE},
        "artifacts": {weights.name: {"sha256": sha256, "bytes": weights.stat().st_size}},
        "cost": {"wall_seconds": time.monotonic() - begun},
        "machine": judge.machine({"device": "cpu", "spec": spec}),
        "data": judge.data_facts(dataset, split, True),
        "evaluations": _earlier(path, spec) | entries,
    }
    result = results.Result.model_validate(document)
    results.write(path, result)
    return results.read(path), notes


def _earlier(path: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Return what the same checkpoint was judged by before, by protocol hash."""
    from bench import results

    try:
        kept = results.read(path)
    except UserError:
        return {}
    return kept.document()["evaluations"] if kept.spec == spec else {}


def load_external(backbone: nn.Module, path: Path) -> list[str]:
    """Load a checkpoint into `backbone`, strictly; return what was stripped and left out.

    One prefix common to all matching keys is stripped; the weights of a classifier head are left
    out. Nothing else is forgiven.

    Raises:
        UserError: the file is missing or no checkpoint, or keys or shapes do not match; each is
            named.
    """
    weights, notes = read_weights(path), []
    expected = backbone.state_dict()
    if not any(key in expected for key in weights):
        first = next(iter(expected))
        ends = [key.removesuffix(first) for key in weights if key.endswith(first)]
        found = [p for p in ends if 2 * sum(p + k in weights for k in expected) >= len(expected)]
        if len(found) > 1:
            notes.append(f"several prefixes fit: {', '.join(found)}; the first is taken")
        if found:
            prefix = found[0]
            others = ", ".join(key for key in weights if not key.startswith(prefix)) or "none"
            notes.append(f"prefix {prefix!r} stripped; keys without it, left out: {others}")
            weights = {
                k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)
            }
    heads = [key for key in weights if key not in expected and key.startswith(HEADS)]
    if heads:
        notes.append(f"head left out: {', '.join(heads)}")
        weights = {key: value for key, value in weights.items() if key not in heads}
    faults = [f"missing {key}" for key in expected if key not in weights]
    faults += [f"unexpected {key}" for key in weights if key not in expected]
    faults += [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if faults:
        raise UserError(f"{path.name} does not fit the backbone: {', '.join(faults)}")
    backbone.load_state_dict(weights, strict=True)
    return notes


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a .pt file opened with weights only.

    Raises:
        UserError: no such file, or it holds no state dict.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; expected a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        text = "it holds more than tensors, or is damaged" if "weights_only" in text else text
        raise UserError(f"{path.name} is no checkpoint that can be read safely: {text}") from None
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    whole = isinstance(content, dict) and all(
        isinstance(name, str) and hasattr(value, "shape") for name, value in content.items()
    )
    if not whole:
        raise UserError(f"{path.name} holds no state dict; expected names with tensors")
    return content
