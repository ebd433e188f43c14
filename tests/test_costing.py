"""`bench cost`: one tiny real measurement, and all around it on scripts and hand-made results."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import weakref
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bench import (
    cell_process,
    compiled,
    cost_page,
    costing,
    costs,
    estimated,
    gauge,
    smi,
    timing,
    turns,
)
from bench.cli import main
from bench.engine import Trainer
from bench.errors import UnknownName, UserError
from bench.estimated import Estimated
from bench.memory import Refused
from bench.results import Code, Machine, content_sha256
from bench.saving import Way
from bench.studies import cost_time
from bench.timing import Lost

FAST = {"window_steps": 2, "windows": 2, "warm_limit": 3, "stored_mib": 1}
CPU = Machine(device="cpu", processor="A processor", cores=2, torch="2.6", timm="1", python="3.11")
H100 = CPU.model_copy(update={"device": "NVIDIA H100 80GB HBM3"})
WARM = timing.Warmth(3.0, 50, (5.0, 5.0, 5.0), True)


def spec(**changes):
    fields = {
        "method": "one",
        "config": {"temperature": 0.1},
        "recipe": "defaults",
        "backbone": {"name": "resnet50", "args": {}, "stem": None},
        "image_size": 224,
        "batch_size": 256,
        "cards": 8,
        "precision": "bf16",
        "device": "cuda",
        "threads": 1,
    }
    return costs.Spec(**fields | changes)


def cell(**changes):
    of = spec(**changes)
    return turns.Cell(of.method, "One & only", of, Code(plugin_sha256="a" * 64, engine=1))


def measured(of=None, machine=H100, *, warmth=WARM, **more):
    """Return a result: 50 steps of 32 images take 2 s ready-made, 2.5 s with views."""
    of = of or cell()
    protocol = costs.protocol()
    seconds = {"step": [2.0] * 5, "pipeline": [2.5, 2.5, 2.5, 2.0, 4.0]}
    per_card = of.spec.batch_per_card
    fields = {
        "status": "done",
        "modes": {m: costs.mode_of(warmth, seconds[m], per_card) for m in timing.MODES},
        "memory": costs.Memory(
            allocated={"step": 5 * 2**30, "pipeline": 6 * 2**30},
            reserved={"step": 7, "pipeline": 8},
        ),
        "flops_per_image": 24e9,
    }
    place = turns.Place(machine)
    return costs.with_derived(turns.fields_of(of, place, protocol) | fields | more)


def guess(of=None, **more):
    of = of or cell()
    fields = turns.fields_of(of, turns.Place(CPU), costs.protocol()) | {
        "cell": costs.name(of.spec, ""),
        "status": "estimated",
        "memory": costs.Memory(estimated={"parameters": 2**30, "activations": 82 * 2**30}),
        "flops_per_image": 49e9,
    }
    return costs.with_derived(fields | more)


# The step that is measured


class ConvNet(nn.Module):
    """A convolution 3 -> 4 over 8 x 8 and a linear layer 256 -> 5, without biases."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.linear = nn.Linear(4 * 8 * 8, 5, bias=False)

    def forward(self, images):
        return self.linear(self.conv(images).flatten(1)).square().mean()


class Ticking:
    """A clock that stands still but when told."""

    now = 100.0

    def __call__(self):
        return self.now


def gauged(tmp_path, orders, *, clock=None, num_images=40):
    """Return a gauge of 8 px and batch 4 that answers `orders`, and the list of its answers."""
    told = []
    images = gauge.stored(8, {"stored_mib": 1, "num_images": num_images})
    engine = gauge.Gauge(
        images,
        None,
        None,
        ask=lambda: orders.pop(0),
        tell=told.append,
        clock=clock or Ticking(),
        steps=1000,
        batch_size=4,
        seed=0,
        folder=tmp_path,
    )
    return engine, told


def train(engine, step):
    """Take steps as ordered, as a plugin's own loop would."""
    with contextlib.suppress(gauge.Finished):
        for batch in engine.batches():
            step(batch)
        raise AssertionError("the loop ended by itself")


def test_flops_of_a_step_are_those_worked_by_hand(tmp_path):
    engine, told = gauged(tmp_path, [{"flops": 3}, {"end": True}])
    with pytest.raises(gauge.Finished):
        engine.fit(ConvNet(), lr=0.1)
    convolution = 2 * 4 * (8 * 8 * 4) * (3 * 3 * 3)  # images, outputs, weights of each
    linear = 2 * 4 * 256 * 5
    # Forward and the weights' gradient; the linear layer's input needs one too, the images none.
    assert told == [{"flops": 3 * (2 * convolution + 3 * linear)}]


