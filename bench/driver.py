"""Whether there is an NVIDIA card to run on, as far as files say: torch is not imported."""

from __future__ import annotations

import os

from bench.errors import UserError

DRIVERS = ("/proc/driver/nvidia", "/dev/dxg")  # of Linux; of Windows, under which Linux runs


def cuda_is_asked(device: str) -> None:
    """Refuse a CUDA device where no card can be seen, without importing torch.

    Raises:
        UserError: no NVIDIA driver is loaded, or CUDA_VISIBLE_DEVICES hides every card.
    """
    if device.startswith("cuda") and not card_is_there():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        loaded = "every card is hidden" if any(map(os.path.exists, DRIVERS)) else "no NVIDIA driver"
        raise UserError(
            f"--device {device}: {loaded} (CUDA_VISIBLE_DEVICES is {visible}); use --device cpu"
        )


def card_is_there() -> bool:
    """Return whether an NVIDIA driver is loaded and may show a card."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and any(map(os.path.exists, DRIVERS))
