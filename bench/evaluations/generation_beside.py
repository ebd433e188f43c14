"""Generation, beside: the same samples against the same reference in a second network's features.

A distance is a statement about its extractor. One trained on ImageNet sees textures that a gray
garment at 28 pixels lacks; the track's own, trained on images like these that are in no reference,
sees what tells them apart. What both say of two methods does not hang on the network.

The same metrics as `generation`, but for memorisation, which is in pixels and is told there.
"""

from __future__ import annotations

from bench.evaluations import Evaluation, Subject, generation
from bench.sampling import Samples

ID = "generation_beside"
VERSION = 1
SETTINGS = generation.SETTINGS | {"extractor": "pixels"}
NEEDS = "samples"


def check(settings: dict) -> None:
    """Refuse what `generation` refuses."""
    generation.check(settings)


def refuse_sizes(settings: dict, train: int, test: int) -> None:
    """Raise UserError if there are fewer training images than the reference takes."""
    generation.refuse_sizes(settings, train, test)


def evaluate(subject: Subject, samples: Samples, settings: dict, seed: int) -> Evaluation:
    """Return the metrics of `generation` in the features of `settings["extractor"]`."""
    return generation.in_features(subject, samples, settings, seed)
