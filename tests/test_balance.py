"""Balanced rings: what is scaled, by how much, and what is left alone."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sre_triton import GMRConv2d, SREConv1d, SREConv2d, SREConv3d, balance_steps, balance_weights
from sre_triton.layers import RingConvNd


def network() -> nn.Sequential:
    return nn.Sequential(SREConv2d(3, 6, 9, padding=4), nn.BatchNorm2d(6), nn.ReLU(), SREConv2d(6, 2, 1))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adadelta],
    ids=lambda o: o.__name__,
)
def test_a_step_is_divided_by_the_taps(optimizer: type[torch.optim.Optimizer]) -> None:
    plain = network()
    balanced = copy.deepcopy(plain)
    before = plain[0].weight.detach().clone()
    step(plain, optimizer(plain.parameters()), 0)
    adjusted = optimizer(balanced.parameters())
    balance_steps(adjusted, balanced)
    step(balanced, adjusted, 0)
    taps = torch.tensor(plain[0].geometry.tap_counts)
    assert taps.tolist() == [1, 8, 12, 16, 32]
    torch.testing.assert_close(balanced[0].weight - before, (plain[0].weight - before) / taps, rtol=1e-4, atol=1e-8)
    for name, parameter in plain.named_parameters():
        if name != "0.weight":
            assert torch.equal(parameter, balanced.get_parameter(name)), name


def test_removed_it_leaves_no_trace() -> None:
    plain, adjusted = network(), network()
    adjusted.load_state_dict(plain.state_dict())
    optimizers = [torch.optim.Adam(net.parameters()) for net in (plain, adjusted)]
    balance_steps(optimizers[1], adjusted).remove()
    for seed in range(3):
        step(plain, optimizers[0], seed)
        step(adjusted, optimizers[1], seed)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), adjusted.parameters(), strict=True))
    assert optimizers[0].state_dict().keys() == optimizers[1].state_dict().keys()


def test_only_what_the_optimizer_holds_is_stepped() -> None:
    net = nn.Sequential(SREConv2d(3, 4, 5, padding=2), SREConv2d(4, 2, 5, padding=2))
    frozen = net[0].weight.detach().clone()
    optimizer = torch.optim.Adam(net[1].parameters())
    balance_steps(optimizer, net)
    step(net, optimizer, 0)
    assert torch.equal(net[0].weight, frozen)


def test_training_resumes_to_the_same_bits() -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        balance_steps(optimizer, net)
        return net, optimizer

    whole, optimizer = begin()
    for seed in range(4):
        step(whole, optimizer, seed)
    first, stopped = begin()
    for seed in range(2):
        step(first, stopped, seed)
    second, resumed = begin()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    for seed in range(2, 4):
        step(second, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "layer",
    [
        SREConv1d(64, 64, 9),
        SREConv2d(64, 64, 9),
        SREConv3d(16, 64, 5),
        GMRConv2d(64, 64, 7),
        SREConv2d(64, 64, 9, antialias=True),
    ],
    ids=["1-D", "2-D", "3-D", "GMR", "antialiased"],
)
def test_weights_are_balanced_at_the_same_variance(layer: RingConvNd) -> None:
    drawn = layer.weight.detach().clone()
    balance_weights(layer)
    share = torch.tensor(layer.geometry.weights.sum(axis=1)).float()
    factor = (share.mean() / share).sqrt()
    torch.testing.assert_close(layer.weight.detach(), drawn * factor)
    variance = factor.square() * share  # that each ring adds, over that of a weight
    torch.testing.assert_close(variance, variance.mean().expand_as(variance))
    torch.testing.assert_close(variance.sum(), share.sum())


def test_one_tap_and_other_layers_are_left_alone() -> None:
    net = nn.Sequential(SREConv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Linear(2, 2))
    before = copy.deepcopy(net)
    balance_weights(net)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))


def test_a_weight_of_two_layers_is_balanced_once() -> None:
    alone = SREConv2d(3, 3, 5, padding=2)
    tied = copy.deepcopy(alone)
    pair = nn.Sequential(tied, SREConv2d(3, 3, 5, padding=2))
    pair[1].weight = tied.weight
    balance_weights(alone)
    balance_weights(pair)
    assert torch.equal(alone.weight, tied.weight)
    before = tied.weight.detach().clone()
    optimizer = torch.optim.Adam(pair.parameters(), 1e-2)
    balance_steps(optimizer, pair)
    step(pair, optimizer, 0)
    first = 1e-2 / torch.tensor(tied.geometry.tap_counts)  # Adam's first step is the learning rate
    torch.testing.assert_close((tied.weight.detach() - before).abs(), first.expand_as(before), rtol=1e-3, atol=1e-6)


SPOILED = {
    "parametrized": nn.utils.parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_weight_that_is_computed_is_refused_by_name_and_nothing_is_changed(name: str) -> None:
    net = network()
    SPOILED[name](net[3])  # type: ignore[operator]
    before = net[0].weight.detach().clone()
    for balance in (balance_weights, lambda n: balance_steps(torch.optim.Adam(n.parameters()), n)):
        with pytest.raises(ValueError, match=r"'3', .*SREConv2d, does not hold its weight as a parameter"):
            balance(net)  # type: ignore[operator]
    assert torch.equal(net[0].weight, before)


def test_groups_that_are_added_later_are_balanced() -> None:
    net = nn.Sequential(SREConv2d(3, 4, 5, padding=2), SREConv2d(4, 2, 9, padding=4))
    optimizer = torch.optim.Adam(net[0].parameters(), 1e-2)
    balance_steps(optimizer, net)
    step(net, optimizer, 0)
    optimizer.add_param_group({"params": list(net[1].parameters())})
    before = net[1].weight.detach().clone()
    step(net, optimizer, 1)
    first = 1e-2 / torch.tensor(net[1].geometry.tap_counts)  # Adam's first step is the learning rate
    torch.testing.assert_close((net[1].weight - before).abs(), first.expand_as(before), rtol=1e-3, atol=1e-6)


def test_an_optimizer_without_ring_weights_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match="optimizer holds none of the ring weights"):
        balance_steps(torch.optim.Adam(copy.deepcopy(net).parameters()), net)
    optimizer = torch.optim.Adam(net.parameters())
    balance_steps(optimizer, net)
    optimizer.param_groups[0]["params"] = list(copy.deepcopy(net).parameters())
    with pytest.raises(RuntimeError, match="holds none of the ring weights any more"):
        step(net, optimizer, 0)
    plain = nn.Sequential(nn.Conv2d(3, 2, 3))
    optimizer = torch.optim.Adam(plain.parameters())
    balance_steps(optimizer, plain)  # has nothing to balance, as its documentation says
    step(plain, optimizer, 0)


def test_a_step_that_raised_leaves_nothing_for_the_next() -> None:
    net, other = network(), network()
    other.load_state_dict(net.state_dict())
    optimizers = [torch.optim.Adam(n.parameters(), 1e-2) for n in (net, other)]
    for optimizer, n in zip(optimizers, (net, other), strict=True):
        balance_steps(optimizer, n)

    def fails() -> float:
        raise RuntimeError("of no use")

    with pytest.raises(RuntimeError, match="of no use"):
        optimizers[0].step(fails)
    for optimizer, n in zip(optimizers, (net, other), strict=True):
        step(n, optimizer, 0)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


FSDP = """
import copy, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from sre_triton import SREConv2d, balance_steps, balance_weights
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
nets = [torch.nn.Sequential(SREConv2d(2, 4, 5, padding=2), SREConv2d(4, 2, 9, padding=4))]
nets.append(copy.deepcopy(nets[0]))
fully_shard(nets[1], mesh=init_device_mesh("cpu", (1,)))
for net in nets:
    balance_weights(net)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    balance_steps(optimizer, net)
    for seed in range(3):
        optimizer.zero_grad()
        net(torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
assert all(type(p).__name__ == "DTensor" for p in nets[1].parameters())
for a, b in zip(nets[0].parameters(), nets[1].parameters()):
    torch.testing.assert_close(b.full_tensor(), a)
dist.destroy_process_group()
print("same")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_sharded_weights_are_balanced() -> None:
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", FSDP], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1:] == ["same"], found.stderr  # PyTorch may say something before