def test_flops_of_a_compiled_step_are_those_of_the_plain_one(tmp_path, monkeypatch):
    """Code that the compiler wrote calls kernels that the counter does not know."""
    begun = []
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda part, **_: whole(part, backend="aot_eager"))
    monkeypatch.setattr(compiled.Compiler, "begin_step", lambda compiler: begun.append(1))
    answers = []
    for compiler in (None, compiled.Compiler("cpu")):
        window = {"mode": "step", "steps": 2}
        orders = [window, {"flops": 3}, {"end": True}]
        folder = tmp_path / str(compiler is not None)
        folder.mkdir()
        engine, told = gauged(folder, orders)
        engine.compiler = compiler
        with pytest.raises(gauge.Finished):
            engine.fit(ConvNet(), lr=0.1)
        answers.append(told[1])
    assert answers[0] == answers[1]
    assert answers[0]["flops"] > 0
    assert len(begun) == 1 + 2 + 3  # of the batch that is ready, of a window, of the count
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_window_is_timed_from_before_its_first_step_to_after_its_last(tmp_path):
    clock = Ticking()
    orders = [{"mode": "step", "steps": 4}, {"mode": "pipeline", "steps": 3}, {"end": True}]
    engine, told = gauged(tmp_path, orders, clock=clock)

    def step(batch):
        clock.now += 3.0

    train(engine, step)
    assert [answer["seconds"] for answer in told] == [12.0, 9.0]
    assert all(answer["rss"] > 0 for answer in told)


def test_the_pipeline_gives_what_a_run_would_and_the_step_one_ready_batch(tmp_path):
    orders = [{"mode": "step", "steps": 3}, {"mode": "pipeline", "steps": 3}, {"end": True}]
    engine, _ = gauged(tmp_path, orders)
    seen = []
    train(engine, lambda batch: seen.append(batch.views[0]))
    images = np.array(gauge.stored(8, {"stored_mib": 1, "num_images": 40}))
    (tmp_path / "run").mkdir()
    run = Trainer(images, None, None, steps=4, batch_size=4, seed=0, folder=tmp_path / "run")
    drawn = [batch.views[0] for batch in run.batches()]
    for view in seen[:3]:
        assert torch.equal(view, drawn[0])
    for view, expected in zip(seen[3:], drawn[1:], strict=True):
        assert torch.equal(view, expected)


def test_no_more_batches_are_held_than_a_run_holds(tmp_path):
    window = {"mode": "pipeline", "steps": 3}
    orders = [{"mode": "step", "steps": 2}, window, {"mode": "step", "steps": 2}, {"end": True}]
    engine, _ = gauged(tmp_path, orders)
    seen, held = [], []

    def step(batch):
        seen.append(weakref.ref(batch.views[0]))
        gc.collect()
        held.append(len({id(view()) for view in seen if view() is not None}))

    train(engine, step)
    assert held == [1] * 7


def test_an_earlier_stage_is_left_after_one_batch(tmp_path):
    engine, told = gauged(tmp_path, [{"mode": "step", "steps": 2}, {"end": True}])
    assert len(list(engine.batches(until=0.5))) == 1
    train(engine, lambda batch: None)
    assert (engine.earlier_stages, engine.progress, len(told)) == (1, 0.5, 1)


def test_stored_images_are_told_as_many_as_there_would_be():
    images = gauge.stored(8, {"stored_mib": 1, "num_images": 10**6})
    different = 2**20 // (3 * 8 * 8)
    assert (len(images), images.nbytes) == (10**6, 10**6 * 3 * 8 * 8)
    assert len(images.base) == different
    assert np.array_equal(images[np.array([different + 7])], images.base[7:8])


def test_the_peak_is_that_of_this_program(tmp_path):
    status = tmp_path / "status"
    status.write_text("VmPeak:\t 9999 kB\nVmHWM:\t  1234 kB\nVmRSS:\t 1000 kB\n")
    assert gauge.peak_rss(status) == 1234 * 1024


# The study of times on a card


