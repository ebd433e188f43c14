"""Adversarial methods: turns and budget, exact resume, clipping, penalty, equilibrium, pairs."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from bench_plugins import began, bigan, biggan, dcgan, gan, wgan
from torch import Tensor, nn
from torch.nn.functional import softplus

from bench import Unsupported, adversarial, backbones, generators
from bench.engine import Interrupted, Trainer
from bench.rehearsal import CONVOLUTIONAL

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(40) % 4
TINY = {
    "gan": replace(gan.SMALL, width=4, latent_features=8),
    "gan, two steps": replace(gan.SMALL, generator="mlp", width=16, discriminator_steps=2),
    "dcgan": replace(dcgan.SMALL, width=4, latent_features=8, discriminator_steps=2),
    "wgan": replace(wgan.SMALL, width=4, latent_features=8),
    "wgan, penalty": replace(wgan.SMALL_GP, width=4, latent_features=8),
    "began": replace(began.SMALL, width=4, latent_features=8),
    "bigan": replace(bigan.SMALL, width=4, discriminator_width=4, latent_features=8),
    "biggan": replace(biggan.SMALL, widths=(8, 8, 4, 4), latent_chunk=4, average_start=2),
}
MODULES = {
    "gan": gan,
    "dcgan": dcgan,
    "wgan": wgan,
    "began": began,
    "bigan": bigan,
    "biggan": biggan,
}
EVERY = pytest.mark.parametrize("name", TINY)


def plugin(name: str) -> ModuleType:
    return MODULES[name.partition(",")[0]]


def trainer(folder: Path, method: ModuleType, **more: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    uses = method.describe().uses_labels
    settings = {"steps": 7, "batch_size": 8, "seed": 0, "folder": folder} | more
    return Trainer(IMAGES, LABELS if uses else None, 4 if uses else None, **settings)


def train(name: str, engine: Trainer, config: Any = None) -> nn.Module:
    torch.manual_seed(0)
    backbone = engine.place(backbones.build(CONVOLUTIONAL, 32))
    return plugin(name).pretrain(backbone, TINY[name] if config is None else config, engine)


def samples(method: ModuleType, model: nn.Module, *, seed: int = 0, count: int = 5) -> Tensor:
    torch.manual_seed(seed)
    card = method.describe()
    labels = torch.arange(count) % 4 if card.conditional else None
    return method.generate(model, count, labels, card.sampling)


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(torch.as_tensor(first[k]), torch.as_tensor(second[k])) for k in first
    )


@EVERY
def test_it_trains_its_backbone_and_draws_samples(name: str, tmp_path: Path) -> None:
    method, engine = plugin(name), trainer(tmp_path, plugin(name))
    torch.manual_seed(0)
    start = backbones.build(CONVOLUTIONAL, 32)
    model = train(name, engine)
    assert engine.progress == 1
    trained = dict(model.backbone.named_parameters())
    assert trained.keys() == dict(start.named_parameters()).keys()
    assert all(not torch.equal(p, trained[n]) for n, p in start.named_parameters() if p.ndim > 1)
    images = samples(method, model)
    assert images.shape == (5, 3, 32, 32)
    assert torch.isfinite(images).all()
    assert images.abs().max() <= 1
    assert torch.equal(images, samples(method, model))
    assert not torch.equal(images, samples(method, model, seed=1))
    for rows in method.picture(model, engine, method.describe().sampling).values():
        assert rows.ndim == 5
        assert rows.shape[2:] == (3, 32, 32)
        assert rows.abs().max() <= 1


@EVERY
def test_resume_is_exact_for_both_players(name: str, tmp_path: Path) -> None:
    method = plugin(name)
    whole = train(name, trainer(tmp_path / "whole", method))
    engine = trainer(tmp_path / "parts", method)
    log = engine.log

    def stop(**scalars: Any) -> None:
        if engine.step_index == 3:  # between two of the generator's turns, where it waits
            engine.stop_signal = 15
        log(**scalars)

    engine.log = stop
    with pytest.raises(Interrupted):
        train(name, engine)
    assert engine.step_index == 4
    resumed = train(name, trainer(tmp_path / "parts", method))
    assert same(resumed, whole)
    assert torch.equal(samples(method, resumed), samples(method, whole))
    rebuilt = train(name, trainer(tmp_path / "parts", method))  # finished: no step
    assert torch.equal(samples(method, rebuilt), samples(method, whole))


@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_each_discriminator_step_draws_a_batch_of_the_budget(name: str, tmp_path: Path) -> None:
    for steps in (1, 2, 3):
        engine = trainer(tmp_path / str(steps), plugin(name))
        counts: Counter[int] = Counter()
        order: list[int] = []
        step = engine.step

        def counted(loss, optimizer, step=step, counts=counts, order=order) -> None:
            counts[id(optimizer)] += 1
            order.append(id(optimizer))
            step(loss, optimizer)

        engine.step = counted
        train(name, engine, replace(TINY[name], discriminator_steps=steps))
        first = order[0]  # the discriminator moves first
        assert counts[first] == engine.step_index == 7
        assert sum(counts.values()) - counts[first] == 7 // steps
        assert order[: steps + 1] == [first] * steps + [order[steps]]
        assert order[steps] != first


def test_both_losses_of_the_generator_are_the_configuration_s(tmp_path: Path) -> None:
    ends = {}
    for loss in ("minimax", "non_saturating"):
        config = replace(TINY["gan"], generator_loss=loss)
        ends[loss] = train("gan", trainer(tmp_path / loss, gan), config)
    assert not same(ends["minimax"].generator, ends["non_saturating"].generator)
    with pytest.raises(ValueError, match="expected minimax or non_saturating"):
        replace(gan.SMALL, generator_loss="hinge")


def test_settled_norms_are_of_clean_images_alone(tmp_path: Path) -> None:
    engine = trainer(tmp_path, dcgan)
    model = train("dcgan", engine)
    backbone = model.backbone
    found = backbone.bn1.running_mean.clone() if hasattr(backbone, "bn1") else None
    assert found is not None
    images = torch.from_numpy(IMAGES).float().div(127.5).sub(1)
    mean = torch.stack([backbone.conv1(part).mean((0, 2, 3)) for part in images.split(8)]).mean(0)
    assert torch.allclose(found, mean, atol=1e-4)


def test_critic_weights_stay_within_the_clip(tmp_path: Path) -> None:
    engine = trainer(tmp_path, wgan)
    seen: list[float] = []
    clip = wgan.clip_weights
    bound = 0.004

    def noted(critic: nn.Module, given: float, *, norms: bool) -> None:
        before = max(float(p.detach().abs().max()) for p in critic.parameters())
        clip(critic, given, norms=norms)
        after = max(float(p.detach().abs().max()) for p in critic.parameters())
        seen.append(after)
        assert before > after  # an update had left the cube

    wgan.clip_weights = noted
    try:
        model = train("wgan", engine, replace(TINY["wgan"], clip=bound, clip_norms=True))
    finally:
        wgan.clip_weights = clip
    assert len(seen) == 7
    assert max(seen) <= bound * (1 + 1e-6)
    left = max(float(p.detach().abs().max()) for p in model.discriminator.parameters())
    assert left <= bound * (1 + 1e-6)


def test_the_small_clip_leaves_the_scales_of_norms_alone() -> None:
    torch.manual_seed(0)
    critic = adversarial.Discriminator(backbones.build(CONVOLUTIONAL, 32))
    norms = [m for m in critic.modules() if isinstance(m, nn.BatchNorm2d)]
    scales = {id(parameter) for norm in norms for parameter in norm.parameters()}
    before = {id(p): p.detach().clone() for p in critic.parameters()}
    wgan.clip_weights(critic, 1e-3, norms=wgan.SMALL.clip_norms)
    assert len(scales) == 2 * len(norms) > 0
    for parameter in critic.parameters():
        if id(parameter) in scales:
            assert torch.equal(parameter, before[id(parameter)])
        else:
            assert parameter.abs().max() <= 1e-3 < before[id(parameter)].abs().max()
    wgan.clip_weights(critic, 1e-3)
    assert max(float(p.detach().abs().max()) for p in critic.parameters()) <= 1e-3 * (1 + 1e-6)


def test_long_critic_steps_are_the_source_s() -> None:
    config = wgan.Config()
    long = [step for step in range(1200) if wgan.critic_steps(config, step) == 100]
    assert long == [*range(25), 500, 1000]
    assert wgan.critic_steps(config, 30) == 5
    assert {wgan.critic_steps(wgan.SMALL, step) for step in range(60)} == {wgan.SMALL.critic_steps}
    penalised = replace(wgan.Config(), gradient_penalty=10.0)
    assert {wgan.critic_steps(penalised, step) for step in (0, 500)} == {5}


def test_rates_are_each_paper_s() -> None:
    clipped = wgan.rates(wgan.Config())
    assert (clipped["kind"], clipped["lr"]) == ("rmsprop", 5e-5)
    penalised = wgan.rates(wgan.Config(gradient_penalty=10.0))
    assert (penalised["kind"], penalised["lr"]) == ("adam", 1e-4)
    assert penalised["betas"] == (0.0, 0.9)


def test_the_critic_under_a_penalty_sees_each_image_alone(tmp_path: Path) -> None:
    model = train("wgan, penalty", trainer(tmp_path, wgan))
    images = torch.randn(4, 3, 32, 32)
    critic = model.discriminator.train()
    alone = torch.cat([critic(image[None]) for image in images])
    assert torch.allclose(critic(images), alone, atol=1e-4)


@torch.no_grad()
def test_the_small_generator_of_began_begins_with_an_image_of_its_own_for_each_vector() -> None:
    shares: dict[bool, list[float]] = {True: [], False: []}
    for seed, norm in itertools.product(range(5), shares):
        torch.manual_seed(seed)
        small = replace(began.SMALL, generator_norm=norm)
        sizes = (small.latent_features, small.width)
        generator = began.Decoder(*sizes, 32, gray=True, norm=small.generator_norm)
        images = generator(generators.latents(generator, 64))[:, 0].flatten(1)
        shares[norm].append(
            float(images.var(0).mean() / images.var())
        )  # of vectors in the variance
    assert began.SMALL.generator_norm
    assert min(shares[True]) > 0.8
    assert max(shares[False]) < 0.4  # of the five, so for good


def test_balance_moves_as_the_equation_says_and_stays_in_its_range() -> None:
    config = replace(began.SMALL, diversity=0.5, gain=0.4)
    judge = began.Autoencoder(backbones.build(CONVOLUTIONAL, 32), config, 32)
    generator = torch.Generator().manual_seed(0)
    k, ks = 0.0, []
    for real, fake in torch.rand(60, 2, generator=generator).tolist():
        measure = judge.update_balance(torch.tensor(real), torch.tensor(fake), config)
        k = min(1.0, max(0.0, k + 0.4 * (0.5 * real - fake)))
        assert float(judge.balance) == pytest.approx(k, abs=1e-6)
        assert float(measure) == pytest.approx(real + abs(0.5 * real - fake), abs=1e-6)
        ks.append(k)
    for _ in range(9):
        judge.update_balance(torch.tensor(1.0), torch.tensor(0.0), config)
    assert float(judge.balance) == 1
    assert min(ks) == 0


def test_error_is_the_mean_distance_per_pixel() -> None:
    judge = began.Autoencoder(backbones.build(CONVOLUTIONAL, 32), TINY["began"], 32).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = sum((a - b).abs().mean() for a, b in zip(images, judge(images), strict=True)) / 2
        assert float(judge.error(images)) == pytest.approx(float(expected), rel=1e-5)


class PairJudge(nn.Module):
    """It is sure: its logit is 10 for the images that it saw first, the real ones, else -10."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(10.0))
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        self.calls.append((images, latents))
        side = 1 if torch.equal(images, self.calls[0][0]) else -1
        untouched = 0 * (images.mean((1, 2, 3)) + latents.mean(1))  # so that gradients flow
        return side * self.logit + untouched


