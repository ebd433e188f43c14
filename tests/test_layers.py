"""Heads, moving averages, and BatchNorm over parts of a batch."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from bench import Unsupported, layers
from bench.layers import (
    ema_momentum,
    ema_update,
    enqueue,
    group_batch_norm,
    groups_per_process,
    projection_mlp,
    queue_length,
    split_batch_norm,
)


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 5, 5, generator=generator, dtype=torch.float64) * 2 + 1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Flatten(), nn.BatchNorm1d(36)
    ).double()
    for layer in layers:
        if hasattr(layer, "running_mean"):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
    return layers


def test_head_is_the_composition_of_its_layers() -> None:
    head = projection_mlp(4, 7, 3, depth=3)
    x = torch.randn(5, 4)
    first, second, last = (m for m in head if isinstance(m, nn.Linear))
    expected = last(second(first(x).clamp(min=0)).clamp(min=0))
    assert torch.equal(head(x), expected)
    assert [m.out_features for m in (first, second, last)] == [7, 7, 3]


def test_head_norms_stand_before_each_relu_and_at_the_end() -> None:
    head = projection_mlp(4, 7, 3, norm=True, out_norm=True)
    kinds = [type(m).__name__ for m in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert all(m.bias is None for m in head if isinstance(m, nn.Linear))
    assert head[1].bias.requires_grad
    assert not head[-1].bias.requires_grad
    out = head(torch.randn(64, 4))
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-5)


def test_head_of_depth_one_is_linear() -> None:
    assert [type(m) for m in projection_mlp(4, 7, 3, depth=1, norm=True)] == [nn.Linear]
    with pytest.raises(ValueError, match="got depth 0"):
        projection_mlp(4, 7, 3, depth=0)


def test_ema_moves_parameters_and_copies_buffers() -> None:
    module, average = network(), network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    module(images())
    before = [p.detach().clone() for p in average.parameters()]
    ema_update(average, module, 0.9)
    for slow, fast, old in zip(average.parameters(), module.parameters(), before, strict=True):
        assert torch.allclose(slow, 0.9 * old + 0.1 * fast, rtol=0, atol=1e-14)
    assert all(map(torch.equal, average.buffers(), module.buffers()))
    assert int(average[0].num_batches_tracked) == 1


@pytest.mark.parametrize("seed", range(3))
def test_ema_gives_the_bits_of_a_loop_over_tensors(seed: int) -> None:
    torch.manual_seed(seed)
    shared, norm = nn.Linear(7, 7), nn.BatchNorm1d(7, affine=False)
    module = nn.ModuleDict({"net": nn.Sequential(shared, norm, nn.Sequential(shared), nn.GELU())})
    module.register_module("absent", None)
    module.net.register_buffer("queue", torch.randn(5))
    average = copy.deepcopy(module).requires_grad_(False)
    expected = copy.deepcopy(average)
    for _ in range(3):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
            module.net(torch.randn(8, 7))
            for slow, fast in zip(expected.parameters(), module.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - 0.99)
            for slow, fast in zip(expected.buffers(), module.buffers(), strict=True):
                slow.copy_(fast)
            ema_update(average, module, 0.99)
    found, wanted = average.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_half_life_decides_the_momentum_whatever_the_steps() -> None:
    for steps in (9, 97):
        assert ema_momentum(0.5, 0.7, steps) ** (0.7 * steps) == pytest.approx(0.5)
    assert ema_momentum(0.999, None, 9) == 0.999


def test_queue_holds_whole_steps_of_at_most_half_the_images() -> None:
    assert queue_length(4096, 1167, 128) == 512
    assert queue_length(300, 1167, 128) == 256
    assert queue_length(65536, 1_281_167, 256) == 65536
    assert queue_length(4096, 150, 128) == 128


def test_keys_take_the_oldest_rows_and_wrap_around() -> None:
    queue, pointer = torch.zeros(6, 2, dtype=torch.float64), torch.zeros((), dtype=torch.long)
    expected: list[list[float]] = [[0.0, 0.0]] * 6
    for step in range(5):
        keys = torch.randn(4, 2, dtype=torch.float64)
        enqueue(queue, pointer, keys)
        for row, key in enumerate(keys.tolist()):
            expected[(4 * step + row) % 6] = key
        assert queue.tolist() == expected
        assert int(pointer) == 4 * (step + 1) % 6


def test_groups_that_the_processes_cannot_share_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe decides the groups, whatever the number of processes: a run id has one result."""
    monkeypatch.setattr(layers, "world_size", lambda: 2)
    assert groups_per_process(8) == 4
    with pytest.raises(Unsupported, match="1 BatchNorm groups do not divide among 2 processes"):
        groups_per_process(1)


