"""The contract between `bench` and a method: the hooks, the card, the engine.

A plugin is one module that implements these hooks with `@bench.hookimpl`. Take only the arguments
you use, and give them no default values. The entry-point name in the group `bench` is the
method's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pluggy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

hookspec = pluggy.HookspecMarker("bench")


@dataclass(frozen=True)
class MethodCard:
    """What the harness must know of a method before it runs it. Data only: no code, no tensors.

    Attributes:
        title: the method's name as its paper writes it.
        paper: a URL.
        family: one of floor, reference, pretext, contrastive, gan, vae, diffusion, other.
        role: "floor" for rows every method must beat, "ceiling" for references that use the
            labels, "method" for all others.
        defaults: an instance of a frozen dataclass; the paper's large-scale recipe.
        recipes: named recipes, each an instance of the class of `defaults`; a track names one,
            and a plugin without that recipe runs its defaults.
        search: at most six dimensions for equal tuning, {field: (kind, *arguments)} with kind
            "log_uniform" (low, high) or "choice" (values...).
        sampling: an instance of a frozen dataclass, for methods that generate; else None.
        uses_labels: whether `Batch.labels` is filled. Such rows are never ranked with others.
        conditional: whether `generate` expects labels.
        input: what evaluations feed the backbone: rgb, gray3, lab_l, lab_halves or noisy (at a
            level of noise that the harness chooses on validation).
        needs: {"extras": (...), "backbone": "vit" | "conv"} where the method needs them.
        departs: one line on what differs from the paper and why; shown as a footnote.
    """

    title: str
    paper: str
    family: str
    defaults: Any
    role: str = "method"
    recipes: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    sampling: Any = None
    uses_labels: bool = False
    conditional: bool = False
    input: str = "rgb"
    needs: Mapping[str, Any] = field(default_factory=dict)
    departs: str = "nothing"


class Batch(NamedTuple):
    """One step's images, already seen through the method's views."""

    views: tuple[Tensor, ...]
    """Each float32 (B, 3, h, w) in [-1, 1]; sizes may differ between views."""
    labels: Tensor | None
    """int64 (B,) if the card says `uses_labels`, else None."""


View = Callable[["Tensor", Any], "Tensor"]
"""`view(images, draws)`: float32 (B, 3, H, W) in [0, 1] to the same range; see `bench.augment`."""


class Engine(Protocol):
    """What a plugin may use to train. It owns whatever must be equal between methods.

    Attributes:
        image_size: side in pixels that the backbone sees and evaluations show it. Source images may
            be stored larger; `random_resized_crop()` then comes out at this size, and what a view
            leaves as large as it is stored is cut to its centre.
        num_images: images in the training set.
        num_classes: classes of the labels if the card says `uses_labels`, else None.
        batch_size: source images per step over all processes.
        gray: whether all images are gray: three equal channels, as views show them.
        device: where modules and batches live.
        progress: share of the budget that is spent, 0 to 1, by source images drawn.
    """

    image_size: int
    num_images: int
    num_classes: int | None
    batch_size: int
    gray: bool
    device: torch.device
    progress: float

    def fit(
        self,
        model: nn.Module,
        *,
        views: tuple[View, ...] = ...,
        optimizer: str = "sgd",
        base_lr: float | None = None,
        lr: float | None = None,
        schedule: str = "cosine",
        warmup_epochs: float = 0,
        weight_decay: float = 0.0,
        after_step: Callable[..., None] | None = None,
        chunk: int | None = None,
        **optimizer_args: Any,
    ) -> nn.Module:
        """Train `model` until the budget is spent and return it.

        `model(*views)` (with `labels=` if the card says `uses_labels`) returns a scalar loss. A
        model that splits its `forward` into `embed(*views) -> tuple of tensors` and
        `loss(*embeddings) -> scalar` gives the same training, and allows `chunk`, a divisor of the
        batch, which users may ask for as well: the embeddings, each with a row per image, are then
        computed `chunk` source images (over all processes) at a time, with the gradient of the
        whole batch. BatchNorm in `embed` then normalises one chunk at a time.
        `after_step()` runs after each update; for a split model it gets the detached embeddings
        of the step, `after_step(*embeddings)`: moving averages and queues belong there.
        """

    def prepare(self, module: nn.Module, name: str = "model") -> nn.Module:
        """Place `module` on the device, make it equal on all processes, and restore it if a
        checkpoint has it. Returns the same object."""

    def optimizer(
        self,
        module: nn.Module,
        kind: str,
        *,
        name: str,
        base_lr: float | None = None,
        lr: float | None = None,
        schedule: str = "cosine",
        warmup_epochs: float = 0,
        weight_decay: float = 0.0,
        **args: Any,
    ) -> Any:
        """Return an optimizer over `module`'s trainable parameters, restored like `prepare`.

        Exactly one of `base_lr` (per 256 source images) and `lr` (absolute). `kind` is sgd, lars,
        adam, adamw or rmsprop; `schedule` is cosine, constant or multistep (`milestones=(0.6,
        0.8)` as shares of the budget, `gamma=0.1`). `decay_norm_and_bias=False` frees norms and
        biases of weight decay. `max_grad_norm` clips.
        """

    def batches(self, views: tuple[View, ...] = ..., until: float = 1.0) -> Iterator[Batch]:
        """Yield batches until the share `until` of the budget is spent, none if it already is."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run at the run's precision."""

    def step(self, loss: Tensor, optimizer: Any) -> None:
        """Zero the gradients, run backward, average over processes, clip, update."""

    def settle(self, backbone: nn.Module) -> None:
        """Re-estimate BatchNorm's statistics on clean training images (for methods that trained on
        tiles, masked or generated images)."""

    def log(self, **scalars: Any) -> None:
        """Record scalars, floats or 0-d tensors; read at the log interval, never synchronising."""


