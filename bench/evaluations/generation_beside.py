"""Generation, beside: the same samples against the same reference in a second network's features.

A distance is a statement about its extractor. One trained on ImageNet sees textures that a gray
garment at 28 pixels lacks; the track's own, trained on images like these that are in no reference,
sees what tells them apart. What both say of two methods does not hang on the network.

The same metrics as `generation`, but for memorisation, which is in pixels and is told there.
"""

from __future__ import annotations

from bench.evaluations import generation

ID = "generation_beside"
VERSION = 1
SETTINGS = generation.SETTINGS | {"extractor": "pixels"}
NEEDS = "samples"
check, refuse_sizes, evaluate = generation.check, generation.refuse_sizes, generation.in_features
