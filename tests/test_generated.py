"""A page of generators: lower is better, calibration stands beside it, disagreement is said."""

from __future__ import annotations

from typing import Any

import numpy as np
from synthetic_results import board, result, track

from bench import leaderboard
from bench.identity import protocol_hash
from bench.results import Result, parse
from bench.rows import build

SETTINGS = {"samples": 2000, "extractor": "efficientnet_lite0", "sampling": {"steps": 50}}
GENERATION = protocol_hash("generation", 1, SETTINGS)
CALIBRATION = protocol_hash("calibration", 1, SETTINGS)
LEVELS = {"contrast_net": (40.0, 80.0), "queue_net": (60.0, 120.0), "turn_net": (90.0, 180.0)}


OWN = SETTINGS | {"extractor": "encoder:clothes@0123456789"}
BESIDE = protocol_hash("generation_beside", 1, OWN)
CALIBRATION_BESIDE = protocol_hash("calibration_beside", 1, OWN)


def page(**changes: Any) -> dict[str, Any]:
    protocols = [
        {"id": "generation", "version": 1, "hash": GENERATION, "headline": "kid"},
        {"id": "calibration", "version": 1, "hash": CALIBRATION, "headline": ""},
    ]
    return track(protocols=[*protocols, *track()["protocols"]], **changes)


def with_generation(run: Result, levels: dict[str, tuple[float, float]]) -> Result:
    document = run.document()
    draws = np.random.default_rng([run.seed, len(run.method)])
    entry = {"version": 1, "settings": SETTINGS, "chosen": {"sampling": {"steps": 50}}}
    if run.method in levels:
        kid, fd = (level + draws.normal(0, 1) for level in levels[run.method])
        metrics = {"kid": kid, "fd": fd, "precision": 55.5, "memorisation": 0.0}
        document["evaluations"][GENERATION] = entry | {"id": "generation", "metrics": metrics}
    if run.method == "pixels":
        sets = {"train_half": -0.1, "one_class": 682.0}
        metrics = {f"{name}_{m}": v for name, v in sets.items() for m in ("kid", "fd")}
        document["evaluations"][CALIBRATION] = entry | {"id": "calibration", "metrics": metrics}
    return parse(Result.model_validate(document).document())


def runs(levels: dict[str, tuple[float, float]] = LEVELS) -> list[Result]:
    harness = {"role": "floor", "origin": "floor", "title": "Raw pixels"}
    still = {"train_seconds": 0.0, "images_per_second": 0.0, "passes_with_grad": 0.0}
    more = [result("pixels", seed, 0.70, row=harness, cost=still) for seed in (1, 2, 3, 4)]
    return [with_generation(run, levels) for run in [*board(), *more]]


def test_the_lowest_distance_ranks_first_and_stands_first() -> None:
    made = build(page(), runs())
    assert made.headline is not None
    assert made.headline.metric == "kid"
    assert made.ranks_shown, [c for c in made.check.conditions if not c.holds]
    ranks = {r.first.method: made.rank(r, made.headline) for r in made.rows}
    assert [ranks[name] for name in LEVELS] == [(1, 1), (2, 2), (3, 3)]
    order = [r.first.method for r in made.rows if r.first.method in LEVELS]
    assert order == list(LEVELS)
    cell = made.cells[made.rows[0].key, made.headline]
    values = made.headline.values(made.rows[0].good)
    assert cell.mean == np.mean(values)
    assert cell.low < cell.mean < cell.high


def test_a_columns_name_says_extractor_and_sampling() -> None:
    text = leaderboard.render_track(page(), runs())
    assert "KID(efficientnet_lite0) x 1000, steps 50" in text
    assert "FD(efficientnet_lite0), steps 50" in text
    assert "- **Sampling:** ContrastNet: steps 50\n" in text
    assert "FID" not in text


