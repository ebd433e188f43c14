"""Estimated memory: by hand, by a real allocator, and what is said where nothing can be."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import allocations, cli, fitting
from bench.engine import Trainer
from bench.errors import UserError
from bench.memory import CATEGORIES, Estimate, Refused, Step, estimator

PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from bench import MethodCard, Unsupported, hookimpl

@dataclass(frozen=True)
class Config:
    kind: str = "sgd"

class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.net = backbone, {net}

    def forward(self, images):
        return self.net(images).square().mean()

@hookimpl
def describe():
    return MethodCard(
        title="Tiny", paper="https://example.org", family="other", defaults=Config(),
        recipes={{"adam": Config("adam")}},
    )

@hookimpl
def pretrain(backbone, config, engine):
    {pretrain}
"""
FIT = "return engine.fit(Model(nn.Identity()), optimizer=config.kind, lr=0.1)"
LINEAR = "nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 5))"
CONV = "nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))"
STEP = {"backbone": "test_resnet", "image_size": 32, "batch_size": 16}


@pytest.fixture
def traced(tmp_path):
    """Trace the step of a plugin that is written here: `traced(net, **Step's fields)`."""

    def trace(net: str = LINEAR, *, pretrain: str = FIT, **changes) -> Estimate:
        file = tmp_path / "tiny.py"
        file.write_text(PLUGIN.format(net=net, pretrain=pretrain))
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return allocations.trace(Step(**({"plugin": str(file)} | STEP | changes)), folder)

    return trace


def images(batch: int) -> int:
    return 4 * batch * 3 * 32 * 32


def test_a_linear_network_is_what_it_is_by_hand(traced):
    """Most is held at the end of the second forward pass: the images, the same as rows (channels
    last is no row of pixels), what ReLU returned, the outputs, their squares, the loss and the last
    step's, beside the last step's gradients."""
    parameters = 4 * (3072 * 8 + 8 + 8 * 5 + 5)
    found = traced()
    assert found.parameters == found.gradients == found.optimizer == parameters
    assert found.activations == 2 * images(16) + 4 * 16 * (8 + 5 + 5) + 4 + 4
    assert found.buffers == 0
    assert found.other < 100  # scalars of the engine's records


def test_adam_keeps_two_moments_and_a_count(traced):
    one, two = traced(recipe=""), traced(recipe="adam")
    assert two.parameters == one.parameters
    assert two.optimizer == 2 * two.parameters + 4 * 4  # a step count for each of 4 tensors


def test_a_convolutional_network_is_what_it_is_by_hand(traced):
    """At its peak the backward pass has the square's gradient beside all that was kept."""
    found = traced(CONV)
    parameters = 4 * (6 * 27 + 6 + 4 * 54 + 4)
    assert found.parameters == found.optimizer == parameters
    pixels = 4 * 16 * 32 * 32
    kept = images(16) + pixels * (6 + 6 + 4)  # what the layers keep, and the last one's output
    squares = 3 * pixels * 4  # made, or their gradients, while the outputs are still held
    assert kept < found.activations <= kept + squares


def test_twice_the_batch_is_twice_the_activations_and_nothing_else(traced):
    once, twice = (asdict(traced(CONV, batch_size=batch)) for batch in (16, 32))
    scalars = 4 + 4  # two losses
    assert twice.pop("activations") - scalars == 2 * (once.pop("activations") - scalars)
    del once["total"], twice["total"]
    assert once == twice


def test_a_steps_operations_are_those_worked_by_hand(traced):
    """A convolution 3 -> 4 over 32 x 32 and a linear layer 4,096 -> 5. Each has a forward pass and
    its weight's gradient; the linear layer's input needs one too, the images none."""
    net = "nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4096, 5))"
    convolution = 2 * 16 * (32 * 32 * 4) * (3 * 3 * 3)  # images, outputs, weights of each
    linear = 2 * 16 * 4096 * 5
    assert traced(net).flops_per_image == (2 * convolution + 3 * linear) / 16


