"""The engine: one budget, exact resume, addressed randomness, several processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench import checkpoints
from bench.engine import Interrupted, Trainer
from bench.errors import Diverged, UserError
from bench.meters import Meter, read_metrics

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
LABELS = np.arange(40) % 4


class Classifier(nn.Module):
    """A convolution with BatchNorm and dropout: buffers and forward randomness to restore."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
        )
        self.head = nn.Linear(288, 4)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.head(self.backbone(images)), labels)


def jitter(images: Tensor, draws: object) -> Tensor:
    return (images + 0.1 * draws.uniform()[:, None, None, None]).clamp(0, 1)


def trainer(folder: Path, **more: object) -> Trainer:
    settings = {"steps": 12, "batch_size": 8, "seed": 0, "folder": folder} | more
    return Trainer(IMAGES, LABELS, 4, **settings)


def train(folder: Path, *, optimizer: str = "sgd", **more: object) -> nn.Module:
    torch.manual_seed(0)
    engine = trainer(folder, **more)
    args = {"lr": 0.1, "warmup_epochs": 1, "weight_decay": 1e-4}
    return engine.fit(Classifier(), views=(jitter,), optimizer=optimizer, **args)


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lars", "rmsprop"])
def test_resume_is_exact_at_every_step(tmp_path: Path, optimizer: str) -> None:
    whole = train(tmp_path, optimizer=optimizer)
    for stop in (1, 5, 11):
        folder = tmp_path / str(stop)
        folder.mkdir()
        torch.manual_seed(0)
        engine = trainer(folder)

        def stop_here(engine: Trainer = engine, stop: int = stop) -> None:
            if engine.step_index == stop - 1:
                engine.stop_signal = 15

        with pytest.raises(Interrupted):
            engine.fit(
                Classifier(),
                views=(jitter,),
                optimizer=optimizer,
                after_step=stop_here,
                lr=0.1,
                warmup_epochs=1,
                weight_decay=1e-4,
            )
        assert checkpoints.found(folder)[0][0] == stop
        assert same(train(folder, optimizer=optimizer), whole)


def test_finished_run_rebuilds_its_model_in_no_step(tmp_path: Path) -> None:
    whole = train(tmp_path)
    steps = []
    torch.manual_seed(0)
    again = trainer(tmp_path).fit(Classifier(), after_step=lambda: steps.append(1), lr=0.1)
    assert not steps
    assert same(again, whole)


def test_seed_decides_the_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    one, two = train(folders[0]), train(folders[1])
    assert same(one, two)
    assert not same(one, train(folders[2], seed=1))


def test_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = train(tmp_path, checkpoint_seconds=0.0)
    (newest, path), (before, _) = checkpoints.found(tmp_path)
    assert (newest, before) == (12, 11)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert same(train(tmp_path), whole)
    assert "damaged" in capsys.readouterr().out


def test_checkpoint_of_another_spec_is_not_used(tmp_path: Path) -> None:
    train(tmp_path, identity_hash="one")
    assert trainer(tmp_path, identity_hash="two").step_index == 0


def test_checkpoints_of_another_spec_with_more_steps_hide_none(tmp_path: Path) -> None:
    """As those of a finished run do that is trained again after its code was changed."""
    train(tmp_path, identity_hash="one", steps=12)
    torch.manual_seed(0)
    engine = trainer(tmp_path, identity_hash="two", checkpoint_seconds=0)
    for _ in zip(range(4), engine.batches(), strict=False):  # the fourth is not ended
        pass
    assert engine.step_index == 3
    engine.save()
    assert trainer(tmp_path, identity_hash="two").step_index == 3
    assert next(step for step, _ in checkpoints.found(tmp_path)) == 3


def test_every_epoch_shows_each_image_once(tmp_path: Path) -> None:
    engine = trainer(tmp_path, steps=10)
    seen = [engine._indices(step) for step in range(10)]
    for epoch in (seen[:5], seen[5:]):
        assert sorted(np.concatenate(epoch)) == list(range(40))
    assert not np.array_equal(np.concatenate(seen[:5]), np.concatenate(seen[5:]))


def test_stages_share_the_budget(tmp_path: Path) -> None:
    engine = trainer(tmp_path)
    assert len(list(engine.batches(until=0.5))) == 6
    assert engine.progress == 0.5
    assert len(list(engine.batches(until=0.5))) == 0
    assert len(list(engine.batches())) == 6
    assert engine.progress == 1.0


@pytest.mark.parametrize("deferred", [False, True])
def test_diverged_names_the_first_bad_step(tmp_path: Path, deferred: bool) -> None:
    engine = trainer(tmp_path, steps=200, defer_finite_check=deferred)
    model = engine.prepare(nn.Linear(3, 1))
    optimizer = engine.optimizer(model, "adamw", name="model", lr=0.1)
    weights = []

    def loop() -> None:
        for batch in engine.batches():
            factor = float("nan") if engine.step_index >= 3 else 1.0
            engine.step(model(batch.views[0].mean((2, 3))).mean() * factor, optimizer)
            weights.append(model.weight.detach().clone())

    with pytest.raises(Diverged) as caught:
        loop()
    assert caught.value.step == 3
    assert not checkpoints.found(tmp_path)
    assert all(torch.isfinite(weight).all() for weight in weights)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.Flatten())
        self.head = nn.Linear(144, 5)

    def embed(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(view0)), self.head(self.backbone(view1)).detach()

    def loss(self, z0: Tensor, z1: Tensor) -> Tensor:
        return cross_entropy(z0 @ z1.T, torch.arange(len(z0)))


