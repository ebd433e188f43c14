"""A run's projection head, rebuilt from its file without the code that trained it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bench.integrity import IntegrityError
from bench.layers import projection_mlp


def load_head(path: Path, sha256: str) -> nn.Sequential:
    """Return the head in a run's `head.safetensors`, in eval mode: (B, F) to (B, D).

    Layers and widths are read from the names and shapes; `bench.layers.projection_mlp` builds them.

    Raises:
        IntegrityError: no file, other bytes than recorded, or no head of that kind.
    """
    if not path.is_file():
        raise IntegrityError(f"{path.name} is missing")
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise IntegrityError(f"{path.name} hashes to {actual[:10]}, recorded is {sha256[:10]}")
    try:
        weights = load(content)
    except SafetensorError as error:
        raise IntegrityError(f"{path.name} is no safetensors file: {error}") from None
    try:
        head = _build(weights)
        head.load_state_dict(weights, strict=True)
    except (RuntimeError, ValueError, IndexError) as error:
        said = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{path.name} is no projection head of ours: {said}") from None
    return head.eval()


def _build(weights: dict[str, Tensor]) -> nn.Sequential:
    """Return the projection head whose linear layers and norms have these shapes."""
    layers = sorted({int(key.partition(".")[0]) for key in weights if key[:1].isdigit()})
    linear = [at for at in layers if weights[f"{at}.weight"].ndim == 2] if layers else []
    if not linear:
        raise ValueError(f"its tensors are {', '.join(sorted(weights)[:5])}")
    first, last = weights[f"{linear[0]}.weight"], weights[f"{linear[-1]}.weight"]
    norms = [at for at in layers if f"{at}.running_mean" in weights]
    return projection_mlp(
        first.shape[1],
        first.shape[0],
        last.shape[0],
        depth=len(linear),
        norm=any(at < linear[-1] for at in norms),
        out_norm=any(at > linear[-1] for at in norms),
    )