def test_pairs_are_of_image_and_code_and_the_players_want_them_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, losses = PairJudge(), []
    monkeypatch.setattr(bigan, "JointDiscriminator", lambda config, size: judge)
    engine = trainer(tmp_path, bigan, steps=1)
    step = engine.step

    def noted(loss: Tensor, optimizer: Any) -> None:
        losses.append(float(loss.detach()))
        step(loss, optimizer)

    engine.step = noted
    train("bigan", engine)
    (images, codes), (fakes, drawn) = judge.calls[:2]  # of the discriminator's step
    (fakes_again, drawn_again), (images_again, codes_again) = judge.calls[2:]
    stored = torch.from_numpy(IMAGES[engine._indices(0)]).float().div(127.5).sub(1)
    assert torch.allclose(images, stored, atol=1e-6)
    assert images_again is images
    assert drawn_again is drawn
    assert torch.equal(fakes, fakes_again.detach())
    assert torch.equal(codes, codes_again.detach())
    assert not codes.requires_grad
    assert not fakes.requires_grad
    assert codes_again.requires_grad  # both the encoder
    assert fakes_again.requires_grad  # and the generator learn
    assert codes.abs().max() < 1
    assert drawn.abs().max() <= 1
    sure, fooled = (2 * float(softplus(torch.tensor(logit))) for logit in (-10.0, 10.0))
    assert losses[0] == pytest.approx(sure, rel=1e-4)
    assert losses[1] == pytest.approx(fooled, rel=1e-2)  # after the judge's step