def test_the_categories_sum_to_the_peak(traced):
    for found in (traced(), traced(CONV, cards=2), traced(recipe="adam", precision="bf16")):
        assert sum(getattr(found, category) for category in CATEGORIES) == found.total


def test_several_cards_copy_the_gradients_to_exchange_them(traced):
    """With two images per card nothing of the images outweighs the flat copies, which live
    between backward and update."""
    found = traced(batch_size=4, cards=2)
    assert 0 <= found.other - found.gradients < 100
    assert found.gradients == found.parameters


IDLE = """
    parts = nn.ModuleDict({"used": nn.Linear(3072, 8), "idle": nn.Linear(2, 2)})
    model = engine.prepare(Model(parts))
    optimizer = engine.optimizer(model, "sgd", name="model", lr=0.1)
    for batch in engine.batches():
        engine.step(model.backbone["used"](batch.views[0].flatten(1)).mean(), optimizer)
"""


def test_a_layer_that_no_image_reaches_is_no_obstacle_over_several_cards(traced):
    found = traced(pretrain=IDLE.strip(), cards=2)
    assert found.flops_per_image > 0


def test_bf16_keeps_half_precision_copies_of_the_weights(traced):
    """Most is held in the first layer, when the images are there as float32, as rows and in half
    precision; of its weights and biases alone there is a copy then."""
    single, half = traced(), traced(precision="bf16")
    assert half.parameters == single.parameters
    assert half.other - single.other == 2 * (3072 * 8 + 8)
    assert 2.5 * images(16) <= half.activations < 2.5 * images(16) + 500
    assert traced(CONV, precision="bf16").activations < 0.9 * traced(CONV).activations


TURNS = """
    model = engine.prepare(Model(nn.Linear(1, 1)))
    first = engine.optimizer(model.net, "sgd", name="first", lr=0.1)
    second = engine.optimizer(model.backbone, "sgd", name="second", lr=0.1)
    for number, batch in enumerate(engine.batches()):
        engine.step(model(batch.views[0]), first)
        if number % 5 == 4:
            engine.step(model.backbone(torch.ones(1, 1)).mean(), second)
"""


def test_an_optimizer_of_every_fifth_step_has_its_state(traced):
    found = traced(pretrain=TURNS.strip())
    assert found.optimizer == found.parameters == 4 * (3072 * 8 + 8 + 8 * 5 + 5 + 2)


def test_flops_are_those_of_whole_cycles_where_an_optimizer_seldom_moves(traced):
    def counted(cycle: int, phase: int) -> float:
        pretrain = TURNS.strip().replace("% 5 == 4", f"% {cycle} == {phase}")
        return traced(pretrain=pretrain).flops_per_image

    flops = {cycle: counted(cycle, cycle - 1) for cycle in (5, 7, 10)}
    assert counted(5, 0) == counted(5, 2) == pytest.approx(flops[5])
    assert flops[5] > flops[7] > flops[10]
    # base + rare / cycle: 1/5 - 1/7 is 4/3 of 1/7 - 1/10
    assert (flops[5] - flops[7]) / (flops[7] - flops[10]) == pytest.approx(4 / 3)


LOOP = """
    model = engine.prepare(Model(nn.Identity()))
    optimizer = engine.optimizer(model, "sgd", name="model", lr=0.1)
    for batch in engine.batches():
        loss = model(batch.views[0])
        engine.step(loss, optimizer)
        {body}
"""


