"""What a track file names must exist: metrics that rank, and other tracks."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import plan
from bench.columns import METRICS, WHERE_NAMED
from bench.errors import UserError

TRACK = 'base = "digits"\n'
FEW = "[evaluations.few_labels]\n"


def load(folder: Path, text: str) -> plan.Track:
    path = folder / "mine.toml"
    path.write_text(text)
    return plan.load_track(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('headline = "knn.foo"', "headline: no metric of knn 'foo'; known: k20_top1, top1"),
        ('headline = "knn.k20"', "no metric of knn 'k20'; did you mean k20_top1"),  # never scored
        ('headline = "linear_probe.best_top"', "did you mean best_top1"),
        ('headline = "few_labels.k3_top1"', "no metric of few_labels 'k3_top1'; did you mean"),
        ('recipes_of = "digit"', "recipes_of: no track 'digit'; did you mean digits"),
        ('recipes_of = "mine~012abc"', "recipes_of: no track 'mine~012abc'"),
        ('smaller = ["digits", "nope"]', "smaller: no track 'nope'; did you mean"),
    ],
)
def test_a_name_that_is_none_is_refused_when_the_file_is_read(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path, TRACK + text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "mine.toml") in str(caught.value)


def test_settings_say_which_few_labels_can_rank(tmp_path: Path) -> None:
    few = FEW + "labels_per_class = [3, 9]\ndraws = [2, 2]"
    for metric in ("k3_top1", "k9_top1", "k9_best_top1"):
        found = load(tmp_path, f'{TRACK}headline = "few_labels.{metric}"\n{few}')
        assert found.headline_metric == metric
    for metric in ("k10_top1", "k3_best_top1"):
        with pytest.raises(UserError, match=f"no metric of few_labels '{metric}'"):
            load(tmp_path, f'{TRACK}headline = "few_labels.{metric}"\n{few}')


def test_a_track_may_leave_out_its_bases_stem(tmp_path: Path) -> None:
    text = 'base = "digits"\n[backbone]\nname = "swin_tiny_patch4_window7_224"\nargs = {}\n'
    assert load(tmp_path, text).backbone["stem"] is not None
    assert load(tmp_path, text + "stem = false\n").backbone["stem"] is None
    with pytest.raises(UserError, match="stem"):
        load(tmp_path, text + "stem = true\n")


def test_every_metric_that_pages_show_may_rank(tmp_path: Path) -> None:
    for name, metrics in METRICS.items():
        if name.startswith("generation"):  # see the next test
            continue
        for metric, _ in (*metrics, *WHERE_NAMED.get(name, ())):
            text = f'{TRACK}headline = "{name}.{metric}"\n[evaluations.{name}]'
            assert load(tmp_path, text).headline == f"{name}.{metric}"


def test_generators_rank_by_a_distance_and_by_the_unbiased_one_where_samples_are_few(
    tmp_path: Path,
) -> None:
    many = "samples = 10_000\nreference = 10_000\n"
    for name, before in (("generation", ""), ("generation_beside", "[evaluations.generation]\n")):
        for metric, settings in (("kid", ""), ("kid", many), ("fd", many)):
            evaluations = f"{before}[evaluations.{name}]\n{settings}"
            text = f'{TRACK}headline = "{name}.{metric}"\n{evaluations}'
            assert load(tmp_path, text).headline_metric == metric
        for metric, settings in (("fd", ""), ("memorisation", many), ("precision", many)):
            evaluations = f"{before}[evaluations.{name}]\n{settings}"
            text = f'{TRACK}headline = "{name}.{metric}"\n{evaluations}'
            with pytest.raises(UserError, match=f"no metric of {name} '{metric}'"):
                load(tmp_path, text)


@pytest.mark.parametrize("name", ["generation", "calibration"])
def test_what_stands_beside_needs_what_it_stands_beside(tmp_path: Path, name: str) -> None:
    text = f"{TRACK}[evaluations.linear_probe]\n[evaluations.{name}_beside]\n"
    with pytest.raises(UserError, match=f"add \\[evaluations.{name}\\]"):
        load(tmp_path, text)


@pytest.mark.parametrize("beside", ["", "_beside"])
@pytest.mark.parametrize("setting", ['extractor = "inception"', "samples = 1500"])
def test_what_is_known_is_measured_as_samples_are(
    tmp_path: Path, beside: str, setting: str
) -> None:
    text = f"{TRACK}[evaluations.generation]\n[evaluations.calibration]\n" if beside else TRACK
    text += f"[evaluations.generation{beside}]\n{setting}\n[evaluations.calibration{beside}]\n"
    with pytest.raises(UserError, match=f"calibration{beside}.{setting.split()[0]} is 'the def"):
        load(tmp_path, text)
    load(tmp_path, text + setting)


def test_options_of_samples_reach_both_extractors(tmp_path: Path) -> None:
    beside = "[evaluations.generation_beside]\n[evaluations.calibration_beside]\n"
    text = f"{TRACK}[evaluations.generation]\n[evaluations.calibration]\n{beside}"
    asked = plan.override(load(tmp_path, text), samples=1500, sampling={"steps": 7}).evaluations
    drawn = {"samples": 1500, "reference": 1500, "sampling": {"steps": 7}}
    assert asked["generation"] == asked["generation_beside"] == drawn
    assert asked["calibration"] == asked["calibration_beside"] == {"samples": 1500}


@pytest.mark.parametrize(
    ("evaluation", "headline"),
    [
        ("[evaluations.knn]", "knn.top1"),
        ("[evaluations.linear_probe]", "linear_probe.best_top1"),
        ("[evaluations.bn_recalibrated]", "bn_recalibrated.best_top1"),
        ("[evaluations.generation]", "generation.kid"),
        (FEW, "few_labels.k10_top1"),
        (FEW + "labels_per_class = [3]\ndraws = [2]", "few_labels.k3_top1"),
    ],
)
def test_a_track_without_a_headline_ranks_by_a_metric_that_exists(
    tmp_path: Path, evaluation: str, headline: str
) -> None:
    assert load(tmp_path, TRACK + evaluation).headline == headline


def test_smaller_tracks_of_files_are_named_by_their_ids(tmp_path: Path) -> None:
    text = 'smaller = ["mine-half~012abc", "digits"]\nrecipes_of = "digits"'
    assert load(tmp_path, TRACK + text).smaller == ("mine-half~012abc", "digits")


def test_neighbours_that_are_no_list_are_refused_on_a_parity_track(tmp_path: Path) -> None:
    path = tmp_path / "mine-parity.toml"
    path.write_text(TRACK + "parity = true\ntrials = 0\n[evaluations.knn]\nk = 5")
    with pytest.raises(UserError, match="knn chooses k, unless it is given one"):
        plan.load_track(str(path))
