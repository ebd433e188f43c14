"""Budgets: what they are called, and how many steps they buy; open tracks and their ceilings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_plan import method, runs

from bench import budgets, plan, recipes, track, trackfile
from bench.budgets import Price
from bench.errors import UnknownName, UserError

RECIPES = Path(__file__).parents[1] / "leaderboards" / "recipes"


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("epochs=3", {"epochs": 3}),
        ("images=60_000", {"images": 60_000}),
        ("flops=2.5e12", {"flops": 2_500_000_000_000}),
        ("device-seconds=1.5", {"device_seconds": 1.5}),
    ],
)
def test_a_budget_is_read_from_text(text: str, budget: dict[str, float]) -> None:
    found = budgets.parse(text)
    assert found == budget
    assert type(next(iter(found.values()))) is type(next(iter(budget.values())))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epochs", "expected KIND=AMOUNT"),
        ("epochs=-1", "expected KIND=AMOUNT"),
        ("epochs=nan", "expected KIND=AMOUNT"),
        ("steps=0", "above 0"),
        ("epochs=1_", "expected KIND=AMOUNT"),
        ("images=1__0", "expected KIND=AMOUNT"),
        ("device-seconds=1_.5", "expected KIND=AMOUNT"),
        ("steps=1.5", "steps come whole"),
        ("flops=1e31", "below 1e30"),
        ("device_hours=1", "no kind of budget 'device_hours'"),
    ],
)
def test_what_is_no_budget_is_one_line(text: str, line: str) -> None:
    with pytest.raises((UserError, UnknownName), match=line) as refused:
        budgets.parse(text)
    assert "\n" not in str(refused.value)


def test_flops_and_seconds_buy_steps_by_their_price() -> None:
    flops = {"flops": 1_000_000}
    assert budgets.total_steps(flops, 900, 10, images_per_unit=1 / 500) == 200
    assert budgets.total_steps(flops, 900, 10, images_per_unit=1 / 501) == 199  # whole steps
    seconds = {"device_seconds": 2.5}
    assert budgets.total_steps(seconds, 900, 10, images_per_unit=100) == 25
    with pytest.raises(UserError, match="1 MFLOP, 8 images here, is less than one batch of 10"):
        budgets.total_steps(flops, 900, 10, images_per_unit=8e-6)


def test_every_step_that_flops_buy_fits_into_them() -> None:
    for amount in range(1_000_000, 1_000_400):
        steps = budgets.total_steps({"flops": amount}, 900, 3, images_per_unit=1 / 7)
        assert steps * 3 * 7 <= amount < (steps + 1) * 3 * 7


def test_words_of_budgets() -> None:
    assert budgets.words({"epochs": 3}) == "3 epochs"
    assert budgets.words({"flops": 1_025_000_000_000}) == "1.025 TFLOP"
    assert budgets.words({"device_seconds": 60.0}) == "60 device-seconds"
    assert [budgets.flops_words(x) for x in (999, 1000, 2e21)] == [
        "999 FLOP",
        "1 kFLOP",
        "2000 EFLOP",
    ]


def changed(text: str, tmp_path: Path) -> plan.Track:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return plan.load_track(str(path))


OPEN = """
base = "digits"
title = "Mine"
description = "Open."
division = "open"
recipes_of = "digits"
max_parameters = 400_000
[budget]
flops = 1_000_000_000
"""
PRICE = Price(images_per_unit=1 / 1000, flops_per_image=1000.0, parameters=300_000)


def test_a_base_gives_what_the_file_does_not_say(tmp_path: Path) -> None:
    base, mine = plan.load_track("digits"), changed(OPEN, tmp_path)
    assert mine.title == "Mine"
    assert mine.budget == {"flops": 1_000_000_000}
    same = ("data", "backbone", "evaluations", "seeds", "trials", "headline", "floors")
    assert {key: getattr(mine, key) for key in same} == {key: getattr(base, key) for key in same}
    other = changed(OPEN + "[data]\nimage_size = 64\n", tmp_path)
    assert other.data == base.data | {"image_size": 64}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('base = "digits"', 'base = "digit"', "no base 'digit'; did you mean digits"),
        ('base = "digits"', 'base = "scenes-open"', "has a base itself"),
        ("flops = 1_000_000_000", "epochs = 3", "an open track has a budget of flops"),
        ('division = "open"', "", "max_parameters is an open track's"),
        ('division = "open"', 'division = "ajar"', "division"),
    ],
)
def test_a_faulty_open_track_is_one_line(old: str, new: str, line: str, tmp_path: Path) -> None:
    assert old in OPEN
    with pytest.raises(UserError, match=line) as refused:
        changed(OPEN.replace(old, new), tmp_path)
    assert "\n" not in str(refused.value)


def test_closed_tracks_are_what_they_were_before_there_were_open_ones() -> None:
    """Recipes were tuned before: their hashes over the track still hold."""
    found = sorted(RECIPES.glob("*/*.toml"))
    assert len(found) > 10
    for file in found:
        recipe = recipes.read(file)
        if recipe.track in plan.shipped():
            chosen = plan.load_track(recipe.track)
            assert recipes.training_sha256(chosen) == recipe.track_sha256, file
    for name in ("digits", "fashion-mnist", "scenes"):
        content = trackfile.read(track.SHIPPED / f"{name}.toml")
        assert not set(trackfile.LATER) & set(trackfile.checked(content, name))


def steps(chosen: plan.Track, price: Price | None = PRICE, **changes: Any) -> int:
    prices = {"mine": price} if price else {}
    (spec,) = runs(chosen, prices=prices, methods={"mine": method(**changes)})
    return spec.spec["budget"]["steps"]


def test_a_row_of_an_open_track_has_the_steps_that_its_flops_buy(tmp_path: Path) -> None:
    mine = changed(OPEN, tmp_path)
    assert steps(mine) == 1_000_000 // mine.batch_size
    dear = Price(1 / 4000, 4000.0, 300_000)
    assert steps(mine, dear) == 250_000 // mine.batch_size


def test_a_row_of_an_open_track_chooses_batch_budget_and_backbone(tmp_path: Path) -> None:
    mine = changed(OPEN, tmp_path)
    for own in ({"batch_size": 64}, {"epochs": 3}, {"backbone": "test_vit"}):
        assert plan.override(mine, **own).id == mine.id
    assert plan.override(mine, image_size=64).id != mine.id
    row = plan.override(mine, batch_size=64, epochs=3)
    assert steps(row) == 3 * (1168 // 64)
    assert row.ceiling == 1_000_000_000
    closed = plan.load_track("digits")
    assert plan.override(closed, batch_size=64).id != closed.id


def test_a_row_above_a_ceiling_is_refused(tmp_path: Path) -> None:
    mine = changed(OPEN, tmp_path)
    dear = Price(1 / 400_000, 400_000.0, 300_000)
    with pytest.raises(
        UserError, match=r"27 steps of 128 images are 1\.382 GFLOP, and .* allows 1 GFLOP"
    ):
        steps(plan.override(mine, epochs=3), dear)
    large = Price(1 / 1000, 1000.0, 400_001)
    with pytest.raises(UserError, match=r"has 400001 parameters, and track .* allows 400000"):
        steps(mine, large)


def test_floors_need_no_price_and_others_do(tmp_path: Path) -> None:
    mine = changed(OPEN, tmp_path)
    card = method()["card"] | {"role": "floor"}
    assert steps(mine, None, card=card) == 1168 // mine.batch_size
    with pytest.raises(UserError, match="take a track whose budget counts epochs, steps or images"):
        steps(mine, None)


def test_two_budgets_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="--epochs and --budget"):
        plan.override(plan.load_track("digits"), epochs=3, budget={"steps": 3})


def test_the_open_tracks_differ_by_their_budget_alone() -> None:
    for name in ("fashion-mnist-open", "scenes-open"):
        whole = plan.load_track(name)
        assert len(whole.smaller) == 2
        for part, share in zip(map(plan.load_track, whole.smaller), (2, 4), strict=True):
            assert part.budget["flops"] * share == whole.budget["flops"]
            for key in ("data", "backbone", "evaluations", "seeds", "batch_size", "recipes_of"):
                assert getattr(part, key) == getattr(whole, key)


def warming(**changes: Any) -> dict[str, Any]:
    """A method whose recipe warms up for two epochs."""
    config = {"lr": 0.1, "warmup_epochs": 2.0}
    card = method()["card"] | {"defaults": config, "recipes": {"small": config}}
    return method(card=card, config=config | changes)


@pytest.mark.parametrize("steps", [2, 5, 14, 18, 26])
def test_a_recipe_s_warm_up_leaves_a_third_of_a_short_run(steps: int) -> None:
    chosen = plan.override(plan.load_track("digits"), budget={"steps": steps})  # 9 an epoch
    (run,) = runs(chosen, methods={"mine": warming()})
    assert round(run.spec["config"]["warmup_epochs"] * 9) == 2 * steps // 3 < steps
    assert run.row["variant"] == ""
    (note,) = run.row["notes"]
    assert note.startswith("warm-up cut from 2 to ")
    assert f"of its {steps} steps" in note
    again = warming() | {"config": run.spec["config"], "from": run.spec["config"]}
    assert runs(chosen, methods={"mine": again})[0].run_id == run.run_id


@pytest.mark.parametrize(
    ("steps", "changes"), [(27, {}), (216, {}), (1, {}), (9, {"warmup_epochs": 3.0})]
)
def test_a_warm_up_that_fits_or_was_asked_for_stays(steps: int, changes: dict[str, float]) -> None:
    chosen = plan.override(plan.load_track("digits"), budget={"steps": steps})
    (run,) = runs(chosen, methods={"mine": warming(**changes)})
    assert run.spec["config"] == warming(**changes)["config"]
    assert run.row["notes"] == []
    (plain,) = runs(chosen)  # of a method without warm-up
    assert "warmup_epochs" not in plain.spec["config"]