@pytest.mark.parametrize(
    ("pretrain", "line"),
    [
        (LOOP.format(body="float(loss.detach())"), "tiny: its step needs the values of tensors"),
        (LOOP.format(body="batch.views[0].nonzero()"), "aten.nonzero.default"),
        (LOOP.format(body="break"), "tiny: it left its loop"),
        (TURNS.strip().replace("% 5 == 4", "% 100 == 99"), "second took no step in 12 batches"),
        ("return Model(backbone)", "tiny: it asks for no batch and trains nothing"),
        ("raise Unsupported('needs a ViT')", "tiny: needs a ViT"),
        ("return Model(backbone).oops", "tiny: its step failed on fake tensors: AttributeError"),
        (LOOP.format(body="batch.views[0] @ batch.views[0][:, :, 1:]"), "RuntimeError"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(traced, pretrain, line):
    with pytest.raises(UserError) as refusal:
        traced(pretrain=pretrain.strip())
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


# Steps that hold less


SPLIT = """class Split(Model):
        def embed(self, images):
            keys = self.net(images.flip(-1)).flatten(1).detach()
            return self.net(images).flatten(1), keys
        def loss(self, queries, keys):
            return (queries @ keys.T).square().mean()
    return engine.fit(Split(nn.Identity()), optimizer=config.kind, lr=0.1)"""


@pytest.mark.parametrize("chunk", [2, 4, 8, 16])
def test_chunks_that_are_not_computed_change_nothing(traced, monkeypatch, chunk):
    """Two chunks stand for four and eight: the same bytes, the same operations."""
    net = CONV.replace("nn.ReLU()", "nn.BatchNorm2d(6)")
    short = traced(net, pretrain=SPLIT, chunk=chunk)
    monkeypatch.setattr(allocations.Tracer, "_in_chunks", Trainer._in_chunks)
    assert traced(net, pretrain=SPLIT, chunk=chunk) == short


def test_what_is_computed_twice_counts_twice(tmp_path):
    """All chunks' embeddings but the last one's are computed once more; with recomputed blocks so
    are the backbone's blocks, which are most of a forward pass, and that a third of the step."""

    def traced(**way) -> Estimate:
        return allocations.trace(Step("simclr", "test_resnet", 32, 64, **way), tmp_path)

    plain, chunks, recomputed = traced(), traced(chunk=16), traced(checkpointing=True)
    both = traced(chunk=16, checkpointing=True)
    more = chunks.flops_per_image / plain.flops_per_image
    assert more == pytest.approx(1 + 1 / 3 * 3 / 4, rel=0.02)
    again = (recomputed.flops_per_image - plain.flops_per_image) / plain.flops_per_image
    assert 0.15 < again < 1 / 3
    assert both.flops_per_image == pytest.approx(
        chunks.flops_per_image + again * plain.flops_per_image, rel=1e-6
    )
    sizes = [found.activations for found in (plain, recomputed, chunks, both)]
    assert sizes == sorted(sizes, reverse=True)
    assert chunks.activations < 0.5 * plain.activations
    fixed = {(found.parameters, found.gradients, found.optimizer) for found in (plain, chunks)}
    assert len(fixed) == 1


def test_a_way_that_does_nothing_is_refused(tmp_path, traced):
    with pytest.raises(UserError, match="does not divide a batch of 16"):
        traced(chunk=5)
    with pytest.raises(Refused, match="tiny: chunks need embed and loss"):
        traced(chunk=8)
    with pytest.raises(Refused, match="tiny: --chunk 8 needs a method that"):
        traced(pretrain=LOOP.format(body="pass").strip(), chunk=8)


# FLOPs of the same step


def test_flops_of_a_linear_and_a_convolutional_network_are_those_by_hand(traced):
    """Forward, the weights' gradients, and the inputs' of every layer but the first."""
    assert traced().flops_per_image == 2 * (2 * 3072 * 8 + 3 * 8 * 5)
    pixels = 32 * 32
    assert traced(CONV).flops_per_image == 2 * pixels * (2 * 27 * 6 + 3 * 54 * 4)


def test_attention_on_a_cpu_counts():
    """Two products of (2, 3, 5, 4) and (2, 3, 4, 5); five of these sizes backward, as torch counts
    attention that forgets its scores."""
    from bench import flops

    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    product = 2 * (2 * 3 * 5 * 5 * 4)
    with flops.counter() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == (2 + 5) * product


def test_flops_are_of_a_source_image_whatever_batch_and_cards(traced):
    once = traced(CONV).flops_per_image
    assert traced(CONV, batch_size=64).flops_per_image == once
    assert traced(CONV, batch_size=64, cards=4).flops_per_image == once
    assert traced(CONV, precision="bf16").flops_per_image == once


STAGES = """model = engine.prepare(Model(nn.Identity()), "model")
    other = engine.prepare(nn.Linear(3 * 32 * 32, 1), "other")
    first, second = (engine.optimizer(m, "sgd", lr=0.1, name=n)
                     for m, n in ((model, "first"), (other, "second")))
    for batch in engine.batches(until=0.25):
        engine.step(model(batch.views[0]), first)
    for batch in engine.batches():
        engine.step(other(batch.views[0].flatten(1)).mean(), second)"""


def test_flops_of_two_stages_are_weighed_by_their_share_of_the_budget(traced):
    linear, other = 2 * (2 * 3072 * 8 + 3 * 8 * 5), 2 * 2 * 3072
    found = traced(pretrain=STAGES).flops_per_image
    assert found == pytest.approx(0.25 * linear + 0.75 * other, rel=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_flops_of_the_real_step_are_those_of_the_estimate(tmp_path, name):
    from bench import backbones, cards, flops, manager

    plugin = manager.load("moco_v2")
    card = plugin.call("describe")
    config = cards.config_object(card, cards.config_from(card, "small", {}, method="moco_v2"))
    pixels = np.random.default_rng(0).integers(0, 256, (256, 3, 32, 32), dtype=np.uint8)
    backbone = backbones.build({"name": name, "args": {}, "stem": None}, 32)
    (tmp_path / "real").mkdir()
    real = Trainer(pixels, None, None, steps=3, batch_size=32, seed=0, folder=tmp_path / "real")
    real.place(backbone)
    with flops.counter() as counter:
        plugin.call("pretrain", backbone=backbone, config=config, engine=real)
    step = Step("moco_v2", name, 32, 32, recipe="small", images=256)
    found = allocations.trace(step, tmp_path)
    assert found.flops_per_image == counter.get_total_flops() / (3 * 32)
    assert found.weights == sum(p.numel() for p in backbone.parameters())


def test_no_memory_is_taken_for_what_is_estimated(traced):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    found = traced(CONV, batch_size=2**17)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert found.total > 8e9
    assert grown < 0.05 * found.total


# A real allocator


def real_peak(folder: Path, plugin: str, recipe: str, backbone: str, batch: int, way: dict) -> int:
    """Return the most bytes that torch's CPU allocator held at once in three real steps."""
    from bench import backbones, cards, manager, recompute

    found = manager.load(plugin)
    card = found.call("describe")
    config = cards.config_object(card, cards.config_from(card, recipe, {}, method=found.name))
    pixels = np.random.default_rng(0).integers(0, 256, (8448, 3, 32, 32), dtype=np.uint8)
    gc.collect()  # what other tests left would be freed in this one's account
    with torch.profiler.profile(profile_memory=True) as profiler:
        backbone_ = backbones.build({"name": backbone, "args": {}, "stem": None}, 32)
        engine = {"chunk": way.get("chunk")}
        if way.get("checkpointing"):
            engine["recomputation"] = recompute.enable(backbone_, backbone)
        options = engine | {"steps": 3, "batch_size": batch, "seed": 0, "folder": folder}
        trainer = Trainer(pixels, None, None, **options)
        trainer.place(backbone_)
        found.call("pretrain", backbone=backbone_, config=config, engine=trainer)
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("plugin", "backbone", "way"),
    [
        ("simclr", "test_resnet", {}),
        ("moco_v2", "test_vit", {}),
        ("simclr", "test_resnet", {"chunk": 32}),
        ("simclr", "test_resnet", {"checkpointing": True}),
    ],
)
def test_a_real_step_takes_what_was_estimated(tmp_path, plugin, backbone, way):
    """Counted by torch's own allocator, views, workspaces and all: within 5 %. Enough images for
    the queue that an estimate has. Without AVX-512 oneDNN's convolutions take 2.5 MB of workspaces,
    a tenth of what a step in chunks holds: there that step goes without them."""
    (tmp_path / "real").mkdir()
    step = Step(plugin, backbone, 32, 128, recipe="small", **way)
    estimated = allocations.trace(step, tmp_path).total
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    with torch.backends.mkldnn.flags(enabled=wide or "chunk" not in way):
        real = real_peak(tmp_path / "real", plugin, "small", backbone, 128, way)
    assert real == pytest.approx(estimated, rel=0.05)


# What would make it fit


def pretended(per_image: int, fixed: int, made: list[Step]):
    """Return an estimator by a formula, which notes what it is asked."""

    def ask(step: Step) -> Estimate:
        made.append(step)
        half = 2 if step.precision == "bf16" else 1
        half *= 1.25 if step.checkpointing else 1
        at_once = (step.chunk or step.batch_size) // step.cards
        activations = round(per_image * at_once / half) + step.batch_size**2 // 1000
        parts = dict.fromkeys(CATEGORIES, 0) | {"parameters": fixed, "activations": activations}
        return Estimate(**parts, total=fixed + activations)

    return ask


@pytest.mark.parametrize("memory", [5_000, 31_000, 100_000, 149_999])
@pytest.mark.parametrize("batch", [1000, 1024])
def test_the_largest_batch_is_the_one_that_trying_all_finds(memory, batch):
    made: list[Step] = []
    ask = pretended(150, 2_000, made)
    step = Step("any", "any", 32, batch, cards=1)
    found = fitting.fit(step, memory, ask)
    assert not found.fits
    assert found.estimates == len(made) < 20
    assert sum(not (step.chunk or step.checkpointing) for step in made) < 14
    unit = 8
    fitting_sizes = [
        size
        for size in range(unit, batch, unit)
        if ask(replace(step, batch_size=size)).total <= memory
    ]
    ways = {way.change: way for way in found.ways}
    assert ways["batch"].step.batch_size == max(fitting_sizes)
    assert all(way.estimate.total <= memory for way in found.ways)


def test_what_fits_asks_for_nothing_more():
    made: list[Step] = []
    found = fitting.fit(Step("any", "any", 32, 64), 10**9, pretended(150, 2_000, made))
    assert (found.fits, found.ways, found.ruled_out, len(made)) == (True, (), (), 1)


def test_a_network_that_is_too_large_fits_by_nothing():
    found = fitting.fit(Step("any", "any", 32, 64, cards=2), 1_000, pretended(150, 2_000, []))
    assert found.ways == ()
    assert found.ruled_out == (
        "batch: 8 images per card do not fit either",
        "precision: bf16 needs 0.00 GB",
        "cards: 64 images on up to 64 cards do not fit",
        "checkpointing: recomputed blocks need 0.00 GB",
        "chunk: chunks of 2 need 0.00 GB",
    )


def test_the_ways_that_cost_time_are_the_first_that_fit():
    """Of 64 images on two cards each holds 32 x 100 bytes: 1,700 bytes hold chunks of 32."""
    ask = pretended(100, 0, [])
    step = Step("any", "any", 32, 64, cards=2)
    ways = {way.change: way for way in fitting.fit(step, 1_700, ask).ways}
    assert (ways["chunk"].step.chunk, ways["chunk"].estimate.total) == (32, 1_604)
    assert "checkpointing" not in ways  # 2,564 bytes
    ways = {way.change: way for way in fitting.fit(step, 2_600, ask).ways}
    assert ways["checkpointing"].step.checkpointing
    again = fitting.fit(replace(step, chunk=32, checkpointing=True), 1_000, ask)
    ways = {way.change: way for way in again.ways}
    assert ways["chunk"].step.chunk == 16
    assert "checkpointing: it recomputes already" in again.ruled_out


@pytest.mark.parametrize("chunk", [24, 64])
def test_the_largest_batch_of_chunks_is_a_number_of_them(chunk):
    ask = pretended(0, 0, [])  # the batch's square alone
    step = Step("any", "any", 32, 960, chunk=chunk)
    way = fitting.fit(step, 450, ask).ways[0]
    assert way.step.batch_size == max(n for n in range(chunk, 960, chunk) if n * n // 1000 <= 450)


def test_a_change_that_the_method_refuses_is_said():
    def ask(step: Step) -> Estimate:
        if step.cards > 1:
            raise UserError("any: 1 group does not divide among 2 processes")
        return pretended(150, 2_000, [])(step)

    found = fitting.fit(Step("any", "any", 32, 64), 9_000, ask)
    assert "cards: any: 1 group does not divide among 2 processes" in found.ruled_out


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="batch size 100 does not divide by 8 cards"):
        Step("any", "any", 32, 100, cards=8)


# The command, in processes of its own


def test_the_command_says_what_fits_and_what_would(tmp_path, capsys):
    for name, pretrain in (("good", FIT), ("bad", LOOP.format(body="float(loss.detach())"))):
        text = PLUGIN.format(net=CONV, pretrain=pretrain.strip())
        (tmp_path / f"{name}.py").write_text(text)
    options = ["--backbone", "test_resnet", "--image-size", "32", "--batch-size", "4096"]
    options += ["--memory", "0.2", "--json", str(tmp_path / "said.json")]
    files = f"{tmp_path / 'good.py'},{tmp_path / 'bad.py'}"
    assert cli.main(["estimate", "--plugins", files, *options]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: bad: its step needs the values of tensors")
    assert "Traceback" not in printed.err
    said = json.loads((tmp_path / "said.json").read_text())
    good = said["methods"]["good"]
    assert f"{good['estimate']['total'] / 1e9:.2f}" in printed.out
    assert not good["fits"]
    ways = {way["change"]: way for way in good["ways"]}
    assert f"at most {ways['batch']['step']['batch_size']} images per card" in printed.out
    assert f"{ways['cards']['step']['cards']} cards" in printed.out
    assert set(said["refused"]) == {"bad"}


def test_a_backbone_that_timm_has_not_is_a_usage_error(tmp_path, capsys):
    options = ["--plugins", "simclr", "--backbone", "resnet999", "--batch-size", "64"]
    assert cli.main(["estimate", *options, "--json", str(tmp_path / "said.json")]) == 2
    boards = ["--image-size", "32", "--batch-sizes", "64", "--leaderboards-dir", str(tmp_path)]
    assert cli.main(["cost", *options[:4], *boards, "--device", "cpu", "--estimate"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 2
    assert printed.err.count("no timm model 'resnet999'") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--memory", "nan"], "'--memory': nan is not finite"),
        (["--memory", "inf"], "'--memory'"),
        (["--memory", "1e300"], "'--memory'"),
        (["--recipe", "smal"], "no recipe of these methods 'smal'; did you mean small"),
    ],
)
def test_options_that_mean_nothing_are_one_line(given, said, capsys):
    asked = ["--plugins", "simclr", "--backbone", "test_resnet", "--batch-size", "64"]
    assert cli.main(["estimate", *asked, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_plugin_that_ends_its_process_is_one_line(tmp_path):
    (tmp_path / "gone.py").write_text(PLUGIN.format(net=LINEAR, pretrain="import os; os._exit(3)"))
    with estimator() as ask, pytest.raises(UserError, match=r"gone\.py.*ended with 3"):
        ask(Step(str(tmp_path / "gone.py"), **STEP))
