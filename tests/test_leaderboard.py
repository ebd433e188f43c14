"""Pages: what they claim, what they show, and that they are the same bytes everywhere."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_results import (
    FEW,
    KNN,
    LINEAR,
    NUM_IMAGES,
    board,
    result,
    track,
    with_few_labels,
)

from bench.cells import decimals, link, numbers, paper, passes, plus_minus, short, text
from bench.leaderboard import render_index, render_track
from bench.packing import unpack_counts
from bench.results import EvaluationEntry
from bench.rows import build
from bench.statistics import Cell, compare

HERE = Path(__file__).parent


def rows(page: str, section: str = "") -> list[dict[str, str]]:
    """Return a section's table as dicts, read as GitHub reads it: cells end at every bar."""
    after = page.split(f"## {section}\n", 1)[1] if section else page
    lines = after.split("\n## ", 1)[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len({len(line) for line in cells}) == 1
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def row(page: str, method: str, section: str = "") -> dict[str, str]:
    (found,) = [row for row in rows(page, section) if method in row["method"]]
    return found


def seeds(method: str, count: int, *args, **options):
    return [result(method, seed, *args, **options) for seed in range(count)]


def test_a_page_says_whose_runs_each_machine_had_where_there_were_several():
    runs = board()
    (line,) = [n for n in render_track(track(), runs).splitlines() if "**Machine" in n]
    assert line.startswith("- **Machine:** cpu, Xeon, ")
    assert line.endswith(f"{len(runs)} runs")  # of one machine nobody need be named

    elsewhere = runs[0].machine.model_copy(update={"processor": "EPYC"})
    moved = [
        run.model_copy(update={"machine": elsewhere} if run.method == "contrast_net" else {})
        for run in runs
    ]
    one, other, more = [n for n in render_track(track(), moved).splitlines() if "**Machine" in n]
    assert one.startswith("- **Machine:** cpu, EPYC, ")
    assert one.endswith("5 runs: ContrastNet")
    assert other.startswith("- **Machine:** cpu, Xeon, ")
    assert other.split(" runs: ")[1] == (
        "Supervised (labels), QueueNet v2 (queue_net), TurnNet, Raw pixels (pixels), "
        "Random initialisation (untrained)"
    )
    assert more.startswith("- **Machines:**")


def test_a_page_shows_the_mean_of_the_results_and_the_interval_of_the_comparison():
    runs = board()
    shown = row(render_track(track(), runs), "ContrastNet")["linear, best stage"]
    accuracies = [
        run.evaluations[LINEAR].metrics["best_top1"] for run in runs if run.method == "contrast_net"
    ]
    mean, half_width = re.fullmatch(r"\*\*([\d.]+) ± ([\d.]+)\*\* \(layer3\)", shown).groups()
    places = len(mean.partition(".")[2])
    assert mean == f"{sum(accuracies) / 5:.{places}f}"
    assert len(half_width.replace("0.", "").lstrip("0")) == 1


def test_ranks_follow_the_tests_and_bold_marks_who_may_be_first():
    page = render_track(track(), board())
    assert row(page, "ContrastNet")["rank"] == "**1-2**"
    assert row(page, "QueueNet")["rank"] == "**1-2**"
    assert row(page, "TurnNet")["rank"] == "3"
    assert "**" not in row(page, "TurnNet")["linear, best stage"]


def test_floors_and_references_are_told_by_their_role_and_not_ranked():
    page = render_track(track(), board())
    for title, mark in [
        ("Random initialisation", "floor"),
        ("Raw pixels", "floor"),
        ("Supervised", "reference"),
    ]:
        found = row(page, title)
        assert found["method"].startswith("*")
        assert found["status"].startswith(mark)
        assert found["rank"] == ""


def test_rows_that_use_labels_are_marked_and_not_ranked():
    page = render_track(track(), [*board(), *seeds("cheat", 5, 0.95, row={"uses_labels": True})])
    assert row(page, "cheat")["status"] == "uses labels"
    assert row(page, "cheat")["rank"] == ""
    assert row(page, "ContrastNet")["rank"] == "**1-2**"


def test_a_smoke_track_shows_no_ranks():
    page = render_track(track(smoke=True), board())
    assert "**Smoke track: not for ranking.**" in page
    assert "rank" not in rows(page)[0]
    assert "**" not in row(page, "ContrastNet")["linear, best stage"]


def test_three_seeds_are_too_few_to_rank():
    page = render_track(track(), board(seeds=3))
    assert "**Too few seeds to rank:**" in page
    assert "rank" not in rows(page)[0]
    assert row(page, "ContrastNet")["n"] == "3"
    assert "seeds 0-2" in page


def test_own_rows_with_too_few_seeds_stand_unranked_beside_published_ones():
    own = seeds("mine", 3, 0.92)
    page = render_track(track(), own, published=board())
    assert row(page, "mine")["status"] == "too few seeds to rank"
    assert row(page, "mine")["rank"] == ""
    assert row(page, "ContrastNet")["status"] == "published"
    assert row(page, "ContrastNet")["rank"] == "**1-2**"


def test_published_rows_have_the_same_intervals_beside_own_ones():
    """Of one or two own rows alone no common variance can be told, nor its degrees of freedom."""

    def widths(own: list) -> dict[str, float]:
        made = build(track(), own, board())
        cells = {r.first.method: made.cells[r.key, made.headline] for r in made.rows if r.published}
        return {name: cell.high - cell.low for name, cell in cells.items()}

    alone = widths([])
    beside = widths(seeds("mine", 3, 0.92))
    assert len(alone) > 4
    for name, width in alone.items():
        assert width == pytest.approx(beside[name], rel=0.25), name


def test_a_published_row_of_which_some_seeds_were_run_again_stays_whole():
    again = seeds("contrast_net", 3, 0.5, draw="another machine")
    made = build(track(), again, board())
    kept, own = [r for r in made.rows if r.first.method == "contrast_net"]
    kept, own = (kept, own) if kept.published else (own, kept)
    assert [r.seed for r in kept.results] == [0, 1, 2, 3, 4]
    assert kept.complete
    assert [r.seed for r in own.results] == [0, 1, 2]
    whole = build(track(), seeds("contrast_net", 5, 0.5, draw="another machine"), board())
    (only,) = [r for r in whole.rows if r.first.method == "contrast_net"]
    assert not only.published


def test_a_run_that_is_also_published_stands_once():
    page = render_track(track(), board(), published=board())
    assert page == render_track(track(), board())


def test_one_seed_is_a_single_run():
    page = render_track(track(), board(seeds=1))
    assert row(page, "ContrastNet")["status"] == "single run"
    assert row(page, "Raw pixels")["status"] == "floor"


def test_missing_and_failed_seeds_are_counted_named_and_ranked_last():
    lucky = seeds("lucky", 3, 0.99)
    failed = result("lucky", 3, status="diverged", reason="diverged at step 17")
    page = render_track(track(), [*board(), *lucky, failed])
    found = row(page, "lucky")
    assert (found["n"], found["rank"]) == ("3/5", "4")
    assert "lacks seeds 3, 4" in found["status"]
    assert "**Missing or failed seeds:** lucky: 3 diverged at step 17; 4 missing" in page
    methods = [found["method"] for found in rows(page)]
    assert methods.index("lucky") > methods.index("TurnNet")


def test_seeds_that_are_not_the_tracks_are_shown_and_not_ranked():
    picked = [result("picked", seed, 0.95) for seed in range(70, 75)]
    page = render_track(track(), [*board(), *picked])
    found = row(page, "picked")
    assert (found["n"], found["rank"]) == ("5", "")
    assert "not ranked: its seeds are not of the track's list" in found["status"]
    assert row(page, "ContrastNet")["rank"] == "**1-2**"
    methods = [found["method"] for found in rows(page)]
    assert methods.index("picked") > methods.index("TurnNet")


def test_a_cell_of_fewer_seeds_than_its_row_says_so():
    runs = board()
    for run in runs:
        if run.method == "contrast_net" and run.seed in (1, 3):
            del run.evaluations[KNN]
    found = row(render_track(track(), runs), "ContrastNet")
    assert found["n"] == "5"
    assert found["kNN"].endswith("(3/5)")
    assert "/5" not in found["linear, best stage"]


def test_a_measured_nothing_is_a_number():
    measured, missing = result("measured", 0), result("missing", 0)
    page = track(protocols=[{"id": "own", "version": 1, "hash": "own"}])
    measured.evaluations["own"] = EvaluationEntry(
        id="own", version=1, metrics={"recall": 0.0}, test_reads=1
    )
    shown = render_track(page, [measured, missing])
    assert row(shown, "measured")["own: recall"] == "0"
    assert row(shown, "missing")["own: recall"] == ""


def test_a_floor_of_one_seed_is_no_surer_than_the_methods():
    """Where methods scatter by ten points, one value of the floor may lie ten points off."""
    spread = [0.60, 0.70, 0.66, 0.74, 0.64]
    noisy = [result("noisy", seed, share) for seed, share in enumerate(spread)]
    others = [run for run in board() if run.method not in ("untrained", "pixels")]
    floor = {"role": "floor", "title": "Random initialisation"}
    one = result("untrained", 0, 0.56, row=floor)
    page = render_track(track(floors=["untrained"]), [*others, *noisy, one])
    assert "not above random" in row(page, "noisy")["status"]


def test_a_collapsed_seed_does_not_count():
    flat = {"collapsed": 1.0}
    runs = [*seeds("flat", 4, 0.9), result("flat", 4, 0.3, health=flat)]
    page = render_track(track(), [*board(), *runs])
    assert row(page, "flat")["n"] == "4/5"
    assert "flat: 4 collapsed" in page


def test_features_that_hardly_vary_and_still_classify_are_not_collapsed():
    page = render_track(track(), [*board(), *seeds("small", 5, 0.9, health={"collapsed": 1.0})])
    assert row(page, "small")["n"] == "5"
    alone = render_track(track(), seeds("small", 5, 0.9, health={"collapsed": 1.0}))
    assert row(alone, "small")["n"] == "0/5"


def without_test(run):
    """Return a run as `--dev` leaves it: validation scores alone."""
    document = run.document()
    document["data"] |= {"test_images": 0, "class_counts_test": [], "validation_images": 130}
    for entry in document["evaluations"].values():
        entry |= {"validation": entry["metrics"] | {"last_top1": 80.0}, "test_reads": 0}
        entry |= {"metrics": {}, "correct": {}, "predictions": {}}
    return type(run).model_validate(document)


def test_runs_that_never_opened_the_test_split_show_validation_unranked():
    runs = [without_test(run) for run in board()]
    page = render_track(track(), runs)
    assert "**Validation scores: the test split was not opened. Not ranked.**" in page
    assert "rank" not in rows(page)[0]
    assert row(page, "ContrastNet")["linear, last stage"].startswith("80.0 ±")
    mean = float(row(page, "TurnNet")["linear, best stage"].split(" ")[0])
    expected = [
        run.evaluations[LINEAR].validation["best_top1"] for run in runs if run.method == "turn_net"
    ]
    assert mean == pytest.approx(sum(expected) / 5, abs=0.5)


def test_validation_and_test_scores_never_share_a_column():
    runs = [*board(), *map(without_test, seeds("peek", 5, 0.9))]
    page = render_track(track(), runs)
    assert row(page, "peek")["linear, best stage"] == ""
    assert row(page, "peek")["n"] == "0/5"


@pytest.mark.parametrize(
    ("status", "reason", "shown"),
    [
        ("unsupported", "MAE needs a ViT", "n/a: MAE needs a ViT"),
        ("failed", "raised ValueError", "failed: raised ValueError"),
        ("diverged", "diverged at step 3", "diverged at step 3"),
        ("invalid", "features are not finite", "invalid: features are not finite"),
        ("out_of_memory", "", "out of memory"),
        ("timeout", "after 60 s", "timeout: after 60 s"),
    ],
)
def test_rows_without_numbers_say_why(status, reason, shown):
    page = render_track(track(), [*board(), *seeds("broken", 5, status=status, reason=reason)])
    assert row(page, "broken")["status"] == shown
    assert row(page, "broken")["linear, best stage"] == ""
    assert rows(page)[-1]["method"] == "broken"


def test_rows_not_above_a_floor_are_stamped():
    page = render_track(track(), [*board(), *seeds("weak", 5, 0.55), *seeds("fair", 5, 0.70)])
    assert row(page, "weak")["status"] == "**not above pixels** · **not above random**"
    assert row(page, "fair")["status"] == "**not above pixels**"
    assert row(page, "ContrastNet")["status"] == "done"


def test_a_label_free_row_above_the_reference_is_stamped():
    page = render_track(track(), [*board(), *seeds("oracle", 5, 0.999)])
    assert row(page, "oracle")["status"] == "**above the label reference: check for labels**"


def test_a_label_free_row_as_good_as_the_reference_is_stamped():
    """As one would be that was trained on labels it found somewhere."""
    twin = seeds("twin", 5, 0.97)  # the reference's accuracy
    page = render_track(track(), [*board(), *twin])
    assert row(page, "twin")["status"] == "**not below the label reference**"


def test_what_a_probe_said_is_a_note_with_its_seeds():
    runs = seeds("contrast_net", 5)
    for run in runs[1:4]:
        run.evaluations[LINEAR].stamps.append("last: not converged at l2 = 1")
    page = render_track(track(), runs)
    assert "**Probes:** contrast_net: last: not converged at l2 = 1 (seeds 1-3)" in page


def test_without_a_tracks_protocols_linear_leads():
    shown = list(rows(render_track({"id": "clothes"}, board()))[0])
    assert shown.index("linear, best stage") < shown.index("kNN")


def test_other_tuning_stands_below_and_is_not_ranked():
    page = render_track(track(), [*board(), *seeds("tuned", 5, 0.95, row={"tuning": "hand:3"})])
    found = row(page, "tuned")
    assert (found["tuning"], found["rank"]) == ("hand:3", "")
    assert "not ranked: tuning is not 0" in found["status"]
    assert row(page, "ContrastNet")["rank"] == "**1-2**"


def test_variants_stand_in_a_section_of_their_own():
    variant = {"title": "ContrastNet", "variant": "temperature=0.5"}
    runs = seeds("contrast_net", 2, 0.95, row=variant, config={"temperature": 0.5})
    page = render_track(track(), [*board(), *runs])
    assert row(page, "ContrastNet, temperature=0.5", "Variants")["n"] == "2"
    assert row(page.split("## Variants")[0], "ContrastNet") == row(
        render_track(track(), board()), "ContrastNet"
    )


def test_external_rows_stand_in_a_section_of_their_own():
    page = render_track(track(), [*board(), result("weights", 0, row={"origin": "external"})])
    assert row(page, "weights", "External")["status"] == "single run"
    assert "weights" not in page.split("## External")[0]


def test_local_rows_carry_the_files_hash():
    page = render_track(track(), [*board(), *seeds("mine", 5, row={"origin": "local"})])
    assert row(page, "mine")["status"] == "local `aaaaaaaa`"


def test_two_configurations_of_a_method_are_two_rows_with_their_hash():
    page = render_track(track(), [*board(), *seeds("queue_net", 5, config={"temperature": 0.7})])
    found = [shown["method"] for shown in rows(page) if "queue_net" in shown["method"]]
    assert len(found) == 2
    assert all(re.search(r" `[0-9a-f]{6}`$", shown) for shown in found)


@pytest.mark.parametrize(
    ("current", "engine", "stale"),
    [
        (None, None, False),
        ({"turn_net": "a" * 64}, 1, False),
        ({"another": "b" * 64}, 1, False),
        ({"turn_net": "b" * 64}, 1, True),
        ({}, 2, True),
    ],
)
def test_rows_of_other_code_are_stale(current, engine, stale):
    page = render_track(track(), board(), current=current, engine=engine)
    assert ("**stale**" in row(page, "TurnNet")["status"]) == stale
    assert ("bench run --stale" in page) == stale
    assert "stale" not in row(page, "Raw pixels")["status"]


def test_two_protocol_hashes_never_share_a_column():
    newer = "f" * 12
    runs = [*seeds("contrast_net", 5), *seeds("newer", 5, linear=newer, linear_version=2)]
    protocols = [
        {"id": "linear_probe", "version": 1, "hash": LINEAR, "headline": "best"},
        {"id": "linear_probe", "version": 2, "hash": newer, "headline": "best"},
        {"id": "knn", "version": 1, "hash": KNN},
    ]
    page = render_track(track(protocols=protocols), runs)
    assert row(page, "newer")["linear, best stage"] != ""
    assert row(page, "contrast")["linear, best stage"] == ""
    assert "0-4 not evaluated by linear_probe 2" in page
    assert f"**Not shown:** linear_probe 1 `{LINEAR}`, in 5 runs;" in page


def test_a_protocol_that_the_page_does_not_know_shows_its_metrics():
    extra = {"id": "turn_probe", "version": 1, "metrics": {"k1_top1": 41.5, "gap": 0.25}}
    runs = seeds("contrast_net", 5)
    for run in runs:
        run.evaluations["e" * 12] = type(run.evaluations[KNN]).model_validate(extra)
    protocols = [{"id": "turn_probe", "version": 1, "hash": "e" * 12, "headline": "k1"}]
    found = row(render_track(track(protocols=protocols), runs), "contrast")
    assert found["turn_probe: k1_top1"].startswith("41.5 ±")
    assert found["turn_probe: gap"] == "0.250"


def test_a_label_scarce_headline_stands_first_and_ranks_by_its_shares():
    runs = [with_few_labels(run) for run in board()]
    protocols = [
        {"id": "linear_probe", "version": 1, "hash": LINEAR, "headline": ""},
        {"id": "knn", "version": 1, "hash": KNN},
        {"id": "few_labels", "version": 1, "hash": FEW, "headline": "k5_top1"},
    ]
    page = render_track(track(protocols=protocols), runs)
    assert list(row(page, "TurnNet"))[3:8] == [
        "1 label/class",
        "5 labels/class",
        "10 labels/class",
        "100 labels/class",
        "linear, best stage",
    ]
    of_five = {
        run.run_id: unpack_counts(run.evaluations[FEW].shares["k5_top1"], NUM_IMAGES) / 20
        for run in runs
        if run.method in ("contrast_net", "queue_net", "turn_net")
    }
    answers: dict = {}
    for key, share in of_five.items():
        answers.setdefault(key.split("-")[0], []).append(share)
    comparison = compare(answers)
    assert row(page, "TurnNet")["rank"] == "3"
    assert comparison.ranks["turn_net"] == (3, 3)
    assert "in “5 labels/class” that the tests leave open" in page
    assert "difference in “5 labels/class” that this board shows" in page
    assert "**" in row(page, "ContrastNet")["5 labels/class"]
    assert "not above" not in row(page, "TurnNet")["status"]
    index = render_index([(track(protocols=protocols), runs)])
    assert f" {row(page, 'Supervised')['5 labels/class']} |" in index


def test_a_named_headline_has_a_column_though_pages_do_not_show_it():
    runs = seeds("contrast_net", 5)
    for run in runs:
        run.evaluations[FEW] = type(run.evaluations[KNN]).model_validate(
            {"id": "few_labels", "version": 1, "metrics": {"k5_best_top1": 41.5, "k1_top1": 9.0}}
        )
    few = {"id": "few_labels", "version": 1, "hash": FEW}
    unnamed = row(render_track(track(protocols=[few]), runs), "contrast")
    assert "5 labels/class, best stage" not in unnamed
    named = render_track(track(protocols=[few | {"headline": "k5_best"}]), runs)
    assert row(named, "contrast")["5 labels/class, best stage"].startswith("41.5")
    assert "difference in “5 labels" not in named  # one row: no pair


def test_every_k_of_few_labels_has_a_column_and_may_rank():
    runs = seeds("contrast_net", 5)
    metrics = {"k20_best_top1": 41.5, "k20_top1": 33.0, "k10_top1": 21.0, "k3_top1": 9.0}
    for run in runs:
        run.evaluations[FEW] = type(run.evaluations[KNN]).model_validate(
            {"id": "few_labels", "version": 1, "metrics": metrics | {"k20_spread": 1.0}}
        )
    few = {"id": "few_labels", "version": 1, "hash": FEW, "headline": "k20_best_top1"}
    found = row(render_track(track(protocols=[few]), runs), "contrast")
    titles = [f"{k} labels/class" for k in (3, 10, 20)] + ["20 labels/class, best stage"]
    assert [title for title in found if "labels/class" in title] == titles
    assert [found[title].split()[0] for title in titles] == ["9.0", "21.0", "33.0", "41.5"]


def test_damaged_shares_leave_the_row_out():
    runs = [with_few_labels(run) for run in board()]
    runs[-2].evaluations[FEW].draws["k5_top1"] = 3
    protocols = [{"id": "few_labels", "version": 1, "hash": FEW, "headline": "k5_top1"}]
    page = render_track(track(protocols=protocols), runs)
    assert "of 3 draws" in page.split("## Left out")[1]
    assert not [found for found in rows(page) if "TurnNet" in found["method"]]


def test_costs_are_of_the_median_run_and_the_largest_memory():
    costs = [
        {"train_seconds": seconds, "peak_memory_gib": memory, "images_per_second": 1000.0 + seconds}
        for seconds, memory in [(30.0, 0.5), (31.0, 0.75), (90.0, 0.5)]
    ]
    runs = [result("contrast_net", seed, cost=cost) for seed, cost in enumerate(costs)]
    found = row(render_track(track(), runs), "contrast")
    assert (found["s/run"], found["GiB"], found["images/s"]) == ("31.0", "0.75", "1030")
    assert found["passes"] == "2 + 0"


def test_the_head_and_the_notes_say_what_a_number_needs():
    runs = board()
    page = render_track(track(), [run for run in runs if run.method != "untrained"])
    for said in ("fashion-mnist", "MIT", "32 px", "216 steps", "batch size 128", "fp32"):
        assert said in page.split("|", 1)[0]
    assert "**Departs:** QueueNet v2 (queue_net): queue &#124; 256" in page
    assert "**Not run here:** untrained" in page
    assert f"linear_probe 1 `{LINEAR}`, knn 1 `{KNN}`" in page
    assert "cpu, Xeon, 2 cores, 1 thread a process, torch 2.14.1, precision fp32, 21 runs" in page


def test_the_resolvable_difference_is_that_of_the_comparison():
    from bench.packing import unpack_bits

    runs = [run for run in board() if run.method in ("contrast_net", "queue_net", "turn_net")]
    answers: dict = {}
    for run in runs:
        bits = unpack_bits(run.evaluations[LINEAR].correct["best"], NUM_IMAGES)
        answers.setdefault(run.method, []).append(bits)
    points = re.search(r"80 % power is ([\d.]+) points", render_track(track(), runs))[1]
    assert float(points) == pytest.approx(compare(answers).resolvable, abs=0.05)


def test_files_that_were_left_out_are_named():
    page = render_track(track(), board(), problems=["x.json: not a result <b>"])
    assert "## Left out\n\n- x.json: not a result &lt;b&gt;" in page


def test_runs_that_do_not_fit_the_page_are_left_out_and_named():
    elsewhere = result("stray", 0, track_id="digits")
    late = result("late", 17)
    damaged = result("damaged", 0)
    damaged.evaluations[LINEAR].correct["best"] = "AAAA"
    other = result("other", 0)
    other.spec["data"]["sha256"] = "e" * 64
    fitting = [*board(), *seeds("late", 5)]
    page = render_track(track(), [*fitting, elsewhere, damaged, other, late])
    left_out = page.split("## Left out")[1]
    for run in (elsewhere, damaged, other, late):
        assert f"- {run.run_id}.json" in left_out
    assert page.split("## Left out")[0].rstrip() == render_track(track(), fitting).rstrip()


def test_an_empty_track_says_so():
    assert "No results yet." in render_track(track(), [])


HOSTILE = {
    "a|b": "a&#124;b",
    "a\nb\r\n\tc": "a b c",
    "<script>alert(1)</script>": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&lt;": "&amp;lt;",
    "back\\slash": "back&#92;slash",
    "[click](http://evil)": "&#91;click&#93;(http&#58;//evil)",
    "www.evil.com": "www&#46;evil.com",
    "`code`": "&#96;code&#96;",
    "**bold** ~~no~~": "&#42;&#42;bold&#42;&#42; &#126;&#126;no&#126;&#126;",
    "moco_v9": "moco_v9",
    "_it_": "&#95;it&#95;",
    "@someone #12 $x$": "&#64;someone &#35;12 &#36;x&#36;",
    "\u202egnp.exe\u2066\u200b\u00ad": "gnp.exe",
    "\x1b[31mred\x07": "&#91;31mred",
    "ma\u0301s": "ma&#769;s",
    "日": "&#26085;",
    "β-VAE é": "β-VAE é",
    "1e5": "1e5",
    "007": "007",
    "nan": "nan",
}


@pytest.mark.parametrize("said", list(HOSTILE))
def test_text_is_shown_as_its_characters(said):
    assert text(said) == HOSTILE[said]


@pytest.mark.parametrize("said", list(HOSTILE))
def test_a_plugins_text_changes_no_other_cell(said):
    card = {"title": said, "paper": said, "variant": "", "departs": said, "notes": [said]}
    page = render_track(track(), [*board(), *seeds("hostile", 5, 0.4, row=card)])
    assert len(rows(page)) == 7
    assert row(page, "(hostile)")["method"] == f"{HOSTILE[said]} (hostile)"
    plain = render_track(track(), [*board(), *seeds("hostile", 5, 0.4)])
    assert row(page, "TurnNet") == row(plain, "TurnNet")
    assert not re.search(r"<(?!sub>|/sub>)", page)


def test_numbers_that_look_like_others_stay_as_they_are():
    runs = [*seeds("1e5", 5, row={"title": "1e5"}), *seeds("007", 5, row={"title": "007"})]
    page = render_track(track(), runs)
    assert {found["method"] for found in rows(page)} == {"1e5", "007"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "https://arxiv.org/abs/1803.07728",
            "[arXiv:1803.07728](https://arxiv.org/abs/1803.07728)",
        ),
        (
            "https://arxiv.org/pdf/2002.05709v3.pdf",
            "[arXiv:2002.05709](https://arxiv.org/pdf/2002.05709v3.pdf)",
        ),
        ("https://e.org/a(b)|c", "[paper](https://e.org/a%28b%29%7Cc)"),
        ("https://e.org/?a=1&b=2", "[paper](https://e.org/?a=1&amp;b=2)"),
        ("javascript:alert(1)", "javascript:alert(1)"),
        ("", ""),
    ],
)
def test_papers_are_links_only_to_the_web(url, shown):
    assert paper(url) == shown