def test_the_joint_discriminator_reads_both_halves_of_a_pair() -> None:
    torch.manual_seed(0)
    judge = bigan.JointDiscriminator(TINY["bigan"], 32).eval()
    images, codes = torch.randn(3, 3, 32, 32), torch.randn(3, 8)
    logits = judge(images, codes)
    assert logits.shape == (3,)
    assert not torch.allclose(logits, judge(images.roll(1, 0), codes))
    assert not torch.allclose(logits, judge(images, codes.roll(1, 0)))
    assert torch.allclose(logits.roll(1, 0), judge(images.roll(1, 0), codes.roll(1, 0)), atol=1e-6)


def spectra(module: nn.Module) -> list[float]:
    """Return the largest singular value of every convolution and linear layer."""
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [float(torch.linalg.matrix_norm(m.weight.detach().flatten(1), ord=2)) for m in layers]


def test_every_layer_of_both_players_is_spectrally_normalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(biggan, "keep_spectra", lambda module: module)
    model = train("biggan", trainer(tmp_path, biggan)).train()
    drawn = model.generator.draw(2)
    for _ in range(60):  # the estimates catch up with weights that no longer move
        model.discriminator(model.generator(*drawn), drawn[1])
    model.eval()
    for player, least in ((model.discriminator, 10), (model.generator, 15)):
        found = spectra(player)
        assert len(found) > least
        assert max(found) < 1.02
        assert min(found) > 0.9


