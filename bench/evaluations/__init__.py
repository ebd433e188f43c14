"""Evaluations: locked protocols over a judged backbone. Each has an id, a version and settings.

A protocol is a module with ID, VERSION, SETTINGS and one function. Most look at frozen features:
`evaluate(features, settings, seed)`. One that says `NEEDS = "images"` is given the whole subject,
`evaluate(subject, settings, seed)`: features, images, and copies of the backbone to train or to
look into. One that says `NEEDS = "samples"` is given the subject and what the method drew for it,
`evaluate(subject, samples, settings, seed)`; one that says `NEEDS = "nothing"` looks at the data
alone, and applies to the floor that has no backbone. One that says `NEEDS_EXTRA` is for data sets
that number this beside their classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UnknownName, UserError
from bench.evaluations.settings import refuse_other_elements
from bench.identity import protocol_hash, stream
from bench.metrics.names import BESIDE

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from bench.data import Dataset, Split
    from bench.features import Features
    from bench.sampling import Samples

NAMES = (
    "linear_probe",
    "knn",
    "few_labels",
    "linear_raw",
    "background_probe",
    "finetune",
    "linear_probe_sgd",
    "mlp_probe_spatial",
    "bn_recalibrated",
    "generation",
    "generation_beside",
    "calibration",
    "calibration_beside",
)


class BackboneChanged(Exception):
    """A frozen backbone was not what it was after an evaluation: the row is invalid."""


class NonFinite(Exception):
    """Features with a NaN or an infinity: the row is invalid, whatever argmax would say of it."""


@dataclass(frozen=True)
class Evaluation:
    """What a protocol found.

    Attributes:
        metrics: on the test split, accuracies in percent; empty if it was not opened.
        validation: the same on validation, and what choices were made by.
        chosen: what was chosen on validation.
        predictions: class index per test image and column, int64 (N,).
        stamps: remarks that travel with the numbers.
        shares: per metric that is a mean over draws, in how many of them each test image was named
            rightly, whole numbers (N,).
        draws: how many draws those are of, 1 to 255.
    """

    metrics: dict[str, float]
    validation: dict[str, float]
    chosen: dict[str, Any]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    stamps: tuple[str, ...] = ()
    shares: dict[str, np.ndarray] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is judged: a backbone, the images it is judged on, and its features of them.

    Attributes:
        features: of all splits that may be opened, as protocols over features see them.
        load: builds the backbone and loads its bytes strictly; None where there is no backbone, as
            for the floor of raw pixels.
        dataset, split: images and which of them are for validation.
        kind: the input that the backbone is shown, as `backbones.to_input` knows it.
        image_size: side of the images in pixels, as the backbone sees them.
        test: whether the test split may be opened; if not, `dataset` has none.
        threads: that the numbers depend on, as the run's own do.
        cache: a folder for features of images that other runs will ask for, or None.
        samples: protocol hash -> what the method drew for it; empty where it draws nothing.
    """

    features: Features
    load: Callable[[], nn.Module] | None
    dataset: Dataset
    split: Split
    kind: str
    image_size: int
    test: bool
    threads: int
    samples: Mapping[str, Samples] = field(default_factory=dict)
    cache: Path | None = None

    def backbone(self) -> nn.Module | None:
        """Return a copy of the backbone that nothing else holds, or None if there is none."""
        return None if self.load is None else self.load()

    def images(self, split: str, *, stored: bool = False) -> np.ndarray:
        """Return the uint8 images (N, C, H, W) of train, validation or test, in features' order.

        Args:
            stored: as large as they are stored, to crop `image_size` from.

        Raises:
            LookupError: the test split, where it may not be opened.
        """
        if split == "test" and not self.test:
            raise LookupError("the test split is closed to this evaluation")
        key = "val" if split == "validation" and self.split.own else split
        images = self.dataset.stored if stored else self.dataset.images.__getitem__
        if key in ("val", "test"):
            return images(key)
        rows = self.split.train if key == "train" else self.split.val
        whole = images("train")
        return whole if len(rows) == len(whole) else whole[rows]  # no copy of all of them


@dataclass(frozen=True)
class Protocol:
    """An evaluation with its settings resolved; two hashes never share a column.

    Attributes:
        needs: "features", "images" if it needs the whole subject, "samples" if drawn images too,
            "nothing" if it looks at no method's work.
        extra: what the data set must number beside the classes, or nothing.
    """

    name: str
    id: str
    version: int
    settings: dict[str, Any]
    hash: str
    needs: str = "features"
    extra: str = ""

    @property
    def label_scarce(self) -> bool:
        """Return whether no label outside a draw may be used, not even for a choice."""
        return bool(self.settings.get("labels_per_class"))

    def applies(self, subject: Subject) -> bool:
        """Return whether there is something to evaluate; raw pixels have no backbone to train, and
        most methods draw no images."""
        if self.needs == "samples":
            return self.hash in subject.samples
        if self.needs == "nothing":
            return subject.load is None
        return self.needs == "features" or subject.load is not None

    def evaluate(self, subject: Features | Subject, seed: int) -> Evaluation:
        """Evaluate a subject to which the protocol applies.

        Args:
            subject: features alone are enough for a protocol that needs no more.

        Raises:
            NonFinite: the features hold a NaN or an infinity.
            UserError: the data set lacks what the protocol needs beside the classes.
        """
        features = getattr(subject, "features", subject)
        if self.extra and self.extra not in features.extras:
            raise UserError(_lacks(self, "this data set"))
        refuse_non_finite(features)
        evaluate = _module(self.name).evaluate
        if self.needs == "features":
            return evaluate(features, self.settings, seed)
        shown = (subject.samples[self.hash],) if self.needs == "samples" else ()
        work = partial(evaluate, subject, *shown, self.settings, seed)
        return _apart(work, stream(seed, "evaluate", self.id, 0), subject.threads)