def test_the_ratio_of_times_is_that_of_the_bare_steps_in_turns(monkeypatch):
    settings = cost_time.SETTINGS
    asked = []

    def turns_of(cells, place, protocol, stall):
        asked.append([(of.spec.method, of.spec.batch_per_card, of.spec.precision) for of in cells])
        for of, seconds in zip(cells, (3.0, 2.0), strict=True):
            modes = {"step": seconds, "pipeline": 1.5 * seconds}
            found = {m: costs.mode_of(WARM, [value] * 5, 32) for m, value in modes.items()}
            yield of, measured(of, modes=found, turns_with=["simclr", "moco_v2"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(costing, "here", lambda device, threads: turns.Place(H100))
    monkeypatch.setattr(turns, "measure", turns_of)
    found = cost_time.observe(0, settings)
    assert asked == [[("simclr", 32, "fp32"), ("moco_v2", 32, "fp32")]]
    assert found.values == {"time_ratio": pytest.approx(1.5)}
    assert found.shown["time_ratio_with_views"] == pytest.approx(1.5)
    assert found.shown["memory_ratio_measured"] == 1
    assert found.stamps == ("measured on NVIDIA H100 80GB HBM3",)


def test_times_on_a_card_need_one_and_both_methods(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no card is here"):
        cost_time.observe(0, cost_time.SETTINGS)
    one, lost = measured(cell(method="simclr")), measured(cell(method="moco_v2"))
    lost = lost.model_copy(update={"status": "out_of_memory", "reason": "80 GiB were not enough"})
    other = measured(cell(method="moco_v2"))
    with pytest.raises(UserError, match="simclr and moco_v2 did not fit beside each other"):
        cost_time.compare(cost_time.SETTINGS, {"simclr": one, "moco_v2": other})
    with pytest.raises(UserError, match="moco_v2 was not measured: out_of_memory: 80 GiB"):
        cost_time.compare(cost_time.SETTINGS, {"simclr": one, "moco_v2": lost})


# Result files


def test_derived_numbers_follow_from_the_windows():
    cost = measured()
    mode = cost.modes["pipeline"]
    assert (mode.images_per_second, mode.low, mode.high) == (640.0, 640.0, 640.0)
    assert cost.efficiency == 0.8
    assert cost.epochs_seconds == pytest.approx(200 * 1_281_167 / (8 * 640))
    assert cost.utilisation == pytest.approx(640 * 24e9 / 989.4e12)


def test_utilisation_is_left_blank_where_no_peak_is_known():
    assert measured(cell(precision="fp32")).utilisation is None
    assert measured(cell(device="cpu"), CPU).utilisation is None


def test_a_result_is_read_as_it_was_written(tmp_path):
    cost = measured()
    file = costs.write(tmp_path, cost)
    assert file == tmp_path / "cost" / f"{cost.cell}.json"
    assert costs.read(file).document() == cost.document()
    assert costs.read_all(tmp_path)[1] == []


def _rewritten(document, change):
    change(document)
    document["content_sha256"] = content_sha256(document)
    return document


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(efficiency=0.99), "efficiency is not what the windows say"),
        (lambda d: d.update(epochs_seconds=1.0), "epochs_seconds is not what the windows say"),
        (lambda d: d["modes"]["step"].update(images_per_second=9e9), "not what the windows say"),
        (lambda d: d["modes"].pop("step"), "has both modes"),
        (lambda d: d["spec"].update(batch_size=512), "name is not that of its spec"),
        (lambda d: d["protocol"]["settings"].update(windows=4), "hash is not that of its settings"),
        (lambda d: d.update(schema=2), "schema 1"),
        (lambda d: d.update(more=1), "more"),
        (lambda d: d.update(parameters="12"), "parameters"),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(tmp_path, change, said):
    file = costs.write(tmp_path, measured())
    file.write_text(json.dumps(_rewritten(json.loads(file.read_text()), change)))
    with pytest.raises(UserError, match=said):
        costs.read(file)
    assert len(costs.read_all(tmp_path)[1]) == 1


def test_an_altered_result_and_one_under_another_name_are_refused(tmp_path):
    file = costs.write(tmp_path, measured())
    other = file.with_name("other.json")
    other.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="holds the cell"):
        costs.read(other)
    file.write_text(file.read_text().replace('"cores": 2', '"cores": 64'))
    with pytest.raises(UserError, match="altered since it was written"):
        costs.read(file)


def test_an_estimate_knows_no_machine_and_a_measurement_does():
    on_cpu, on_card = (cell(device=device) for device in ("cpu", "cuda"))
    assert guess(on_cpu).cell == guess(on_card).cell
    assert measured(on_cpu, CPU).cell != measured(on_card, CPU).cell
    assert measured(on_card, CPU).cell != measured(on_card, H100).cell
    with pytest.raises(ValidationError, match="memory by category"):
        guess(memory=costs.Memory())
    with pytest.raises(ValidationError, match="has its FLOPs"):
        guess(flops_per_image=None)


def test_another_setting_is_another_protocol():
    assert costs.protocol({"windows": 7}).hash != costs.protocol().hash
    with pytest.raises(UnknownName, match="did you mean windows"):
        costs.protocol({"window": 7})
    with pytest.raises(UserError, match="expected a int above 0"):
        costs.protocol({"windows": 0})
    with pytest.raises(UserError, match="expected a float above 0"):
        costs.protocol({"warm_tolerance": 1})


# The page


def test_the_page_quotes_the_lecture_apart_from_our_rows():
    page = cost_page.render([measured()])
    quoted, ours = page.split("\n## ")[1:]
    for row in ("5.0 GB |   53 h", "7.4 GB |   65 h", "93.0 GB† |    n/a"):
        assert row in quoted
    assert "eight V100" in quoted
    assert "arxiv.org/abs/2003.04297" in quoted
    assert ours.startswith("resnet50, 224 px, bf16, NVIDIA H100 80GB HBM3\n")
    row = next(line for line in ours.splitlines() if "One &amp; only" in line)
    found = [part.strip() for part in row.strip("|").split("|")]
    # 200 epochs: 256,233,400 / 5120 = 50,045.6 s = 13.9 h; used: 640 x 24e9 / 989.4e12 = 1.6 %.
    expected = ["256", "8", "5.00", "640 [640, 640]", "0.80", "13.9 h", "24.0", "2 %"]
    assert found == ["One &amp; only", *expected]


def test_estimates_have_a_dagger_and_stand_in_a_table_of_their_own():
    page = cost_page.render([guess(largest_batch=416), measured()])
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## The lecture's table",
        "## resnet50, 224 px, bf16, estimated",
        "## resnet50, 224 px, bf16, NVIDIA H100 80GB HBM3",
    ]
    assert "83.0† |" in page
    assert "416† |" in page
    assert "49.0 |" in page  # GFLOP/image


def test_two_protocols_never_share_a_table():
    other = measured()
    settings = costs.SETTINGS | {"windows": 7}
    applied = costs.Applied(version=1, settings=settings, hash=costs.Protocol(settings).hash)
    other = other.model_copy(update={"protocol": applied})
    assert cost_page.render([measured(), other]).count("\n## ") == 3


