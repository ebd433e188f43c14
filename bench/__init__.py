"""What a plugin's author imports: the hook marker, the card, the engine's protocol."""

from __future__ import annotations

import pluggy

hookimpl = pluggy.HookimplMarker("bench")

ENGINE = 1  # raised by hand when the engine's trained bytes change: older rows become stale

from bench.errors import Unsupported  # noqa: E402
from bench.hookspecs import Batch, Engine, MethodCard  # noqa: E402

__all__ = ["ENGINE", "Batch", "Engine", "MethodCard", "Unsupported", "hookimpl"]
