"""What the generator's losses give back: automatic gradients beside the formulas.

On a logit l the minimax loss has the gradient -sigma(l), the non-saturating one -(1 - sigma(l))
(Goodfellow et al., NeurIPS 2014, Section 3): where the discriminator is sure that a sample is none
of the data's, l is far below 0, the first vanishes, and the second does not.
"""

from __future__ import annotations

import torch

from bench.adversarial import GENERATOR_LOSSES
from bench.studies import Observation

ID = "gan_losses"
VERSION = 1
READS_RUNS = False
HOLDS = "the losses themselves"
SETTINGS = {"logits": [-20.0, 20.0], "count": 1001}


def observe(seed: int, settings: dict) -> Observation:
    """Return the largest error of both gradients in percent of the largest gradient, which is 1.

    Nothing is drawn, so that every seed finds the same.
    """
    logits = torch.linspace(*settings["logits"], settings["count"], dtype=torch.float64)
    sure = torch.sigmoid(logits)
    formulas = {"minimax": -sure, "non_saturating": sure - 1}
    errors, shown = [], {}
    for name, formula in formulas.items():
        point = logits.clone().requires_grad_()
        (GENERATOR_LOSSES[name](point) * len(point)).backward()  # the loss is a mean
        errors.append(float((point.grad - formula).abs().max()))
        shown[f"{name}_gradient_at_{settings['logits'][0]:g}"] = float(point.grad[0])
    return Observation({"largest_gradient_error": 100.0 * max(errors)}, shown)