def test_one_seed_has_its_interval_over_blocks_and_an_extrapolation_its_misfit() -> None:
    many = runs()
    for run in many:
        if GENERATION in run.evaluations:
            run.evaluations[GENERATION].metrics |= {
                "kid": 479.2,
                "kid_low": 438.5,
                "kid_high": 519.7,
                "fd_limit": 22.66,
                "fd_residual": 0.5 + run.seed,
            }
    one = [run for run in many if run.seed == 0]
    first, several = (
        next(
            line
            for line in leaderboard.render_track(page(), found).splitlines()
            if "ContrastNet" in line
        )
        for found in (one, many)
    )
    assert "| 479 [438, 520] |" in " ".join(first.split())
    assert "| 22.7 (0.500) |" in " ".join(first.split())
    assert "[438" not in several
    assert "| 22.7 (2.50) |" in " ".join(several.split())  # the mean over five seeds


def test_calibration_is_a_table_of_means_over_seeds() -> None:
    text = leaderboard.render_track(page(), runs())
    section = text.partition("## Calibration")[2].partition("##")[0]
    lines = [line for line in section.splitlines() if line.startswith("| o")]
    assert [line.split("|")[1].strip() for line in lines] == [
        "other training images",
        "one class only",
    ]
    assert [cell.strip() for cell in lines[0].split("|")[2:5]] == ["−0.100", "−0.100", "5"]
    assert "Not shown" not in text


def test_a_distance_that_does_not_notice_one_class_ranks_nothing() -> None:
    dull = runs()
    for run in dull:
        for entry in run.evaluations.values():
            if entry.id == "calibration":
                entry.metrics["one_class_kid"] = 1.0
    made = build(page(), dull)
    assert not made.ranks_shown
    assert "Smoke track" in leaderboard.render_track(page(), dull)


def test_a_copier_is_flagged_and_not_ranked_and_keeps_nobody_from_ranking() -> None:
    copied = runs(LEVELS | {"turn_net": (-5.0, 3.0)})  # nearer than other real images are
    for run in copied:
        if run.method == "turn_net" and run.seed in (0, 3, 4):
            run.evaluations[GENERATION].stamps.append("memorised: 1990 of 2000 samples lie nearer")
    made = build(page(), copied)
    assert made.ranks_shown, [c for c in made.check.conditions if not c.holds]
    ranks = {r.first.method: made.rank(r, made.headline) for r in made.rows}
    assert [ranks[name] for name in LEVELS] == [(1, 1), (2, 2), None]
    (line,) = [n for n in leaderboard.render_track(page(), copied).splitlines() if "| TurnNet" in n]
    assert "**memorised**: samples too near to training images · not ranked" in line
    for run in copied:
        if run.method == "turn_net" and run.seed == 3:
            run.evaluations[GENERATION].stamps.clear()
    assert "**memorised**" not in leaderboard.render_track(page(), copied)  # two of five


def test_another_protocol_s_samples_do_not_let_a_small_one_rank() -> None:
    small = SETTINGS | {"samples": 50, "reference": 50, "allow_small": True}
    key = protocol_hash("generation", 1, small)
    few = runs()
    for run in few:
        if (entry := run.evaluations.get(GENERATION)) is not None:
            run.evaluations[key] = entry.model_copy(update={"settings": small})
    protocols = [{"id": "generation", "version": 1, "hash": key, "headline": "kid"}]
    protocols += [p for p in page()["protocols"] if p["hash"] != GENERATION]
    made = build(page() | {"protocols": protocols}, few)
    assert made.headline is not None
    assert made.headline.hash == key
    assert not made.ranks_shown
    titles = [column.title for column in made.columns if column.hash == key]
    assert titles
    assert all("50 samples against 50 images" in title for title in titles)


def test_orders_that_disagree_beyond_their_intervals_are_said() -> None:
    agree = leaderboard.render_track(page(), runs())
    assert "disagree" not in agree
    swapped = LEVELS | {"contrast_net": (40.0, 120.0), "queue_net": (60.0, 80.0)}
    text = leaderboard.render_track(page(), runs(swapped))
    assert "**KID and FD disagree:** ContrastNet" in text


