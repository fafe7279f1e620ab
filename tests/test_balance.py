"""Balanced rings: what is scaled, by how much, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

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
