"""Images of a generator: drawn in chunks under addressed randomness, checked, kept as uint8.

The child draws them, after `pretrain`, for every protocol over samples that the run is judged by;
the worker reads them back. Sampling settings belong to the protocol, not to the run, so that one
training serves any number of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import cards, evaluations
from bench.backbones import to_input
from bench.data.resize import centre
from bench.engine import Interrupted
from bench.files import write_atomically
from bench.identity import canonical_json, digest, stream
from bench.results import SAMPLES

if TYPE_CHECKING:
    from bench.engine import Trainer
    from bench.evaluations import Protocol
    from bench.hookspecs import MethodCard

CHUNK = 250  # images at a time: a sign of life between two of them
BEAT_SECONDS = 1.0  # between signs of life within one
KEPT_SECONDS = 10.0  # a chunk that took longer is kept until all are drawn
SLACK = 1e-3  # of rounding beyond [-1, 1]


class BadSamples(Exception):
    """What `generate` returned is not what was asked of it: the row is invalid."""


@dataclass(frozen=True)
class Samples:
    """What a generator drew for one protocol.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,) that were asked for, None if the method is not conditional.
        sampling: every sampling setting, as JSON.
        reconstructions: of the reference images, in their order, uint8 (N, 3, H, W); None of a
            method that reconstructs nothing.
    """

    images: np.ndarray
    labels: np.ndarray | None
    sampling: dict[str, Any]
    reconstructions: np.ndarray | None = None


def wanted(entries: Sequence[Mapping[str, Any]]) -> list[Protocol]:
    """Return the protocols over samples among a run's evaluations, {"name", "overrides"} each.

    Names that are no evaluation's, and settings that have no extractor, are left to the judge, who
    says so: a child may not read an extractor's weights.
    """
    known = [e for e in entries if e["name"] in evaluations.NAMES]
    found = [evaluations.protocol(e["name"], e["overrides"], check=False) for e in known]
    return [protocol for protocol in found if protocol.needs == "samples"]


def file_name(protocol_hash: str, kind: str = "") -> str:
    """Return the name of the file of a protocol's samples, or of reconstructions, in a run's
    folder."""
    return f"{SAMPLES}{protocol_hash[:12]}{kind}.npy"


def reference_rows(num_images: int, count: int, seed: int) -> np.ndarray:
    """Return which training images samples are compared with, ascending; each seed has its own."""
    generator = np.random.default_rng(stream(seed, "evaluate", "generation", 0))
    return np.sort(generator.permutation(num_images)[:count])


def balanced_labels(num_images: int, num_classes: int) -> Tensor:
    """Return int64 labels (num_images,), each class as often as the others, interleaved."""
    return torch.arange(num_images) % num_classes


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images in [-1, 1] as uint8, rounded."""
    scaled = ((images.float() + 1) * 127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).cpu().numpy()


def draw(
    generate: Callable[..., Any],
    num_images: int,
    image_size: int,
    labels: Tensor | None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    between: Callable[[], None] = lambda: None,
    chunks: Chunks | None = None,
) -> np.ndarray:
    """Return uint8 images (num_images, 3, image_size, image_size).

    Args:
        generate: called with `num_images` and `labels` of each chunk, in [-1, 1].
        labels: int64 (num_images,) for conditional methods, else None.
        seed: of the run; each chunk has a random stream of its own, whatever was drawn before.
        between: called before each chunk.
        chunks: where one that took long is kept; what is kept there is not drawn again.

    Raises:
        BadSamples: a chunk is no tensor, of another shape, not finite, or out of [-1, 1].
    """
    parts = []
    for number, start in enumerate(range(0, num_images, CHUNK)):
        between()
        count = min(CHUNK, num_images - start)
        if chunks and (found := chunks.read(number)) is not None:
            parts.append(found)
            continue
        begun = time.monotonic()
        asked = None if labels is None else labels[start : start + count].to(device)
        torch.manual_seed(stream(seed, "generate", number))
        with torch.no_grad():
            images = generate(num_images=count, labels=asked)
        _refuse("generate", images, (count, 3, image_size, image_size))
        parts.append(to_uint8(images))
        if chunks:
            chunks.keep(number, parts[-1], time.monotonic() - begun)
    return np.concatenate(parts)