@hookspec(firstresult=True)
def describe() -> MethodCard:
    """Return the method's card.

    Called once before anything runs, in a short-lived child process. The first non-None result
    wins.
    """


@hookspec(firstresult=True)
def pretrain(backbone: nn.Module, config: Any, engine: Engine) -> nn.Module:
    """Train the backbone and return a module whose attribute `backbone` is what was trained.

    Called once per run, in a child process of its own, after the seed is set; called again with
    the same arguments when an interrupted run goes on, in which case the engine restores what
    `prepare`, `optimizer` and `fit` are given and yields only the batches that are left.

    Args:
        backbone: a timm model with `num_classes=0`, randomly initialised: `backbone(x)` maps
            float (B, 3, H, W) in [-1, 1] to features (B, backbone.num_features).
        config: an instance of the class of the card's `defaults`, every field resolved.
        engine: images, budget, devices, precision, checkpoints; see `Engine`.

    Raises:
        Unsupported: the method cannot run with this backbone or track; the row says why.

    The first non-None result wins.
    """


@hookspec(firstresult=True)
def generate(model: nn.Module, num_images: int, labels: Tensor | None, sampling: Any) -> Tensor:
    """Return float (num_images, 3, H, W) in [-1, 1] from the model that `pretrain` returned.

    Called in the child after `pretrain`, in chunks, each with its own random stream. `labels` is
    int64 (num_images,) if the card says `conditional`, else None. `sampling` is the card's
    `sampling` as resolved by the protocol. The first non-None result wins.
    """


@hookspec(firstresult=True)
def reconstruct(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the model gives back of images, both float (B, 3, H, W) in [-1, 1]; optional.

    For methods with an autoencoder: called in the child after `generate`, with the reference images
    of each protocol over samples, whose distance to their reconstructions then stands beside that
    of the samples; not where `--limit` keeps some of these from training. The first non-None result
    wins.
    """


@hookspec(firstresult=True)
def picture(model: nn.Module, engine: Engine, sampling: Any) -> dict[str, Tensor]:
    """Return named pictures, each float (rows, columns, 3, H, W) in [-1, 1]; optional.

    Called in the child after `pretrain`. The first non-None result wins.
    """


@hookspec
def run_finished(spec: dict[str, Any], result: dict[str, Any]) -> None:
    """Observe a finished run; called in a child of its own for each `--observers NAME`.

    `spec` and `result` are the run's JSON documents. Every observer is called; what one raises is
    logged and changes nothing.
    """