def test_what_spoils_a_measurement_is_said_below_its_table():
    cold = timing.Warmth(3.0, 4, (5.0,) * 12, False)
    cost = measured(
        cell(device="cpu"),
        CPU,
        warmth=cold,
        busy_cores=0.94,
        others=["another process was on the card"],
        notes=["trains in stages; its last one was measured"],
    )
    page = cost_page.render([cost])
    assert "pipeline: the warm-up ended after 12 windows" in page
    assert "step: windows of 4 steps, not 50, to end within 10 s" in page
    assert "others kept 0.9 of 2 cores busy" in page
    assert "another process was on the card" in page
    assert "trains in stages" in page
    assert "1, 2, 3, 4, 5, 6, 7 |" in page
    assert cost_page.CPU_CAVEAT in page
    assert cost_page.CARDS_CAVEAT in page
    quiet = cost_page.render([measured(cell(device="cpu"), CPU, busy_cores=0.09)])
    assert "others kept" not in quiet


def test_a_cell_that_cannot_be_measured_has_a_row_that_says_why():
    fields = turns.fields_of(cell(), turns.Place(H100), costs.protocol())
    lost = costs.with_derived(fields | {"status": "out_of_memory", "reason": "held 90 <GiB>"})
    page = cost_page.render([lost])
    assert re.search(r"\| out of memory \| 1 +\|", page)
    assert "1. held 90 &lt;GiB&gt;" in page


@pytest.mark.parametrize(
    ("seconds", "shown"), [(53 * 3600, "53.0 h"), (1800, "0.500 h"), (86400 * 400, "400 d")]
)
def test_durations_are_hours_and_then_days(seconds, shown):
    assert cost_page.duration(seconds) == shown


def test_rows_that_took_no_turns_with_others_of_the_table_say_so():
    one, two = (
        measured(cell(method=name), turns_with=[other])
        for name, other in (("simclr", "moco_v2"), ("moco_v2", "simclr"))
    )
    assert "in turns" not in cost_page.render([one, two])
    # Measured anew, alone: the other's result still names it.
    page = cost_page.render([one.model_copy(update={"turns_with": []}), two])
    assert "1. not measured in turns with One &amp; only\n" in page  # both have that title here
    rows = [line for line in page.splitlines() if line.startswith("| One")]
    assert [row.split("|")[-2].strip() for row in rows] == ["1", "1"]
    assert "in turns" not in cost_page.render([one.model_copy(update={"turns_with": []})])
    larger = measured(cell(method="moco_v2", batch_size=512))
    assert "in turns" not in cost_page.render([measured(cell(method="simclr")), larger])