@dataclass
class Chunks:
    """Chunks of a protocol's samples that took long, kept until the others are drawn.

    Attributes:
        folder: of the run. of: names what they are chunks of, code and weights included.
        seconds: that those took which were read.
    """

    folder: Path
    of: str
    seconds: float = 0.0

    def path(self, number: int | str) -> Path:
        return self.folder / f"chunk-{self.of}-{number}.npz"

    def read(self, number: int) -> np.ndarray | None:
        """Return uint8 images (B, 3, H, W) that are kept, or None."""
        if not self.path(number).is_file():
            return None
        with np.load(self.path(number), allow_pickle=False) as found:
            self.seconds += float(found["seconds"])
            return found["images"]

    def keep(self, number: int, images: np.ndarray, seconds: float) -> None:
        """Write a chunk whole, if it took long."""
        if seconds > KEPT_SECONDS:
            content = io.BytesIO()
            np.savez(content, images=images, seconds=seconds)
            write_atomically(self.path(number), content.getvalue())

    def clear(self) -> None:
        """Remove all of them."""
        for place in self.folder.glob(self.path("*").name):
            place.unlink()


@contextlib.contextmanager
def signs_of_life(model: Any, between: Callable[[], None]) -> Iterator[None]:
    """Call `between` now and then while a model's parts are at work: a chunk may take longer than a
    run may be silent. It draws no random number, so images stay what they are."""
    last = time.monotonic()

    def told(*_: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT_SECONDS:
            between()
            last = time.monotonic()

    parts = model.children() if isinstance(model, nn.Module) else ()
    hooks = [part.register_forward_pre_hook(told) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reconstruct(
    again: Callable[[Tensor], Any],
    images: np.ndarray,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return what a method gives back of uint8 images (N, C, H, H), as uint8 (N, 3, H, H).

    Args:
        again: called with `images`, float (B, 3, H, H) in [-1, 1], of each chunk.
        seed, device, between: as for `draw`.

    Raises:
        BadSamples: as `draw`.
    """
    parts = []
    for number, start in enumerate(range(0, len(images), CHUNK)):
        between()
        shown = to_input(torch.from_numpy(images[start : start + CHUNK])).to(device)
        torch.manual_seed(stream(seed, "generate", "reconstruct", number))
        with torch.no_grad():
            found = again(images=shown)
        _refuse("reconstruct", found, tuple(shown.shape))
        parts.append(to_uint8(found))
    return np.concatenate(parts)


def draw_all(
    folder: Path,
    orders: Mapping[str, Any],
    plugin: Any,
    card: MethodCard,
    model: Any,
    trainer: Trainer,
    stored: np.ndarray,
    num_classes: int,
) -> dict[str, dict[str, Any]]:
    """Draw what a run's protocols over samples ask for; return what lies where by their hash.

    Args:
        stored: the images that the method was trained on, uint8 (N, C, H, W), perhaps larger.

    Raises:
        BadSamples: what the plugin returned is not what it was asked for.
        Interrupted: a signal came; the trained model's checkpoint stands.
    """

    def between() -> None:
        trainer.meter.beat(trainer.step_index)
        if trainer.stop_signal:
            raise Interrupted(trainer.stop_signal)

    shared: dict[str, Any] = {
        "seed": orders["spec"]["seed"],
        "device": trainer.device,
        "between": between,
    }
    compiled = orders["spec"].get("compile")  # hooks would be compiled into its graphs
    drawn: dict[str, dict[str, Any]] = {}
    alike: dict[str, str] = {}  # what was asked -> the first protocol that asked it
    for protocol in wanted(orders["evaluations"]):
        settings = cards.sampling_object(card, protocol.settings["sampling"])
        count, key = protocol.settings["samples"], protocol.hash
        values = cards.sampling_values(settings)
        asked = canonical_json([count, protocol.settings["reference"], values])
        if (first := alike.setdefault(asked, key)) != key:  # the same images, drawn already
            drawn[key] = drawn[first] | {"seconds": 0.0}
            continue
        labels = balanced_labels(count, num_classes) if card.conditional else None
        begun = time.perf_counter()
        generate = partial(plugin.call, "generate", model=model, sampling=settings)
        chunks = Chunks(folder, digest([trainer.identity_hash, key])[:12])
        with signs_of_life(None if compiled else model, between):
            images = draw(generate, count, trainer.image_size, labels, chunks=chunks, **shared)
        seconds = time.perf_counter() - begun + chunks.seconds
        drawn[key] = {
            "sampling": values,
            "num_classes": num_classes if card.conditional else 0,
            "seconds": round(seconds, 3),
        } | save(folder, file_name(key), images)
        chunks.clear()
        if plugin.has("reconstruct") and "limit" not in orders["spec"]["data"]:
            rows = reference_rows(len(stored), protocol.settings["reference"], shared["seed"])
            again = partial(plugin.call, "reconstruct", model=model)
            found = reconstruct(again, centre(stored[rows], trainer.image_size), **shared)
            drawn[key]["reconstructions"] = save(folder, file_name(key, "-again"), found)
    return drawn


def _refuse(hook: str, images: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(images, Tensor):
        raise BadSamples(f"{hook} returned {type(images).__name__}, expected a tensor {shape}")
    if tuple(images.shape) != shape:
        raise BadSamples(f"{hook} returned images {tuple(images.shape)}, expected {shape}")
    if not images.is_floating_point():
        raise BadSamples(f"{hook} returned {images.dtype}, expected floats in [-1, 1]")
    bad = int((~images.flatten(1).isfinite()).any(1).sum())
    if bad:
        raise BadSamples(f"{hook} returned {bad} of {len(images)} images that are not finite")
    low, high = float(images.min()), float(images.max())
    if low < -1 - SLACK or high > 1 + SLACK:
        raise BadSamples(
            f"{hook} returned values from {low:.3g} to {high:.3g}, expected [-1, 1]; end with "
            "tanh or clamp"
        )


def save(folder: Path, name: str, images: np.ndarray) -> dict[str, Any]:
    """Write an array whole or not at all; return its name, its sha256 and its size in bytes."""
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    content = buffer.getvalue()
    write_atomically(folder / name, content)
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return {"file": name} | facts


def read(folder: Path, drawn: Mapping[str, Any], num_images: int, image_size: int) -> Samples:
    """Return what the child said it drew, {"file", "sha256", "sampling", "num_classes"}.

    Raises:
        BadSamples: the file is not the one that was announced, or holds something else.
    """
    expected = (num_images, 3, image_size, image_size)
    images = _announced(folder, drawn, expected)
    again = drawn.get("reconstructions")
    classes = drawn["num_classes"]
    labels = balanced_labels(num_images, classes).numpy() if classes else None
    reconstructions = _announced(folder, again, expected) if again else None
    return Samples(images, labels, dict(drawn["sampling"]), reconstructions)


def _announced(folder: Path, said: Mapping[str, Any], expected: tuple[int, ...]) -> np.ndarray:
    path = folder / said["file"]
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise BadSamples(f"{path.name} was changed after the run wrote it")
    images = np.load(io.BytesIO(content), allow_pickle=False)
    if images.dtype != np.uint8 or images.shape != expected:
        raise BadSamples(f"{path.name} holds {images.dtype} {images.shape}, expected {expected}")
    return images