def with_beside(run: Result, levels: dict[str, tuple[float, float]], bad: float) -> Result:
    """Return a run that a second extractor measured too, where one class is as far as `bad`."""
    entries = with_generation(run, levels).document()["evaluations"]
    document = run.document()
    if GENERATION in entries:
        document["evaluations"][BESIDE] = entries[GENERATION] | {
            "id": "generation_beside",
            "settings": OWN,
        }
    if CALIBRATION in entries:
        metrics = {"train_half_kid": -0.2, "one_class_kid": bad, "train_half_fd": 7.7}
        document["evaluations"][CALIBRATION_BESIDE] = entries[CALIBRATION] | {
            "id": "calibration_beside",
            "settings": {"samples": 2000, "extractor": OWN["extractor"]},
            "metrics": metrics,
        }
    return parse(Result.model_validate(document).document())


def page_beside(headline: str = "generation") -> dict[str, Any]:
    known = page()["protocols"]
    protocols = [
        known[0] | {"headline": "kid" if headline == "generation" else ""},
        {"id": "generation_beside", "version": 1, "hash": BESIDE, "headline": ""},
        {"id": "calibration_beside", "version": 1, "hash": CALIBRATION_BESIDE, "headline": ""},
        *known[1:],
    ]
    protocols[1]["headline"] = "kid" if headline == "generation_beside" else ""
    return page() | {"protocols": protocols}


def test_a_second_extractor_has_columns_and_calibration_of_its_own() -> None:
    measured = [with_beside(run, LEVELS, bad=900.0) for run in runs()]
    made = build(page_beside(), measured)
    titles = [c.title for c in made.columns if c.is_distance]
    assert titles == [
        "KID(efficientnet_lite0) x 1000, steps 50",
        "FD(efficientnet_lite0), steps 50",
        "KID(encoder-0123456789) x 1000, steps 50",
        "FD(encoder-0123456789), steps 50",
    ]
    assert made.headline is not None
    assert made.headline.protocol == "generation"
    text = leaderboard.render_track(page_beside(), measured)
    section = text.partition("## Calibration")[2].partition("##")[0]
    found = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    assert found == [
        [
            "images",
            "KID(efficientnet_lite0) x 1000, steps 50",  # as these entries' settings have it
            "FD(efficientnet_lite0), steps 50",
            "KID(encoder-0123456789) x 1000",
            "FD(encoder-0123456789)",
            "n",
        ],
        ["other training images", "−0.100", "−0.100", "−0.200", "7.70", "5"],
        ["one class only", "682", "682", "900", "", "5"],
    ]
    assert "Not shown" not in text
    assert "disagree" not in text


def test_extractors_that_disagree_are_said_and_one_pair_says_one_thing() -> None:
    """Only the second extractor's KID puts two methods the other way round."""
    kid = {name: level[0] for name, level in LEVELS.items()}
    kid["contrast_net"], kid["queue_net"] = kid["queue_net"], kid["contrast_net"]
    swapped = {name: (kid[name], LEVELS[name][1]) for name in LEVELS}
    text = leaderboard.render_track(
        page_beside(), [with_beside(run, swapped, bad=900.0) for run in runs()]
    )
    notes = [line for line in text.splitlines() if "disagree" in line]
    assert len(notes) == 2
    assert notes[0].startswith("- **Extractors disagree:** ContrastNet")
    assert notes[1].startswith("- **KID and FD disagree:** ContrastNet")
    assert notes[1].count("encoder-0123456789") == 2


def test_a_distance_is_held_against_the_calibration_of_its_own_extractor() -> None:
    for bad, ranks in ((900.0, True), (1.0, False)):  # the first extractor notices either way
        measured = [with_beside(run, LEVELS, bad) for run in runs()]
        assert build(page_beside("generation_beside"), measured).ranks_shown == ranks
        assert build(page_beside(), measured).ranks_shown


def test_sheets_stand_in_the_order_of_rows_samples_first() -> None:
    names = ("queue_net-samples.png", "contrast_net-neighbours.png", "contrast_net-samples.png")
    text = leaderboard.render_track(page(), runs(), sheets=names)
    places = [text.index(f"sheets/clothes/{name}") for name in (names[2], names[1], names[0])]
    assert places == sorted(places)