def test_samples_follow_their_labels_and_latents(tmp_path: Path) -> None:
    model = train("biggan", trainer(tmp_path, biggan))
    generator = model.generator.eval()
    torch.manual_seed(0)
    drawn, _ = generator.draw(6)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.no_grad():
        images = generator(drawn, labels)
        changed = (generator(drawn, labels.roll(1)) - images).abs().amax((1, 2, 3))
        assert changed.min() > 1e-5
        first = generator.latent_features // (len(generator.blocks) + 1)
        for part in drawn.split(first, dim=1):  # each chunk of the split latent has its say
            assert part.shape[1] == first
        for chunk in range(len(generator.blocks) + 1):
            other = drawn.clone()
            other[:, chunk * first : (chunk + 1) * first] *= -1
            assert (generator(other, labels) - images).abs().max() > 1e-5
    torch.manual_seed(0)
    one = biggan.generate(model, 6, labels, biggan.Sampling())
    torch.manual_seed(0)
    two = biggan.generate(model, 6, labels.flip(0), biggan.Sampling())
    assert not torch.equal(one[0], two[0])


def test_the_projection_is_the_equation() -> None:
    torch.manual_seed(0)
    judge = adversarial.ProjectionDiscriminator(backbones.build(CONVOLUTIONAL, 32), 4, 32).eval()
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([2, 0, 2])
    with torch.no_grad():
        maps = judge.backbone.forward_features(images).sum((2, 3))  # (B, F)
        weight, bias = judge.score.weight[0], judge.score.bias[0]
        table = judge.embedding.weight  # (F, classes)
        expected = [
            float(((weight + table[:, label]) * row).sum() + bias)
            for row, label in zip(maps, labels, strict=True)
        ]
        assert judge(images, labels).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_projection_sums_over_places_whatever_the_axes() -> None:
    """timm's Swin has its channels last: (h, w, C)."""
    small = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
    spec = {"name": "swin_tiny_patch4_window7_224", "args": small | {"window_size": 4}}
    judge = adversarial.ProjectionDiscriminator(backbones.build(spec | {"stem": None}, 32), 4, 32)
    assert adversarial.map_shape(judge.backbone, 32) == (4, 4, 24)
    assert judge.places == 16


