"""`precision = "auto"`: known answers of a scripted clock, what is kept, and whose page it is."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
from synthetic_results import result
from synthetic_results import track as page

from bench import cli, identity, judge, plan, precision, recipes, session, study, trial, tuning
from bench.claim import load_claim
from bench.errors import UserError
from bench.leaderboard import render_track
from bench.manager import RAW_PIXELS
from bench.rows import build

TINY = {"name": "test_resnet", "args": {}, "stem": None}
XEON = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
ALL = ("auto", "fp32", "bf16")
AUTO = dataclasses.replace(plan.load_track("digits"), precision="auto")


class Timer:
    """A step of one second in fp32 and of 1 / `speed` in bf16; each window's noise is a factor."""

    def __init__(self, speed: float, noise: Any = lambda: 1.0) -> None:
        self.seconds, self.noise = {"fp32": 1.0, "bf16": 1.0 / speed}, noise
        self.windows: list[tuple[str, int]] = []

    def window(self, mode: str, steps: int) -> float:
        self.windows.append((mode, steps))
        return steps * self.seconds[mode] * self.noise()


class Trials:
    """Makes trials of a known outcome and counts them."""

    def __init__(self, speed: float = 2.0) -> None:
        self.speed, self.asked = speed, []

    def __call__(self, asked: dict[str, Any]) -> list[precision.Round]:
        self.asked.append(asked)
        return [(1.0, 1.0 / self.speed)] * precision.LEAST_ROUNDS


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A processor with bf16 instructions, nothing kept, oneDNN free."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(XEON)
    monkeypatch.setattr(precision, "CPUINFO", cpuinfo)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    for name in precision.CAPS:
        monkeypatch.delenv(name, raising=False)
    return cpuinfo


def choose(chosen: plan.Track = AUTO, device: str = "cpu", **given: Any) -> str:
    return precision.choose(chosen, device, **given).precision


def no_trial(asked: dict[str, Any]) -> list[precision.Round]:
    raise AssertionError(f"a trial of {asked}")


@pytest.mark.parametrize(
    ("speed", "expected"),
    [(2.0, "bf16"), (1.03, "bf16"), (1.02, "fp32"), (1.0, "fp32"), (0.98, "fp32"), (0.1, "fp32")],
)
def test_bf16_is_taken_where_it_is_clearly_faster_and_ties_are_fp32(speed, expected):
    rounds = precision.rounds_of(Timer(speed))
    assert precision.decide(rounds).precision == expected
    assert len(rounds) == precision.LEAST_ROUNDS  # nothing is noisy: no more are needed