def test_a_link_cannot_end_early():
    assert link("x", 'https://e.org/)<a> "t') == "[x](https://e.org/%29%3Ca%3E%22t)"


@pytest.mark.parametrize(
    ("half_width", "shown"),
    [
        (0.23, "97.3 ± 0.2"),
        (0.096, "97.3 ± 0.1"),
        (0.044, "97.35 ± 0.04"),
        (1.7, "97 ± 2"),
        (0.97, "97 ± 1"),
        (12.0, "97 ± 12"),
        (0.0, "97.3 ± 0.0"),
    ],
)
def test_decimals_end_at_the_half_widths_first_digit(half_width, shown):
    assert plus_minus(Cell(97.346, 97.346 - half_width, 97.346 + half_width, 5)) == shown
    assert decimals(half_width) == len(shown.split(" ")[0].partition(".")[2])


def test_numbers_are_short_and_plain():
    assert [short(v) for v in (0, 1234.5, 0.01234, 0.9996, 12.34)] == [
        "",
        "1230",
        "0.0123",
        "1.00",
        "12.3",
    ]
    assert [passes(v) for v in (2.0, 0.25, 10.0, 0.0)] == ["2", "0.25", "10", "0"]
    assert [numbers(v) for v in ([0, 1, 2], [2, 0], [5], [0, 1, 3])] == [
        "0-2",
        "0, 2",
        "5",
        "0, 1, 3",
    ]