def test_the_check_of_the_boards_covers_the_page(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    costs.write(tmp_path, measured())
    boards = ["--leaderboards-dir", str(tmp_path)]
    assert main(["leaderboard", *boards]) == 0
    assert main(["leaderboard", "--check", *boards]) == 0
    assert "(cost.md)" in (tmp_path / "README.md").read_text()
    page = tmp_path / "cost.md"
    page.write_text(page.read_text().replace("640", "641"))
    (tmp_path / "cost" / "stray.txt").write_text("")
    capsys.readouterr()
    assert main(["leaderboard", "--check", *boards]) == 4
    said = capsys.readouterr().err
    assert "cost.md: differs from its results" in said
    assert "cost/stray.txt: not a result of bench cost" in said


# The card


ON_CARD = "GPU-1, 4001, 5120\nGPU-2, 4002, 100\nGPU-1, 4003, [N/A]\n"


def test_who_is_on_a_card_is_read_from_the_driver():
    found = smi.parse(ON_CARD, "GPU-1")
    assert found == [smi.Holder(4001, 5120 * 2**20), smi.Holder(4003, None)]
    assert smi.held(found, 4001) == 5 * 2**30
    assert smi.others(found, [4001, 4003]) == []
    assert smi.others(found, [4003]) == ["another process was on the card and held 5.0 GiB"]
    # Other process ids than ours, as from within a container: as many as we are must be us.
    assert smi.others(found, [7, 8]) == []
    assert smi.others(found, [7]) == ["1 other processes were on the card"]


class Scripted:
    """A cell's process without one; `fits` is how many may be alive beside each other."""

    alive = 0

    def __init__(self, fits, per_step=0.04):
        self.fits, self.per_step, self.pid = fits, per_step, 4001
        self.busy, self.rss = [0.05], 0
        self.allocated = {"step": 3 * 2**30, "pipeline": 4 * 2**30}
        self.reserved = {"step": 5 * 2**30, "pipeline": 6 * 2**30}
        Scripted.alive += 1

    def window(self, mode, steps):
        if Scripted.alive > self.fits:
            raise Lost("out_of_memory", "CUDA out of memory")
        return steps * self.per_step * (1.25 if mode == "pipeline" else 1.0)

    def flops(self, steps):
        assert steps == 10
        return 32 * 10**9

    def end(self):
        return {"parameters": 7, "earlier_stages": 0, "rss_before": 1, "stored": 64}

    def holders(self):
        return smi.parse(ON_CARD, "GPU-1")

    def busy_cores(self):
        return self.busy[0]

    def forget_load(self):
        self.forgotten = True

    def kill(self):
        self.__class__.alive -= 1 if not getattr(self, "dead", False) else 0
        self.dead = True


@pytest.fixture
def scripted(monkeypatch):
    def arrange(fits):
        Scripted.alive = 0

        def start(cell, place, protocol, stall, stack):
            process = Scripted(fits)
            stack.callback(process.kill)
            return process

        monkeypatch.setattr(turns, "_start", start)

    return arrange


def measure_two(place):
    cells = [cell(method=name) for name in ("one", "two")]
    return {c.spec.method: cost for c, cost in turns.measure(cells, place, costs.protocol(), 9.0)}


def test_what_a_card_says_is_in_the_result(scripted):
    scripted(fits=2)
    found = measure_two(turns.Place(H100, uuid="GPU-1", card_bytes=80 * 2**30))
    one = found["one"]
    assert one.status == "done"
    assert one.turns_with == ["two"]
    assert one.memory.allocated == {"step": 3 * 2**30, "pipeline": 4 * 2**30}
    assert one.memory.reserved["pipeline"] == 6 * 2**30
    assert one.memory.driver == 5 * 2**30
    assert (one.memory.rss, one.memory.stored, one.parameters) == (None, 64, 7)
    assert one.flops_per_image == 10**9  # 32 images of 256 on each of eight cards
    assert {mode.window_steps for mode in one.modes.values()} == {50}
    assert one.modes["step"].images_per_second == pytest.approx(32 / 0.04)
    assert one.efficiency == pytest.approx(0.8)
    assert one.others == ["another process was on the card"]


def test_cells_that_do_not_fit_beside_each_other_are_measured_alone(scripted):
    scripted(fits=1)
    found = measure_two(turns.Place(H100, uuid="GPU-1"))
    assert [cost.status for cost in found.values()] == ["done", "done"]
    assert [cost.turns_with for cost in found.values()] == [[], []]


def test_a_cell_that_runs_out_of_memory_in_its_windows_is_measured_alone(scripted, monkeypatch):
    """Both fit while they warm up; then the second one's window does not."""
    scripted(fits=2)
    taken = turns.timing.take_turns

    def lose_one(cells, warmth, rounds):
        if len(cells) < 2:
            return taken(cells, warmth, rounds)
        first, second = cells
        seconds, _ = taken({first: cells[first]}, warmth, rounds)
        return seconds, {second: Lost("out_of_memory", "CUDA out of memory")}

    monkeypatch.setattr(turns.timing, "take_turns", lose_one)
    found = measure_two(turns.Place(H100, uuid="GPU-1"))
    assert [cost.status for cost in found.values()] == ["done", "done"]
    assert [cost.turns_with for cost in found.values()] == [[], []]


def test_images_of_a_cell_may_be_gray_and_stored_larger():
    images = gauge.stored(12, {"stored_mib": 1, "num_images": 50}, channels=1)
    assert images.shape == (50, 1, 12, 12)


def test_a_cell_that_does_not_fit_alone_is_out_of_memory(scripted):
    scripted(fits=0)
    found = measure_two(turns.Place(H100, uuid="GPU-1"))
    assert {cost.status for cost in found.values()} == {"out_of_memory"}
    assert found["two"].reason == "CUDA out of memory"
    assert found["two"].others == ["another process was on the card"]


# A whole call


def request(tmp_path, **changes):
    fields = {
        "plugins": ("simclr", "moco_v2"),
        "backbone": "test_resnet",
        "image_size": 32,
        "batch_sizes": (8, 16),
        "leaderboards_dir": tmp_path,
        "cards": 2,
        "recipe": "small",
        "settings": FAST,
    }
    return costing.Request(**fields | changes)


def refuse(plugin, spec, per_card):
    raise UserError("its loop reads values")


@pytest.fixture
def described(monkeypatch):
    """Plugins that need no process to be described, and no estimates."""

    def probe(names, **asked):
        facts = {"error": None, "card": {"title": "T"}, "config": {}, "base": asked["recipe"]}
        facts |= {"sha256": "a" * 64, "distribution": "d", "version": "1"}
        return {"methods": {name: facts | {"name": name} for name in names}}

    monkeypatch.setattr(costing, "probe", probe)
    monkeypatch.setattr(costing, "estimator", lambda: contextlib.nullcontext(refuse))


def instantly(cells, place, protocol, stall):
    """Stand in for `turns.measure`: every cell takes 1 s a step."""
    for of in cells:
        modes = {m: costs.mode_of(WARM, [50.0] * 2, of.spec.batch_per_card) for m in timing.MODES}
        fields = turns.fields_of(of, place, protocol)
        memory = costs.Memory(rss=2**30)
        more = {"status": "done", "modes": modes, "memory": memory}
        yield of, costs.with_derived(fields | more)


def test_ctrl_c_leaves_finished_cells_and_a_second_call_goes_on(tmp_path, described, monkeypatch):
    begun = []

    def interrupted(cells, *rest):
        begun.append([(c.spec.method, c.spec.batch_size) for c in cells])
        if len(begun) == 2:
            raise KeyboardInterrupt
        yield from instantly(cells, *rest)

    monkeypatch.setattr(costing, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        costing.carry_out(request(tmp_path), lambda line: None)
    assert len(costs.read_all(tmp_path)[0]) == 2
    assert cost_page.check(tmp_path) == []
    said = []
    found, missing = costing.carry_out(request(tmp_path), said.append)
    assert (len(found), missing) == (4, [])
    assert begun[2:] == [[], [("simclr", 16), ("moco_v2", 16)]]
    assert [line.endswith("(kept)") for line in said] == [True, True, False, False]
    costing.carry_out(request(tmp_path, force=True), lambda line: None)
    assert [len(cells) for cells in begun[4:]] == [2, 2]
    monkeypatch.setattr(costs, "harness", lambda **_: "another")  # the engine was edited meanwhile
    costing.carry_out(request(tmp_path), lambda line: None)
    assert [len(cells) for cells in begun[6:]] == [2, 2]


def test_a_kept_row_has_the_largest_batch_of_the_card_that_is_asked_for(
    tmp_path, described, monkeypatch
):
    """A step takes 1 GiB and 0.5 GiB per image."""

    def estimate(plugin, spec, per_card):
        return Estimated({"parameters": 2**30, "activations": per_card * 2**29}, 3e9)

    monkeypatch.setattr(costing, "estimator", lambda: contextlib.nullcontext(estimate))
    wanted = request(tmp_path, plugins=("simclr",), batch_sizes=(8,), cards=1, estimate=True)
    largest = []
    for gib in (10, 20, 20):
        said = []
        card = replace(wanted, card_bytes=gib * 2**30)
        (cost,), _ = costing.carry_out(card, said.append)
        largest.append((cost.largest_batch, cost.memory.card // 2**30, "(kept)" in said[-1]))
    assert largest == [(16, 10, False), (32, 20, False), (32, 20, True)]


def test_what_other_code_or_another_protocol_measured_is_measured_anew(
    tmp_path, described, monkeypatch
):
    begun = []

    def noted(cells, *rest):
        begun.append(len(cells))
        yield from instantly(cells, *rest)

    monkeypatch.setattr(costing, "measure", noted)
    one = request(tmp_path, batch_sizes=(8,))
    costing.carry_out(one, lambda line: None)
    costing.carry_out(replace(one, settings=FAST | {"windows": 3}), lambda line: None)
    monkeypatch.setattr(costing, "ENGINE", -1)
    costing.carry_out(replace(one, settings=FAST | {"windows": 3}), lambda line: None)
    assert begun == [2, 2, 2]


def test_what_is_estimated_not_to_fit_is_not_tried(tmp_path, described, monkeypatch):
    """A step takes 1 GiB and 0.5 GiB per image; the card has 10 GiB: 18 images fit, so 16."""
    asked = []

    def estimate(plugin, spec, per_card):
        asked.append(per_card)
        return Estimated({"parameters": 2**30, "activations": per_card * 2**29}, 3e9)

    monkeypatch.setattr(costing, "estimator", lambda: contextlib.nullcontext(estimate))
    monkeypatch.setattr(costing, "measure", instantly)
    monkeypatch.setattr(costing, "_place", lambda request: turns.Place(H100, "GPU-1", 10 * 2**30))
    wanted = request(tmp_path, plugins=("simclr",), batch_sizes=(32, 64), device="cuda")
    found, _ = costing.carry_out(wanted, lambda line: None)
    assert [cost.status for cost in found] == ["done", "estimated"]
    assert found[1].memory.peak == 17 * 2**30
    assert found[1].flops_per_image == 3e9
    assert [cost.largest_batch for cost in found] == [16, 16]
    # Its size; then once, its size, the candidate on the line and the one above; the next size.
    assert asked == [16, 16, 24, 32]
    only = replace(wanted, estimate=True, batch_sizes=(32,))
    assert [cost.status for cost in costing.carry_out(only, lambda line: None)[0]] == ["estimated"]


def test_an_estimate_that_is_refused_is_said(tmp_path, described, monkeypatch):
    only = request(tmp_path, estimate=True, plugins=("simclr",), batch_sizes=(8,))
    found, missing = costing.carry_out(only, lambda line: None)
    assert (found, missing) == ([], ["simclr, batch 8: its loop reads values"])


def test_each_way_takes_turns_with_the_plain_step(tmp_path, described, monkeypatch):
    """A plain cell is one cell whether asked for beside the ways or alone."""
    together = []

    def noted(cells, *rest):
        together.append([cell.spec.label for cell in cells])
        yield from instantly(cells, *rest)

    monkeypatch.setattr(costing, "measure", noted)
    asked = request(tmp_path, plugins=("simclr",), batch_sizes=(8,), way=Way(4, True))
    found, _ = costing.carry_out(replace(asked, each_way=True), lambda line: None)
    assert together == [["simclr", "simclr (chunks of 4)", "simclr (recomputed)"]]
    both, _ = costing.carry_out(asked, lambda line: None)
    assert together[1:] == [["simclr (chunks of 4, recomputed)"]]
    plain, _ = costing.carry_out(replace(asked, way=Way()), lambda line: None)
    assert together[2:] == [[]]
    assert [cost.cell for cost in plain] == [found[0].cell]
    assert len({cost.cell for cost in found + both}) == 4
    assert "T (small, chunks of 4, recomputed)" in (tmp_path / "cost.md").read_text()


def test_a_compiled_step_is_tried_without_an_estimate_and_says_how_long_it_compiled(
    tmp_path, described, monkeypatch
):
    """Every step is estimated not to fit; what a compiled one holds is found by taking it."""
    huge = Estimated({"parameters": 2**50, "activations": 0}, 3e9)
    monkeypatch.setattr(costing, "estimator", lambda: contextlib.nullcontext(lambda *of: huge))
    monkeypatch.setattr(costing, "measure", instantly)
    monkeypatch.setattr(costing.compiled, "refuse", lambda device: None)
    asked = request(tmp_path, plugins=("simclr",), batch_sizes=(8,), way=Way(compile=True))
    found, _ = costing.carry_out(replace(asked, each_way=True, card_bytes=2**30), lambda line: None)
    assert [(cost.spec.label, cost.status) for cost in found] == [
        ("simclr", "estimated"),
        ("simclr (compiled)", "done"),
    ]
    assert [cost.largest_batch for cost in found] == [0, None]
    assert "its first step took 3.00 s, with the compiling" in (tmp_path / "cost.md").read_text()
    with pytest.raises(ValidationError, match="never estimated"):
        guess(cell(compile=True))


def test_a_methods_plain_step_comes_first():
    ways = ({"checkpointing": True}, {"chunk": 64}, {}, {"chunk": 64, "checkpointing": True})
    lines = cost_page.render([guess(cell(**way)) for way in ways]).splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| One")]
    assert [row.partition("(")[2].rstrip(")") for row in rows] == [
        "",
        "chunks of 64",
        "chunks of 64, recomputed",
        "recomputed",
    ]


def test_ways_have_a_largest_batch_of_their_own(tmp_path, described, monkeypatch):
    """An image takes 1 GiB, half of that with recomputed blocks: the card has 20 GiB. In chunks
    memory sets no limit that is worth a search."""
    asked = []

    def estimate(plugin, spec, per_card):
        asked.append(spec.label)
        size = per_card * 2 ** (29 if spec.checkpointing else 30)
        return Estimated({"parameters": 0, "activations": size}, 3e9)

    monkeypatch.setattr(costing, "estimator", lambda: contextlib.nullcontext(estimate))
    wanted = request(tmp_path, plugins=("simclr",), batch_sizes=(48,), cards=1, estimate=True)
    wanted = replace(wanted, way=Way(24, True), each_way=True, card_bytes=20 * 2**30)
    found, _ = costing.carry_out(wanted, lambda line: None)
    assert [cost.largest_batch for cost in found] == [16, None, 40]
    assert asked.count("simclr (chunks of 24)") == 1


def test_a_way_that_a_method_refuses_is_its_row(tmp_path, described, monkeypatch):
    def estimate(plugin, spec, per_card):
        raise Refused(f"{plugin}: chunks need embed and loss")

    monkeypatch.setattr(costing, "estimator", lambda: contextlib.nullcontext(estimate))
    monkeypatch.setattr(costing, "measure", instantly)
    asked = request(tmp_path, plugins=("rotnet",), batch_sizes=(8,), way=Way(4))
    found, missing = costing.carry_out(asked, lambda line: None)
    assert [(cost.status, cost.largest_batch) for cost in found] == [("unsupported", None)]
    assert missing == []
    assert cost_page.check(tmp_path) == []
    said = []
    found, missing = costing.carry_out(replace(asked, estimate=True), said.append)
    assert (found, missing) == ([], [])
    refused = "rotnet (chunks of 4), batch 8: n/a: rotnet: chunks need embed and loss"
    assert said == [refused]


def test_a_real_measurement_in_chunks_with_recomputed_blocks(tmp_path, estimates):
    asked = request(tmp_path, plugins=("simclr",), batch_sizes=(8,), cards=1)
    found, _ = costing.carry_out(replace(asked, way=Way(4, True)), lambda line: None)
    assert [cost.status for cost in found] == ["done"], [cost.reason for cost in found]
    assert found[0].flops_per_image == estimates["simclr"].flops_per_image


@pytest.fixture
def estimates(monkeypatch):
    """What real estimators find, by plugin."""
    found = {}

    @contextlib.contextmanager
    def noted():
        with estimated.estimator() as estimate:

            def note(plugin, of, per_card):
                found[plugin] = estimate(plugin, of, per_card)
                return found[plugin]

            yield note

    monkeypatch.setattr(costing, "estimator", noted)
    return found


def test_a_real_measurement_from_the_plugin_to_the_page(tmp_path, estimates):
    said = []
    asked = request(tmp_path, batch_sizes=(8,))
    found, missing = costing.carry_out(asked, said.append)
    assert (len(found), missing) == (2, [])
    for cost in found:
        assert cost.status == "done", cost.reason
        assert {mode.window_steps for mode in cost.modes.values()} == {2}
        assert [len(mode.seconds) for mode in cost.modes.values()] == [2, 2]
        assert cost.memory.rss > cost.memory.rss_before > 50 * 2**20
        assert cost.parameters > 300_000
        assert estimates[cost.spec.method].sizes["parameters"] >= 4 * cost.parameters
        assert estimates[cost.spec.method].flops_per_image == cost.flops_per_image
        assert (cost.machine.device, cost.code.distribution) == ("cpu", "pretrain-bench")
        read = costs.read(tmp_path / "cost" / f"{cost.cell}.json")
        assert read.document() == cost.document()
    one, other = found
    assert one.turns_with == [other.spec.method]
    # Two views with gradient, against one with and one without: 2 x 3 to 3 + 1 forward passes.
    assert one.flops_per_image / other.flops_per_image == pytest.approx(1.5, rel=0.15)
    assert cost_page.check(tmp_path) == []
    assert "MoCo v2 (small)" in (tmp_path / "cost.md").read_text()
    assert len(said) == 2


def answering(tmp_path, monkeypatch, answers):
    """Return a `CellProcess` at the other end of which a list of answers waits."""
    ends = {}

    def start(command, *, pass_fds, **rest):
        its = Connection(os.dup(pass_fds[0]))
        ends["its"] = its
        for answer in answers:
            its.send_bytes(json.dumps(answer).encode())
        if not answers:
            its.close()
        return SimpleNamespace(pid=os.getpid(), wait=lambda: -9)

    monkeypatch.setattr(cell_process.subprocess, "Popen", start)
    process = cell_process.CellProcess(
        tmp_path, "one", spec().model_dump(), {}, stall=0.01, limit=float("inf")
    )
    return process, ends


def test_peaks_are_kept_by_mode(tmp_path, monkeypatch):
    answers = [
        {"seconds": 2.0, "worked": 0.1, "allocated": 5, "reserved": 9},
        {"seconds": 3.0, "worked": 0.1, "allocated": 4, "reserved": 10},
        {"seconds": 4.0, "worked": 0.1, "allocated": 7, "reserved": 8},
    ]
    process, _ends = answering(tmp_path, monkeypatch, answers)
    assert [process.window(mode, 1) for mode in ("step", "step", "pipeline")] == [2.0, 3.0, 4.0]
    assert process.allocated == {"step": 5, "pipeline": 7}
    assert process.reserved == {"step": 10, "pipeline": 8}


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ([{"lost": "unsupported", "reason": "needs a ViT"}], "unsupported", "needs a ViT"),
        ([], "out_of_memory", "exit status -9"),
    ],
)
def test_how_a_process_ends_is_the_cells_status(tmp_path, monkeypatch, answers, status, said):
    process, _ends = answering(tmp_path, monkeypatch, answers)
    with pytest.raises(Lost, match=said) as lost:
        process.window("step", 1)
    assert lost.value.status == status


def test_a_window_that_does_not_end_and_a_process_that_holds_too_much_are_given_up(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cell_process, "POLL_SECONDS", 0.02)
    process, ends = answering(tmp_path, monkeypatch, [{"seconds": 1.0, "worked": 0.0}])
    process.window("step", 1)
    with pytest.raises(Lost, match="--stall"):
        process.window("step", 1)
    process.stall, process.limit = 60.0, 1.0
    with pytest.raises(Lost, match="GiB were free") as lost:
        process.window("step", 1)
    assert lost.value.status == "out_of_memory"
    ends["its"].close()


# Bad input


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--batch-sizes": "0"}, "'0' is no batch size"),
        ({"--batch-sizes": "8,x"}, "'x' is no batch size"),
        ({"--batch-sizes": "8,"}, "'' is no batch size"),
        ({"--batch-sizes": "9", "--cards": "2"}, "does not divide among 2 cards"),
        ({"--chunk": "3"}, "chunk 3 does not divide a batch of 8 images"),
        ({"--chunk": "4", "--cards": "8"}, "cannot be shared by 8 processes"),
        ({"--compile": "", "--estimate": ""}, "--compile is measured, never estimated"),
        ({"--compile": "", "--checkpointing": ""}, "exclude each other"),
        ({"--image-size": "0"}, "--image-size"),
        ({"--memory": "nan"}, "'--memory': nan is not finite; give a finite number"),
        ({"--memory": "inf"}, "--memory"),
        ({"--memory": "1e300"}, "--memory"),
        ({"--stall": "nan"}, "'--stall': nan is not finite"),
        ({"--recipe": "smal"}, "no recipe of these methods 'smal'; did you mean small"),
        ({"--precision": "fp8"}, "--precision"),
        ({"--device": "gpu"}, "no device 'gpu'"),
        ({"--plugins": "simclrr"}, "did you mean simclr"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, changed, said):
    given = {"--plugins": "simclr", "--backbone": "test_resnet", "--image-size": "32"}
    given |= {"--batch-sizes": "8", "--device": "cpu", "--leaderboards-dir": str(tmp_path)}
    arguments = [part for option in (given | changed).items() for part in option if part]
    assert main(["cost", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert said in errors[0]
    assert list(Path(tmp_path).iterdir()) == []


def test_each_way_of_none_is_one_line(tmp_path, capsys):
    arguments = ["--plugins", "simclr", "--backbone", "test_resnet", "--image-size", "32"]
    arguments += ["--batch-sizes", "8", "--device", "cpu", "--leaderboards-dir", str(tmp_path)]
    assert main(["cost", *arguments, "--each-way"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_guide_has_every_setting_and_the_hash():
    guide = (Path(__file__).parents[1] / "docs" / "cost.md").read_text()
    assert f"`{costs.protocol().hash}`" in guide
    assert all(name in guide for name in costs.SETTINGS)


def test_a_backbone_that_cannot_be_built_is_refused(tmp_path, described):
    asked = request(tmp_path, plugins=("simclr",), backbone="resnet5", batch_sizes=(8,))
    with pytest.raises(UserError, match="no timm model 'resnet5'"):
        costing.carry_out(asked, lambda line: None)
    assert list(tmp_path.iterdir()) == []