def protocol(name: str, overrides: dict[str, Any] | None = None, *, check: bool = True) -> Protocol:
    """Return a protocol with its settings, `overrides` taken over its own.

    Args:
        check: ask the protocol's own `check` of them, which may read the weights of an extractor.

    Raises:
        UnknownName: no such protocol or setting.
        UserError: a setting or an element of another type, or one that the protocol's own `check`
            refuses.
    """
    if name not in NAMES:
        raise UnknownName("evaluation", name, NAMES)
    module = _module(name)
    settings = dict(module.SETTINGS)
    for key, value in (overrides or {}).items():
        if key not in settings:
            raise UnknownName(f"setting of {name}", key, list(settings))
        if type(value) is not type(settings[key]):
            kind = type(settings[key]).__name__
            raise UserError(f"{name}.{key} is {value!r}; expected a value of type {kind}")
        refuse_other_elements(f"{name}.{key}", value, settings[key])
        settings[key] = value
    if check and hasattr(module, "check"):
        module.check(settings)
    hashed = protocol_hash(module.ID, module.VERSION, settings)
    needs = getattr(module, "NEEDS", "features")
    extra = getattr(module, "NEEDS_EXTRA", "")
    return Protocol(name, module.ID, module.VERSION, settings, hashed, needs, extra)


def chooses(name: str, overrides: dict[str, Any]) -> str:
    """Return what a protocol chooses on validation, and how it would not; "" if it chooses nothing.

    Tracks ask this where torch must not be imported, so it is no attribute of the modules.
    """
    if name == "few_labels":
        return ""
    if name.removesuffix(BESIDE) in ("generation", "calibration"):
        return "nothing, but measures against validation images"
    if name == "knn":
        k = overrides.get("k")
        one = isinstance(k, list) and len(k) == 1
        return "" if one else "k, unless it is given one: k = [200]"
    if name == "linear_probe_sgd":
        joined = overrides.get("train_on") == "train+validation"
        return "" if joined else 'nothing, but it needs train_on = "train+validation"'
    return "by validation scores"


def over_features() -> list[str]:
    """Return the protocols that need no more than features and classes: those that take seconds."""
    every = map(protocol, NAMES)
    return [found.name for found in every if found.needs == "features" and not found.extra]


def refuse_without_method(names: Iterable[str]) -> None:
    """Raise UserError if a protocol judges what only a method at work, or none at all, has."""
    for found in map(protocol, names):
        if found.needs in ("samples", "nothing"):
            judged = (
                "samples, which a method draws" if found.needs == "samples" else "the data alone"
            )
            raise UserError(
                f"{found.name} judges {judged}, no backbone; `bench run` carries it out on a track "
                "that has it (--samples, --sampling)"
            )


def refuse_missing(names: Iterable[str], dataset: Dataset) -> None:
    """Raise UserError if a protocol needs what this data set does not know of its images."""
    for found in map(protocol, names):
        if found.extra and found.extra not in dataset.extra_names:
            raise UserError(_lacks(found, f"data set {dataset.name!r}"))


def refuse_sizes(
    asked: dict[str, dict[str, Any]], train: int, test: int, unlabeled: int = 0
) -> None:
    """Raise UserError if a protocol takes more images than its splits have, or compares samples
    with other images than methods without labels train on; test is 0 if closed."""
    for name, overrides in asked.items():
        if unlabeled and protocol(name, overrides).needs == "samples":
            raise UserError(
                f"{name} compares samples with the labelled training images, and methods without "
                f"labels would train on the {unlabeled} unlabeled ones; leave {name} out, or take "
                "data without unlabeled images"
            )
        if hasattr(module := _module(name), "refuse_sizes"):
            module.refuse_sizes(protocol(name, overrides).settings, train, test)


def _lacks(protocol: Protocol, dataset: str) -> str:
    return (
        f"{protocol.name} needs to know the {protocol.extra} of each image, which {dataset} does "
        f"not say; leave {protocol.name} out, or use the data set scenes"
    )


def refuse_non_finite(features: Features) -> None:
    """Raise NonFinite if a feature of any split and stage is NaN or infinite."""
    for split in ("train", "validation", "test"):
        for stage, values in (getattr(features, split) or {}).items():
            bad = int((~values.isfinite()).any(1).sum())
            if bad:
                raise NonFinite(f"{bad} of {len(values)} {split} images have non-finite {stage}")


def prepare_device(name: str) -> str:
    """Return where evaluations of a run on `name`, cpu or cuda, take place: there, or on the CPU
    where no card is at hand. On CUDA full fp32 and repeatable algorithms are set first."""
    import torch

    if not name.startswith("cuda") or not torch.cuda.is_available():
        return "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    return "cuda"


def _apart(work: Callable[[], Evaluation], seed: int, threads: int) -> Evaluation:
    """Return what `work` returns, its generator seeded; torch is left as it was found."""
    import torch

    before = torch.get_num_threads()
    awake = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=awake):  # a worker that judges on the CPU wakes no card
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            return work()
        finally:
            torch.set_num_threads(before)


def _module(name: str) -> Any:
    return importlib.import_module(f"bench.evaluations.{name}")