def test_pages_are_the_same_whatever_the_order_of_files():
    runs = [*board(), *seeds("broken", 3, status="failed", reason="x")]
    pages = set()
    for order in range(4):
        random.Random(order).shuffle(runs)
        pages.add(render_track(track(), runs, problems=["b", "a"] if order % 2 else ["a", "b"]))
    assert len(pages) == 1


def test_pages_are_the_same_bytes_in_any_locale_zone_and_hash_seed():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from synthetic_results import *; "
        "from bench.leaderboard import *; "
        "import locale; locale.setlocale(locale.LC_ALL, ''); "
        "page = render_track(track(), board()) + render_index([(track(), board())]); "
        "sys.stdout.buffer.write(page.encode())"
    )
    pages = set()
    for locale, zone, seed in [
        ("C", "UTC", "0"),
        ("C.UTF-8", "Asia/Tokyo", "1"),
        ("POSIX", "", "7"),
    ]:
        environment = {**os.environ, "LC_ALL": locale, "TZ": zone, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(HERE)]
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        pages.add(done.stdout)
    assert pages == {(render_track(track(), board()) + render_index([(track(), board())])).encode()}


def test_the_index_shows_every_page():
    page = render_index(
        [(track(id="b", title="Second", smoke=True), []), (track(), board()), (track(id="z"), [])]
    )
    found = rows(page)
    assert [shown["track"] for shown in found] == [
        "[Second](b.md)",
        "[Clothes](clothes.md)",
        "[Clothes](z.md)",
    ]
    assert found[1]["methods"] == "3"
    assert found[1]["runs"] == "26"
    assert "ContrastNet" in found[1]["may be first"]
    assert "TurnNet" not in found[1]["may be first"]
    assert found[0]["may be first"] == "smoke track: not for ranking"