def test_chunks_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    from bench.chunking import cached_backward

    torch.manual_seed(0)
    model = Pair().double()
    views = [torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(2)]

    def chunked_embedding() -> tuple[Tensor, ...]:
        parts = []
        for index in range(4):
            torch.manual_seed(index)
            parts.append(model.embed(*(view[2 * index : 2 * index + 2] for view in views)))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    model.loss(*chunked_embedding()).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    off = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    cached_backward(model, views, 2, lambda index: torch.manual_seed(index), off)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=0, atol=1e-12)


def test_metrics_are_cut_to_the_checkpoint_on_resume(tmp_path: Path) -> None:
    train(tmp_path, checkpoint_seconds=0.0)
    checkpoints.found(tmp_path)[0][1].unlink()
    train(tmp_path)
    steps = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_resumed_line_of_metrics_is_over_the_steps_before_as_well(tmp_path: Path) -> None:
    losses = [torch.tensor(x) for x in (1.5, 0.1, 7.3, 2.2)]
    places = [tmp_path / "whole", tmp_path / "parts"]
    for place in places:
        place.mkdir()
        meter = Meter(place, 4, 8, write=True)
        for step, loss in enumerate(losses, start=1):
            if place.name == "parts" and step == 3:
                meter.record_health(2, {"rankme": 3.0})
                state = meter.state()
                meter.record_health(3, {"rankme": 4.0})  # then it died, and began again
                meter = Meter(place, 4, 8, write=True)
                meter.resume(state, 2)
            meter.add_loss(loss)
            meter.add({"norm": loss} if step < 3 else {})
        meter.flush(4)

    whole, parts = [read_metrics(place) for place in places]
    assert whole == parts
    assert whole[0]["loss"] == pytest.approx(2.775)
    assert whole[0]["norm"] == pytest.approx(0.1)
    assert [row["step"] for row in read_metrics(places[1], "health.jsonl")] == [2]


def test_the_peak_of_memory_is_of_all_processes_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = iter([5.0, 1.0, 1.0, 7.0])
    monkeypatch.setattr("bench.meters.peak_gib", lambda device: next(held))
    meter = Meter(tmp_path, 4, 8, write=True)
    state = meter.state()
    again = Meter(tmp_path, 4, 8, write=True)
    again.resume(state, 2)  # it draws samples, and takes no step
    assert again.peak_gib == 5.0
    later = Meter(tmp_path, 4, 8, write=True)
    later.resume(again.state(), 2)
    assert later.peak_gib == 7.0


def test_settle_draws_from_images_that_are_sorted_by_class(tmp_path: Path) -> None:
    """2,000 images, dark ones first: of the first thousand the statistics were of these alone."""
    images = np.repeat(np.array([10, 240], np.uint8), 1000)[:, None, None, None]
    images = np.broadcast_to(images, (2000, 3, 8, 8))
    means = []
    for mixed in (True, False):
        place = tmp_path / str(mixed)
        place.mkdir()
        engine = Trainer(
            images, None, None, steps=1, batch_size=100, seed=0, folder=place, mixed=mixed
        )
        norm = nn.Sequential(nn.BatchNorm2d(3))
        engine.settle(norm)
        means.append(float(norm[0].running_mean[0]))
    dark, light = (value / 255 * 2 - 1 for value in (10, 240))
    assert means[0] == pytest.approx(dark, abs=1e-3)
    # Hypergeometric: 500 of 1,000 light ones, standard deviation 11.2.
    assert abs(means[1] - (dark + light) / 2) < 4 * 11.2 / 1000 * (light - dark)
    assert float(norm[0].running_var[0]) > 0.5  # within a batch, not between batches of one kind


def test_settle_gives_the_statistics_of_clean_images(tmp_path: Path) -> None:
    engine = trainer(tmp_path)
    norm = nn.Sequential(nn.BatchNorm2d(3)).eval()
    norm[0].running_mean.fill_(9.0)
    engine.settle(norm)
    clean = torch.from_numpy(IMAGES).float() / 255 * 2 - 1
    assert torch.allclose(norm[0].running_mean, clean.mean().expand(3), atol=1e-5)
    assert not norm[0].training


@pytest.mark.parametrize(
    ("more", "message"),
    [({"batch_size": 64}, "exceeds the 40"), ({"precision": "fp8"}, "no precision 'fp8'")],
)
def test_bad_settings_are_refused(tmp_path: Path, more: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **more)


def test_optimizer_takes_exactly_one_rate(tmp_path: Path) -> None:
    engine = trainer(tmp_path)
    with pytest.raises(UserError, match="exactly one of base_lr and lr"):
        engine.optimizer(nn.Linear(2, 2), "sgd", name="a", lr=0.1, base_lr=0.1)
    with pytest.raises(UserError, match="no argument of sgd 'betas'"):
        engine.optimizer(nn.Linear(2, 2), "sgd", name="b", lr=0.1, betas=(0.9, 0.99))
