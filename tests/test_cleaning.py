"""`bench clean` takes what can be made anew, and nothing that a run still needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cli, worker


def run(folder: Path, name: str, outcome: dict | None, steps: tuple[int, ...] = (5, 10)) -> Path:
    """Lay out a run's folder as its worker leaves it."""
    place = folder / name
    (place / "tmp").mkdir(parents=True)
    (place / "tmp" / "compiled").write_bytes(b"0" * 10)
    (place / "run.json").write_text("{}")
    for step in steps:
        (place / f"checkpoint-{step:09d}-{step:064x}.pt").write_bytes(b"0" * 1000)
    (place / "backbone.safetensors").write_bytes(b"0" * 500)
    (place / "metrics.jsonl").write_text("")
    if outcome is not None:
        (place / "outcome.json").write_text(json.dumps({"outcome": outcome}))
    return place


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    run(folder, "simclr-s0-0", {"status": "done", "considered": []})
    run(folder, "gan-s0-0", {"status": "done", "considered": ["abc"]})
    run(folder, "rotnet-s0-0", None)
    run(folder, "jigsaw-s0-0", {"status": "diverged"})
    lost = run(folder, "moco_v2-s0-0", {"status": "done", "considered": []})
    (lost / "backbone.safetensors").unlink()  # it is trained again, from its checkpoint
    (folder / "data" / "0123456789abcdef").mkdir(parents=True)
    (folder / "data" / "0123456789abcdef" / "images.npy").write_bytes(b"0" * 5000)
    (folder / "results" / "digits").mkdir(parents=True)
    (folder / "results" / "digits" / "simclr-s0-0.json").write_text("{}")
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


GONE = {
    f"simclr-s0-0/checkpoint-000000005-{5:064x}.pt",
    f"gan-s0-0/checkpoint-000000005-{5:064x}.pt",
    "simclr-s0-0/tmp/compiled",
    "gan-s0-0/tmp/compiled",
}
COPIES = {"data/0123456789abcdef/images.npy"}


def test_only_what_can_be_made_anew_goes(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(runs)
    assert cli.main(["clean", "--dry-run", "--runs-dir", str(runs)]) == 0
    said = capsys.readouterr().out
    assert "2 checkpoints of finished runs" in said
    assert "would be freed" in said
    assert files(runs) == before

    assert cli.main(["clean", "--runs-dir", str(runs)]) == 0
    assert before - files(runs) == GONE | COPIES
    assert cli.main(["clean", "--runs-dir", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0.00 GiB freed")


def test_a_run_that_is_worked_on_keeps_all_it_has(runs: Path) -> None:
    before = files(runs)
    with worker._lease(runs / "simclr-s0-0"):
        assert cli.main(["clean", "--runs-dir", str(runs)]) == 0
        gone = before - files(runs)
    assert gone == {path for path in GONE if not path.startswith("simclr")}


def test_a_folder_without_runs_is_no_error(tmp_path: Path) -> None:
    assert cli.main(["clean", "--runs-dir", str(tmp_path / "none")]) == 0