def test_copies_and_near_copies_of_training_images_are_told():
    def page(**counts: int) -> str:
        numbers = {"test_images": NUM_IMAGES} | counts
        return render_track(track(), [result("one", 0, data=numbers), result("two", 0)])

    assert "**Data:**" not in page()
    assert f"17 of {NUM_IMAGES} test images are within 4" in page(near_duplicates_train_test=17)
    both = page(duplicates_train_test=3, near_duplicates_train_test=17)
    assert "3 test images are exact copies" in both
    assert "17 of" in both


def test_a_seed_of_other_code_does_not_count():
    runs = board()
    (late,) = [run for run in runs if (run.method, run.seed) == ("contrast_net", 3)]
    late.code.plugin_sha256 = "e" * 64
    made = build(track(), runs)
    (mixed,) = [r for r in made.rows if r.first.method == "contrast_net"]
    assert mixed.faults == {3: "of other code than the row's other seeds"}
    assert not mixed.complete
    assert "lacks seed" in row(render_track(track(), runs), "ContrastNet")["status"]


def test_a_page_does_not_rank_by_another_column_than_its_tracks():
    """As after a new version of the headline's protocol, by which no run was judged yet."""
    runs = board()
    assert build(track(), runs).ranks_shown
    newer = [
        p | ({"version": 9, "hash": "0" * 12} if p.get("headline") else {})
        for p in track()["protocols"]
    ]
    assert any(p["version"] == 9 for p in newer)
    made = build(track(protocols=newer), runs)
    assert made.headline is not None
    assert not made.ranks_shown