def test_split_norm_equals_the_parts_apart() -> None:
    """Outputs, gradients and running statistics are those of separate passes over the parts."""
    split, whole = split_batch_norm(network(), 3).train(), network().train()
    x = images()
    out = split(x)
    parts = [copy.deepcopy(whole) for _ in range(3)]
    expected = torch.cat([net(part) for net, part in zip(parts, x.chunk(3), strict=True)])
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(out, whole(x), atol=1e-2)

    out.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in split.named_parameters():
        total = sum(net.get_parameter(name).grad for net in parts)
        assert torch.allclose(parameter.grad, total, rtol=0, atol=1e-10), name
    for name, buffer in split.named_buffers():
        mean = sum(net.get_buffer(name) for net in parts) / 3
        assert torch.allclose(buffer.double(), mean.double(), rtol=0, atol=1e-12), name


def test_split_norm_keeps_keys_and_evaluation() -> None:
    whole, split = network(), split_batch_norm(network(), 2)
    assert list(split.state_dict()) == list(whole.state_dict())
    whole.train()(images())
    split.load_state_dict(whole.state_dict())
    assert torch.equal(split.eval()(images()), whole.eval()(images()))


def test_split_norm_averages_all_batches_without_momentum() -> None:
    """`momentum=None` is how statistics are estimated anew."""
    net = split_batch_norm(nn.Sequential(nn.BatchNorm2d(3, momentum=None)), 2).double().train()
    batches = images(12).chunk(3)
    for batch in batches:
        net(batch)
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(net[0].running_mean, expected, rtol=0, atol=1e-12)


def test_split_norm_refuses_what_does_not_divide() -> None:
    net = split_batch_norm(network(), 4).train()
    with pytest.raises(Unsupported, match="6 images does not split into 4 groups"):
        net(images())
    with pytest.raises(ValueError, match="1 group or more, got 0"):
        split_batch_norm(network(), 0)


def test_split_norm_refuses_a_single_value_per_channel() -> None:
    norm = split_batch_norm(nn.BatchNorm2d(3), 4).train()
    with pytest.raises(Unsupported, match="one value per channel"):
        norm(torch.randn(4, 3, 1, 1))
    assert norm(torch.randn(4, 3, 2, 2)).shape == (4, 3, 2, 2)


def test_regrouped_norms_are_still_of_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """As what clips all weights but those of norms, or resets norms of maps, asks for them."""
    monkeypatch.setattr(layers, "world_size", lambda: 2)
    net = group_batch_norm(network())
    kinds = [isinstance(layer, nn.BatchNorm2d) for layer in net]
    assert kinds == [True, False, True, False, False]
    assert isinstance(net[4], layers.RegroupedBatchNorm)
    assert list(net.state_dict()) == list(network().state_dict())


def test_nothing_changes_with_one_group_or_one_process() -> None:
    net = network()
    kinds = [type(m) for m in net.modules()]
    assert group_batch_norm(split_batch_norm(net, 1)) is net
    assert [type(m) for m in net.modules()] == kinds


def written_out(norm: nn.BatchNorm2d, shown: Tensor) -> Tensor:
    """What BatchNorm over processes computes, as autograd would take it."""
    wide = shown.float()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    scale = torch.rsqrt(var + norm.eps) * norm.weight
    columns = [value.view(1, -1, 1, 1) for value in (mean, scale, norm.bias)]
    return ((wide - columns[0]) * columns[1] + columns[2]).to(shown.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_over_processes_keeps_its_input_alone(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "world_size", lambda: 2)  # the exchange still finds one process
    plain = nn.BatchNorm2d(3)
    nn.init.uniform_(plain.weight, 0.5, 2.0)
    grouped = group_batch_norm(nn.Sequential(copy.deepcopy(plain)))
    shown = images().to(dtype).requires_grad_()
    again = images().to(dtype).requires_grad_()
    kept: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks:
        out = grouped(shown)
    maps = {t.untyped_storage().data_ptr(): t for t in kept if t.numel() == shown.numel()}
    assert [t.dtype for t in maps.values()] == [dtype]
    assert maps.popitem()[0] == shown.untyped_storage().data_ptr()

    expected = written_out(plain, again)
    assert torch.equal(out, expected)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    for made in (out, expected):
        (made.float().tanh() * weights).sum().backward()
    rounding = 1e-7 if dtype == torch.float32 else 2**-7  # of the sum of two gradients
    assert torch.allclose(shown.grad, again.grad, rtol=rounding, atol=rounding * 0.1)
    for name, parameter in grouped[0].named_parameters():
        assert torch.equal(parameter.grad, getattr(plain, name).grad)


def test_batch_norm_over_processes_has_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "world_size", lambda: 2)
    norm = group_batch_norm(nn.Sequential(nn.BatchNorm2d(3).double()))
    shown = images(2)[:, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: norm(x).tanh(), (shown,))


def test_an_average_of_a_module_without_buffers() -> None:
    module = nn.Linear(2, 2)
    average = copy.deepcopy(module)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
        ema_update(average, module, 0.75)
    assert torch.allclose(average.weight, before + 0.25)
