"""Exchange between processes: values, gradients, and BatchNorm over all images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from bench.distributed import (
    average_buffers,
    broadcast,
    encode_shuffled,
    gather,
    rank,
    world_size,
)
from bench.layers import group_batch_norm


def rows(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # The second half lies elsewhere, so that the parts' statistics differ from the whole's.
    values = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    values[count // 2 :] = 3 * values[count // 2 :] + 5
    return values


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Flatten(), nn.BatchNorm1d(16)
    ).double()


def weighted(everyone: Tensor) -> Tensor:
    """A loss of all rows that no symmetry makes constant."""
    return (everyone.flatten(1).sin() * torch.arange(1.0, len(everyone) + 1)[:, None]).sum()


def statistics_and_gradients(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """One pass in training over `images`, the same loss weights whatever the part."""
    images = images.clone().requires_grad_()
    out = net(images)
    out.sin().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return {"out": out.detach(), "images": images.grad, **gradients, **dict(net.named_buffers())}


def encode(images: Tensor) -> Tensor:
    """Show each image and the mean of those that it came with."""
    flat = images.flatten(1)[:, :2]
    return torch.cat([flat, flat.mean(0).expand(len(flat), -1)], dim=1)


def exchange(own: int, folder: str) -> None:
    """What process `own` of two sees; left in `<own>.pt`."""
    torch.set_num_threads(1)
    where = f"file://{Path(folder) / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=where, rank=own, world_size=2)
    part = rows().chunk(2)[own].clone().requires_grad_()
    everyone = gather(part)
    ((own + 1) * weighted(everyone)).backward()  # process 1's loss is twice process 0's

    floats, counter = torch.full((2, 2), 1.0 + own), torch.tensor(3)
    average_buffers([floats, counter])
    mine = torch.tensor([own, 7])
    torch.manual_seed(own)  # process 0 decides the order
    shuffled = encode_shuffled(encode, rows().chunk(2)[own])
    state = {
        "place": torch.tensor([rank(), world_size()]),
        "gathered": everyone.detach(),
        "gradient": part.grad,
        "average": floats,
        "counter": counter,
        "broadcast": broadcast(mine),
        "kept": mine,
        "shuffled": shuffled,
        **{
            f"norm.{name}": value
            for name, value in statistics_and_gradients(
                group_batch_norm(network()).train(), rows().chunk(2)[own]
            ).items()
        },
    }
    torch.save(state, Path(folder) / f"{own}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pair")
    several.run(exchange, 2, str(folder))
    return [torch.load(folder / f"{own}.pt", weights_only=True) for own in range(2)]


def test_alone_everything_is_a_no_op() -> None:
    tensor = rows()
    assert (rank(), world_size()) == (0, 1)
    assert gather(tensor) is tensor
    assert broadcast(tensor) is tensor
    average_buffers([tensor])
    assert torch.equal(tensor, rows())


def test_gather_concatenates_in_rank_order(pair: list[dict[str, Any]]) -> None:
    for own, state in enumerate(pair):
        assert state["place"].tolist() == [own, 2]
        assert torch.equal(state["gathered"], rows())


def test_gather_sends_back_the_sum_of_all_processes_gradients(pair: list[dict[str, Any]]) -> None:
    whole = rows().requires_grad_()
    (3 * weighted(whole)).backward()
    gradient = torch.cat([state["gradient"] for state in pair])
    assert torch.allclose(gradient, whole.grad, rtol=0, atol=1e-12)


def test_broadcast_gives_the_source_s_tensor_and_keeps_the_own(pair: list[dict[str, Any]]) -> None:
    assert [state["broadcast"].tolist() for state in pair] == [[0, 7], [0, 7]]
    assert [state["kept"].tolist() for state in pair] == [[0, 7], [1, 7]]


def test_shuffled_images_come_with_others_and_return_in_order(
    pair: list[dict[str, Any]],
) -> None:
    images = rows()
    torch.manual_seed(0)
    order = torch.randperm(6)
    expected = torch.empty(6, 4, dtype=torch.float64)
    for part in order.chunk(2):
        expected[part] = encode(images[part])
    found = torch.cat([state["shuffled"] for state in pair])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(found[:, :2], images.flatten(1)[:, :2])
    alone = torch.cat([encode(part) for part in images.chunk(2)])
    assert not torch.allclose(found, alone, atol=1e-3)


def test_average_buffers_leaves_counters(pair: list[dict[str, Any]]) -> None:
    for state in pair:
        assert torch.equal(state["average"], torch.full((2, 2), 1.5))
        assert int(state["counter"]) == 3


def test_group_norm_equals_one_process_with_all_images(pair: list[dict[str, Any]]) -> None:
    whole = statistics_and_gradients(network().train(), rows())
    for name, expected in whole.items():
        parts = [state[f"norm.{name}"] for state in pair]
        if name in ("out", "images"):
            value = torch.cat(parts)
        elif name.endswith((".weight", ".bias")):
            value = parts[0] + parts[1]  # the loss is a sum over images
        else:
            value = parts[0]
            assert torch.equal(parts[0], parts[1]), name
        assert torch.allclose(value, expected, rtol=0, atol=1e-10), name
    alone = statistics_and_gradients(network().train(), rows()[:3])
    assert not torch.allclose(pair[0]["norm.out"], alone["out"], atol=1e-2)