def test_the_sampling_generator_is_the_average_of_the_steps(tmp_path: Path) -> None:
    config = replace(TINY["biggan"], average_decay=0.5, average_start=3)
    engine, live = trainer(tmp_path, biggan), []
    prepare, step = engine.prepare, engine.step
    held: dict[str, nn.Module] = {}

    def keep(module: nn.Module, name: str = "model") -> nn.Module:
        held[name] = prepare(module, name)
        return held[name]

    def noted(loss: Tensor, optimizer: Any) -> None:
        before = next(held["generator"].parameters()).detach().clone()
        step(loss, optimizer)
        after = next(held["generator"].parameters()).detach().clone()
        if not torch.equal(before, after):
            live.append(after)

    engine.prepare, engine.step = keep, noted
    model = train("biggan", engine, config)
    expected = live[2]  # a copy until the average starts
    for newest in live[3:]:
        expected = 0.5 * expected + 0.5 * newest
    assert len(live) == 7
    assert torch.allclose(next(model.generator.parameters()), expected, atol=1e-6)
    assert model.generator is held["average"]


def test_widths_that_do_not_fit_the_image_are_refused() -> None:
    with pytest.raises(Unsupported, match="32 px take 4 widths, got 6"):
        biggan.Generator(biggan.Config(), 4, 32, False)
    with pytest.raises(ValueError, match="above 0"):
        biggan.Sampling(truncation=0.0)


def test_the_small_bound_leaves_the_critic_a_slope_that_the_paper_s_takes_from_a_resnet() -> None:
    track = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
    stem = {"kernel": 3, "stride": 2, "max_pool": False}
    slopes = {}
    for bound in (wgan.SMALL.clip, wgan.Config().clip):
        torch.manual_seed(0)
        backbone = backbones.build({"name": "resnet18", "args": track, "stem": stem}, 32)
        critic = adversarial.normal_init(adversarial.Discriminator(backbone))
        wgan.clip_weights(critic, bound)  # BatchNorm's scales as well
        images = torch.randn(8, 3, 32, 32, requires_grad=True)
        (slope,) = torch.autograd.grad(critic(images).sum(), images)
        slopes[bound] = float(slope.flatten(1).norm(dim=1).mean())
    small, paper = slopes.values()
    assert small > 1e-3
    assert paper < small / 1000


@EVERY
def test_gray_data_have_gray_samples(name: str, tmp_path: Path) -> None:
    method = plugin(name)
    uses = method.describe().uses_labels
    labels = (LABELS, 4) if uses else (None, None)
    engine = Trainer(IMAGES[:, :1], *labels, steps=1, batch_size=8, seed=0, folder=tmp_path)
    images = samples(method, train(name, engine))
    assert images.shape == (5, 3, 32, 32)
    assert torch.equal(images, images[:, :1].expand(-1, 3, -1, -1))
    assert images.std() > 0
