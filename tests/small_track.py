"""`digits` with evaluations of a second or two, for tests of what lies around them.

Every evaluation of the track still runs; few labels draw one label per class twice and finetuning
shows each rate 128 images.
"""

from __future__ import annotations

from pathlib import Path

DIGITS = Path(__file__).resolve().parents[1] / "bench" / "tracks" / "digits.toml"
SMALLER = {
    "[evaluations.few_labels]": "labels_per_class = [1]\ndraws = [2]",
    "images_per_rate = 5000": "images_per_rate = 128",
}


def write(path: Path) -> Path:
    """Write the track to `path` and return it."""
    text = DIGITS.read_text(encoding="utf-8")
    for old, new in SMALLER.items():
        assert text.count(old) == 1, f"{DIGITS.name} no longer has {old!r}"
        text = text.replace(old, f"{old}\n{new}" if old.startswith("[") else new)
    path.write_text(text, encoding="utf-8")
    return path
