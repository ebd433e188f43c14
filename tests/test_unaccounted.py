"""What a plugin may not leave unaccounted: updates past the engine, random numbers past torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_runs

from bench import ledger, results, runner
from bench.errors import UserError
from bench.plan import RunSpec

PLUGIN = '''
from dataclasses import dataclass
import random
import numpy as np
import torch
from bench import MethodCard, hookimpl

@dataclass(frozen=True)
class Config:
    """Nothing to set."""

@hookimpl
def describe():
    paper = "https://example.org/paper"
    kind = {{"family": "contrastive", "defaults": Config(), "role": "{role}"}}
    return MethodCard(title="T", paper=paper, **kind)

@hookimpl
def pretrain(backbone, config, engine):
    model = torch.nn.Module()
    model.backbone = backbone
    engine.prepare(model)
    ours = engine.optimizer(model, "sgd", name="ours", lr=0.01)
    theirs = torch.optim.SGD(model.parameters(), lr=0.01)
    for number, batch in enumerate(engine.batches()):
        loss = (backbone(batch.views[0]).var(0) - 1).square().mean()
        {step}
    return model
'''
ENGINE = "engine.step(loss, ours)"
OTHER = "theirs.zero_grad(); loss.backward(); theirs.step()"
DICE = "loss = loss * (1 + random.random() + np.random.rand()); engine.step(loss, ours)"


def spec(folder: Path, name: str, step: str, *, role: str = "method", steps: int = 6) -> RunSpec:
    file = folder / f"{name}.py"
    file.write_text(PLUGIN.format(step=step, role=role))
    (found,) = small_runs.specs([str(file)], folder, steps=steps)
    return found


def carry_out(specs: list[RunSpec], folder: Path, **more: object) -> dict[str, results.Result]:
    found: dict[str, results.Result] = {}
    options = runner.Options(folder, jobs=1, leaderboards_dir=folder, **more)  # type: ignore[arg-type]
    runner.carry_out(
        specs,
        options,
        finished=lambda spec, result, skipped: found.update({result.method: result}),
        watching=lambda active, waiting: None,
    )
    return found


def test_weights_that_no_engine_step_trained_are_no_result(tmp_path: Path) -> None:
    half = f"{ENGINE} if number % 2 else None"
    asked = [
        spec(tmp_path, "stepless", "loss.backward()"),
        spec(tmp_path, "own_optimizer", OTHER),
        spec(tmp_path, "halved", half),
        spec(tmp_path, "honest", ENGINE),
        spec(tmp_path, "floor", "pass", role="floor"),
    ]
    found = carry_out(asked, tmp_path / "runs")
    for name in ("stepless", "own_optimizer"):
        assert found[name].status == "invalid"
        assert "without one engine.step" in found[name].reason
    assert [found[n].status for n in ("halved", "honest", "floor")] == ["done"] * 3
    assert "3 updates in 6 steps" in found["halved"].row.notes
    assert not [note for note in found["honest"].row.notes if "updates" in note]


def test_code_that_was_changed_after_the_plan_trains_nothing(tmp_path: Path) -> None:
    """Or its row would carry the hash of code that did not train it."""
    asked = spec(tmp_path, "edited", ENGINE)
    spec(tmp_path, "edited", f"{ENGINE}  # an afterthought")
    found = carry_out([asked], tmp_path / "runs")["edited"]
    assert found.status == "failed"
    assert "code was changed after the run was planned" in found.reason


def test_a_plugin_that_hangs_before_the_first_log_is_stopped(tmp_path: Path) -> None:
    """Rate and loss of the progress record are no numbers until then, and so never equal."""
    hang = "(__import__('time').sleep(60) if number == 1 else None); " + ENGINE
    asked = spec(tmp_path, "hangs_early", hang, steps=400)
    found = carry_out([asked], tmp_path / "runs", stall=4.0)["hangs_early"]
    assert (found.status, found.reason) == ("timeout", "no step for 4 s (--stall)")


def test_random_numbers_of_python_and_numpy_are_the_seed_s(tmp_path: Path) -> None:
    """A plugin that uses them by mistake at least trains the same in every run."""
    asked = spec(tmp_path, "dice", DICE)
    weights = [
        carry_out([asked], tmp_path / place)["dice"].artifacts["backbone.safetensors"].sha256
        for place in ("one", "two")
    ]
    assert weights[0] == weights[1]


def test_what_an_older_protocol_judged_is_judged_again_where_asked(tmp_path: Path) -> None:
    """As after an update of bench: the page would show nothing of it, and the training stands."""
    asked, runs = spec(tmp_path, "honest", ENGINE), tmp_path / "runs"
    first = carry_out([asked], runs)["honest"]
    ((today, entry),) = first.evaluations.items()
    older = first.model_copy(
        update={"evaluations": {"0" * 12: entry.model_copy(update={"version": 0})}}
    )
    results.write(runs / "results" / first.track / f"{first.run_id}.json", older)
    assert runner.outdated(first, {"knn": today}) == ""
    protocols = {"knn": today, "few_labels": "f" * 12}
    kept = carry_out([asked], runs, protocols=protocols)["honest"]
    assert runner.outdated(kept, protocols) == "knn"
    again = carry_out([asked], runs, protocols=protocols, stale=True)["honest"]
    assert again.evaluations[today].metrics == entry.metrics
    assert again.artifacts == first.artifacts
    assert again.cost.train_seconds == first.cost.train_seconds  # it was not trained again


def test_a_ledger_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    options = runner.Options(tmp_path / "runs", jobs=1, leaderboards_dir=tmp_path / "file" / "x")
    asked = spec(tmp_path, "honest", ENGINE)
    with pytest.raises(UserError, match="every test read leaves a line there; choose --leader"):
        runner.carry_out(
            [asked],
            options,
            finished=lambda *told: pytest.fail("a run was carried out"),
            watching=lambda active, waiting: None,
        )
    assert not (tmp_path / "runs").exists()
    ledger.refuse_unwritable(tmp_path / "boards" / ledger.FILE)
    assert not (tmp_path / "boards" / ledger.FILE).exists()