def test_windows_alternate_and_hold_equally_many_steps():
    timer = Timer(2.0)
    timer.seconds = {"fp32": 0.05, "bf16": 0.025}
    precision.rounds_of(timer)
    modes, steps = zip(*timer.windows, strict=True)
    assert modes == ("fp32", "bf16") * (len(modes) // 2)
    assert steps == (1, 1, 1, 1) + (5,) * 16  # a quarter of a second of the slower one


def test_a_slow_step_is_a_window_and_a_fast_one_is_not_taken_for_ever():
    for seconds, expected in ((60.0, 1), (1e-5, precision.WINDOW_STEPS)):
        timer = Timer(2.0)
        timer.seconds = {"fp32": seconds, "bf16": seconds / 2}
        precision.rounds_of(timer)
        assert {steps for _, steps in timer.windows[4:]} == {expected}


def test_the_choice_compares_rounds_and_not_sums():
    """Half of the rounds under a load that slows both tenfold: pairs agree, sums would as well, but
    one round in which only bf16 was held up turns the sums alone."""
    rounds = [(1.0, 0.5), (10.0, 5.0)] * 4 + [(1.0, 100.0)]
    assert precision.decide(rounds).precision == "bf16"
    assert sum(half for _, half in rounds) > sum(single for single, _ in rounds)


@pytest.mark.parametrize("count", [8, 9, 12, 15])
def test_the_interval_has_the_median_in_99_percent_of_all_sign_patterns(count):
    """A value lies above the true median or not, with equal chances: all patterns are counted."""
    ratios = [1.0 + place for place in range(count)]
    low, _, high = precision.speedup([(ratio, 1.0) for ratio in reversed(ratios)])
    outside = ratios.index(low)
    assert high == ratios[-1 - outside]

    def inside(count_outside: int) -> float:
        held = 0
        for above in itertools.product((0, 1), repeat=count):
            held += count_outside < sum(above) < count - count_outside
        return held / 2**count

    assert inside(outside) >= 0.99
    assert inside(outside + 1) < 0.99


def test_noisy_rounds_are_followed_by_more_but_not_for_ever():
    shaky = random.Random(0)
    timer = Timer(1.02, lambda: math.exp(shaky.gauss(0, 0.1)))
    assert precision.LEAST_ROUNDS < len(precision.rounds_of(timer)) <= precision.MOST_ROUNDS
    wild = itertools.cycle([1.0, 2.0, 2.0, 1.0])  # every other round says twice, or half
    found = precision.rounds_of(Timer(1.0, lambda: next(wild)))
    assert len(found) == precision.MOST_ROUNDS
    assert not precision.settled(found)


@pytest.mark.parametrize("speed", [0.9, 0.94, 1.06, 1.1])
def test_the_choice_is_hardly_ever_below_0_95_of_the_better_one_under_noise(speed):
    """Windows with a spread of 3 %; 500 trials, the seed is fixed."""
    shaky = random.Random(1)
    bad = 0
    for _ in range(500):
        rounds = precision.rounds_of(Timer(speed, lambda: math.exp(shaky.gauss(0, 0.03))))
        gained = speed if precision.decide(rounds).precision == "bf16" else 1 / speed
        bad += gained < precision.NEVER_BELOW
    assert bad <= 5


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize("cap", ["AVX2", "avx2", "AVX512_CORE", "AVX512_CORE_VNNI", "SSE41"])
def test_without_the_instructions_it_is_fp32_without_a_trial(name, cap, monkeypatch):
    monkeypatch.setenv(name, cap)
    found = precision.choose(AUTO, "cpu", measure=no_trial)
    assert found == precision.Choice("fp32", f"{name}={cap} leaves no bf16 instructions")


@pytest.mark.parametrize("cap", ["", "ALL", "AVX512_CORE_BF16", "AVX512_CORE_AMX", "nonsense"])
def test_other_caps_leave_it_to_the_trial(cap, monkeypatch):
    """oneDNN takes a word that it does not know for none."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert choose(measure=Trials()) == "bf16"


@pytest.mark.parametrize(
    ("cpuinfo", "tried"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", False),
        ("model name : amx_bf16 avx512_bf16", False),
        ("", False),
        ("flags : fpu avx512_bf16", True),
        ("flags : amx_bf16", True),
        ("Features : fp asimd bf16", True),
    ],
)
def test_a_processor_is_known_by_its_flags(cpuinfo, tried, machine):
    machine.write_text(cpuinfo)
    trials = Trials()
    assert choose(measure=trials) == ("bf16" if tried else "fp32")
    assert len(trials.asked) == tried
    machine.unlink()
    assert choose(measure=no_trial) == "fp32"


def test_cuda_is_tried_whatever_the_processor_and_its_caps_are(machine, monkeypatch):
    machine.unlink()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    for speed, expected in ((2.0, "bf16"), (0.3, "fp32")):
        trials = Trials(speed)
        batch = plan.override(AUTO, batch_size=32 + round(speed))
        assert choose(batch, "cuda", measure=trials) == expected
        assert trials.asked[0]["device"] == "cuda"


def test_cards_are_named_as_the_driver_lists_them(tmp_path):
    assert precision.cards(tmp_path, {}) == "CUDA"
    for slot, name in (("0000:01:00.0", "NVIDIA H100"), ("0000:02:00.0", "NVIDIA H100")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n")
    assert precision.cards(tmp_path, {"CUDA_VISIBLE_DEVICES": "1"}) == "NVIDIA H100"
    (tmp_path / slot / "information").write_text("Model: NVIDIA T4\n")
    found = [precision.cards(tmp_path, {"CUDA_VISIBLE_DEVICES": seen}) for seen in "01"]
    assert found == [f"NVIDIA H100, NVIDIA T4; visible: {seen}" for seen in "01"]


def test_a_trial_is_made_once():
    trials = Trials()
    found = [precision.choose(AUTO, "cpu", measure=trials) for _ in range(2)]
    assert found[0] == found[1]
    assert precision.choose(AUTO, "cpu", measure=no_trial) == found[0]
    # Nothing in the key: the floors, the budget, the evaluations, the track's name.
    other = dataclasses.replace(AUTO, id="x", budget={"steps": 1}, floors=(), evaluations={})
    assert precision.choose(other, "cpu", measure=no_trial) == found[0]
    assert len(trials.asked) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"batch_size": 64},
        {"chunk": 32},
        {"backbone": TINY},
        {"data": AUTO.data | {"image_size": 48}},
    ],
    ids=str,
)
def test_another_track_is_tried_anew(change):
    trials = Trials()
    choose(measure=trials)
    choose(dataclasses.replace(AUTO, **change), measure=trials)
    assert len(trials.asked) == 2
    assert trials.asked[0] != trials.asked[1]


@pytest.mark.parametrize("change", [{"processor": "other"}, {"torch": "3.0"}, {"timm": "2.0"}])
def test_another_machine_or_version_is_tried_anew(change, monkeypatch):
    trials, known = Trials(), judge.machine
    choose(measure=trials)
    monkeypatch.setattr(judge, "machine", lambda orders: known(orders) | change)
    choose(measure=trials)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    choose(measure=trials)
    assert len(trials.asked) == 3


def kept_file() -> Path:
    (file,) = (Path(os.environ["BENCH_CACHE"]) / "precision").glob("*.json")
    return file


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "",
        lambda kept: json.dumps(kept)[:-40],
        lambda kept: "[1, 2]",
        lambda kept: json.dumps({"rounds": kept["rounds"]}),
        lambda kept: json.dumps(kept | {"trial": kept["trial"] | {"threads": 7}}),
        lambda kept: json.dumps(kept | {"rounds": kept["rounds"][1:]}),
        lambda kept: json.dumps(kept | {"rounds": [*kept["rounds"], [1.0, 0.0]]}),
        lambda kept: json.dumps(kept | {"rounds": [*kept["rounds"], [1.0, math.nan]]}),
        lambda kept: json.dumps(kept | {"rounds": [*kept["rounds"], [1.0]]}),
        lambda kept: json.dumps(kept | {"rounds": None}),
    ],
)
def test_a_damaged_file_is_measured_again(damage):
    choose(measure=Trials(2.0))
    whole = kept_file().read_bytes()
    kept_file().write_text(damage(json.loads(whole)))
    again = Trials(2.0)
    assert choose(measure=again) == "bf16"
    assert len(again.asked) == 1
    assert kept_file().read_bytes() == whole


def test_a_trial_that_cannot_be_kept_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in .*set BENCH_CACHE .* or give"):
        choose(measure=no_trial)


# The step that is timed


def test_a_window_ends_when_the_device_has_done_its_work():
    """A clock that stands still but for the device: only what was waited for takes time."""
    now, waits = [0.0], []

    def synchronise() -> None:
        waits.append(now[0])
        now[0] += 5.0 if len(waits) % 2 == 0 else 0.5  # work of before is not billed

    step = trial.Step(TINY, 16, 2, clock=lambda: now[0], synchronise=synchronise)
    assert [step.window(mode, 1) for mode in precision.PRECISIONS] == [5.0, 5.0]
    assert len(waits) == 4


def test_only_the_passes_differ_and_the_weights_are_trained():
    import torch

    step = trial.Step(TINY, 16, 2, "cpu")
    seen, before = [], [p.detach().clone() for p in step.model.parameters()]
    step.model.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    assert all(step.window(mode, 1) > 0 for mode in precision.PRECISIONS)
    assert seen == [torch.float32, torch.bfloat16]
    assert {p.dtype for p in step.model.parameters()} == {torch.float32}
    assert any((p != q).any() for p, q in zip(step.model.parameters(), before, strict=True))


def test_a_long_trial_is_heard_of():
    now, said = [0.0], []

    class Slow:
        def clock(self) -> float:
            return now[0]

        def window(self, mode: str, steps: int) -> float:
            now[0] += 4.0
            return 4.0

    telling = trial.Telling(Slow(), said.append)
    for _ in range(7):
        telling.window("bf16", 2)
    assert said == ["precision auto: a step in bf16 took 2 s"] * 2


def test_a_trial_runs_on_this_machine_and_refuses_in_one_line(monkeypatch):
    monkeypatch.setattr(precision, "WINDOW_STEPS", 1)
    asked = {"backbone": TINY, "image_size": 16, "batch_size": 2, "device": "cpu", "threads": 1}
    rounds = trial.run(asked, print)
    assert len(rounds) >= precision.LEAST_ROUNDS
    assert all(second > 0 for pair in rounds for second in pair)
    monkeypatch.setattr(trial, "Step", no_memory)
    with pytest.raises(UserError) as error:
        trial.run(asked, print)
    assert str(error.value) == (
        "the trial of fp32 against bf16 at 16 px and batch 2 ended: out of memory; "
        "give --precision fp32 or bf16"
    )


def no_memory(**asked: Any) -> trial.Step:
    raise RuntimeError("out of memory\nand much more")


def test_the_trial_s_process_says_what_it_refuses():
    chosen = dataclasses.replace(AUTO, backbone=TINY | {"name": "resnet_nonesuch"})
    with pytest.raises(UserError, match="resnet_nonesuch"):
        choose(chosen)
    assert not list((Path(os.environ["BENCH_CACHE"]) / "precision").glob("*.json"))


# Plans


def method() -> dict[str, Any]:
    card = plan.RAW_PIXELS_METHOD["card"] | {"role": "method"}
    return plan.RAW_PIXELS_METHOD | {"card": card, "sha256": "c0de"}


DATA = {
    "facts": {"name": "digits", "sha256": "da7a", "test_sha256": "7e57", "sizes": {}},
    "splits": {0: {"sha256": "split", "train": 1168, "val": 129}},
}


def planned(chosen: plan.Track, *names: str) -> list[plan.RunSpec]:
    return plan.plan(chosen, {name: method() for name in names}, DATA, seeds=[0])


@pytest.mark.parametrize(("speed", "expected"), [(2.0, "bf16"), (1.0, "fp32")])
def test_auto_is_resolved_before_hashing(speed, expected, monkeypatch):
    trials = Trials(speed)
    monkeypatch.setattr(precision, "_measure", trials)
    found = planned(AUTO, "mine", RAW_PIXELS)
    given = planned(plan.override(AUTO, precision=expected), "mine", RAW_PIXELS)
    assert found == given
    assert [run.spec["precision"] for run in found] == [expected, "fp32"]
    assert [run.run_id for run in found] == [identity.run_id(run.spec) for run in found]
    assert planned(AUTO, "mine") == given[:1]
    assert len(trials.asked) == 1


def test_what_trains_nothing_or_says_its_precision_is_not_tried(monkeypatch):
    monkeypatch.setattr(precision, "_measure", no_trial)
    assert planned(AUTO, RAW_PIXELS)[0].spec["precision"] == "fp32"
    for given in precision.PRECISIONS:
        assert planned(plan.override(AUTO, precision=given), "mine")[0].spec["precision"] == given


def test_bf16_has_a_track_of_its_own_and_auto_is_known_as_fp32():
    for name in plan.shipped():
        standard = plan.load_track(name)
        ids = {p: plan.override(standard, precision=p).id for p in ALL}
        assert (ids["auto"], ids["fp32"]) == (name, name)
        assert ids["bf16"].startswith(f"{name}~")
    short = [plan.override(plan.load_track("cifar10"), epochs=3, precision=p).id for p in ids]
    assert short[0] == short[1] != short[2]


@pytest.mark.parametrize(("speed", "expected"), [(2.0, "bf16"), (0.5, "fp32")])
def test_a_session_says_what_it_resolved_and_whose_page_it_is(
    speed, expected, monkeypatch, tmp_path, capsys
):
    trials = Trials(speed)
    monkeypatch.setattr(precision, "_measure", trials)
    wanted = {"overrides": {"precision": "auto"}, "seeds": "1", "runs_dir": tmp_path}
    found = session.prepare("random_init", track="digits", **wanted)
    told = capsys.readouterr().err
    wanted["overrides"] = {"precision": expected}
    given = session.prepare("random_init", track="digits", **wanted)
    assert (found.page, found.specs) == (given.page, given.specs)
    assert found.page["precision"] == found.track.precision == expected
    assert (found.track.id == "digits") == (expected == "fp32")
    assert {run.track for run in found.specs} == {found.track.id}
    assert f"precision auto: {expected}; bf16 took {1 / speed:.2f} of the time of fp32" in told
    words = "Ad-hoc track: digits with precision bf16. Its rows stand beside no others."
    assert (words in found.page["description"]) == (expected == "bf16")
    assert len(trials.asked) == 1


def test_tuning_and_studies_resolve_it_for_the_whole_track(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_measure", Trials(2.0))
    shipped = (Path(plan.__file__).parent / "tracks" / "digits.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(shipped.replace('precision = "fp32"', 'precision = "auto"'))
    found = tuning.prepare(["rotnet"], track=str(file), runs_dir=tmp_path)
    bf16 = plan.override(plan.load_track(str(file)), precision="bf16")
    assert found.track == bf16
    hashes = [recipes.training_sha256(plan.override(bf16, precision=p)) for p in ALL]
    assert hashes[0] == hashes[1] != hashes[2]  # as ids: `auto` is known as fp32
    assert {run.spec["precision"] for run in found.specs["rotnet"]} == {"bf16"}

    class Seen(Exception):
        pass

    def ground(track: plan.Track, *rest: Any, **more: Any) -> None:
        raise Seen(track.id)

    monkeypatch.setattr(study, "ground", ground)
    monkeypatch.setattr(study, "load_track", lambda name: plan.load_track(str(file)))
    claim = load_claim("head-mlp")
    with pytest.raises(Seen, match=bf16.id):
        study.prepare(claim, runs_dir=tmp_path)


def test_the_command_line_says_how_it_was_resolved_beside_its_json(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    asked = ["plan", "--plugins", "random_init", "--seeds", "1", "--precision", "auto"]
    assert cli.main([*asked, "--device", "cpu", "--json"]) == 0
    told = capsys.readouterr()
    runs = json.loads(told.out)
    assert {(run["track"], run["spec"]["precision"]) for run in runs} == {("digits", "fp32")}
    assert told.err == (
        "precision auto: fp32; ONEDNN_MAX_CPU_ISA=AVX2 leaves no bf16 instructions\n"
    )


# Boards


def runs(method: str, count: int, trained_in: str, **changes: Any) -> list[Any]:
    found = [result(method, seed, **changes) for seed in range(count)]
    return [
        run.model_copy(
            update={
                "spec": run.spec | {"precision": trained_in},
                "run_id": f"{run.run_id[:-4]}{trained_in}",
            }
        )
        for run in found
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [("fp32", "fp32"), ("bf16", "bf16"), ("auto", "fp32"), (None, "bf16")],
)
def test_rows_of_two_precisions_never_share_a_page(said, expected):
    """A track that says nothing takes what most of its runs have; raw pixels train nothing."""
    floor = runs("pixels", 2, "fp32", row={"role": "floor", "origin": "floor"})
    single, half = runs("mine", 2, "fp32"), runs("yours", 3, "bf16")
    results = [*floor, *single, *half]
    board = build(page(precision=said), results)
    assert {row.first.method for row in board.rows} == {
        "pixels",
        "mine" if expected == "fp32" else "yours",
    }
    others = half if expected == "fp32" else single
    other = others[0].spec["precision"]
    assert board.problems == sorted(
        f"{run.run_id}.json: trained in {other}; this page's rows are {expected}" for run in others
    )
    assert f"this page's rows are {expected}" in render_track(page(precision=said), results)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu avx2 avx512f amx_bf16 amx_tile", "Some CPU (AMX)"),
        ("fpu avx avx2 avx512f", "Some CPU (AVX-512)"),
        ("fpu avx avx2", "Some CPU (AVX2)"),
        ("fpu sse4_2", "Some CPU"),
    ],
)
def test_processors_of_one_name_and_other_instructions_are_two(flags: str, name: str) -> None:
    text = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\n"
    assert judge.processor_of(text + text) == name


def test_a_processor_without_a_name_has_none() -> None:
    assert judge.processor_of("processor\t: 0\nFeatures\t: fp asimd\n") == ""
