"""Nothing that looks at a network changes it: explain, report, equivariance errors, counting, converting a copy."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sre_triton
from sre_triton import SREConv2d, convert, equivariance_error, explain, fold, report
from sre_triton.equivariance import assert_equivariant, equivariance_errors
from sre_triton.models.profile import count_work
from sre_triton.observing import unchanged


class Restless(nn.Module):
    """Changes all that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SREConv2d(2, 2, 3, padding=1)
        self.plain = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 1))
        self.plain.parametrizations.weight[0]._u.copy_(torch.tensor([1.0, 0.0]))  # far from where power steps end
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.register_buffer("nothing", torch.full((2,), torch.nan))
        self.count = 0
        self.history: list[int] = []
        self.sizes: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.mean().view(1)
        self.nothing.add_(1)
        self.count += 1
        self.history.append(1)
        self.sizes["x"] = x.shape
        self.conv.bias.data.mul_(1.0 + 1e-3)
        self.new = 3
        random.random()
        np.random.rand()
        return self.drop(self.norm(self.plain(self.conv(x))))


def state(net: Any) -> dict[str, Any]:
    tensors = {key: value.clone() for key, value in (*net.named_parameters(), *net.named_buffers())}
    own = {key: copy.copy(value) for key, value in vars(net).items() if not key.startswith("_")}
    return {
        "tensors": tensors,
        "own": own,
        "modes": [m.training for m in net.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        "grads": [p.grad for p in net.parameters()],
        "classes": [type(m) for m in net.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    else:
        assert a == b, where


X = torch.arange(128.0).view(1, 2, 8, 8).sin()
LOOKS: dict[str, Callable[[Any], Any]] = {
    "explain": lambda net: explain(net, X),
    "report": lambda net: report(net, X),
    "equivariance_error": lambda net: equivariance_error(net, X),
    "of a closure": lambda net: equivariance_error(lambda x: net(x), X),
    "of a bound method": lambda net: equivariance_errors(net.forward, X, "flips"),
    "of a partial function": lambda net: equivariance_error(partial(net.forward), X, "flips"),
    "assert_equivariant": lambda net: assert_equivariant(net, X, tolerance=1e9),
    "count_work": lambda net: count_work(net, X),
    "convert": lambda net: convert(net),
    "fold": lambda net: fold(net),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LOOKS)
def test_looking_changes_nothing(name: str, training: bool) -> None:
    net = Restless().train(training)
    net.drop.train()
    before = state(net)
    LOOKS[name](net)
    assert_same(before, state(net))


def test_it_is_restored_after_an_error_too() -> None:
    net = Restless().train()
    before = state(net)

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError(f"of no use {net(x).sum()}")

    with pytest.raises(RuntimeError, match="of no use"):
        equivariance_error(fails, X)
    assert_same(before, state(net))


def test_a_graph_that_was_recorded_before_is_good_still() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), SREConv2d(2, 2, 3)).train()
    loss = net(X).square().mean()
    explain(net, X)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_on_no_device_and_before_shapes_are_known() -> None:
    with unchanged(nn.Linear(2, 2, device="meta"), nn.LazyLinear(2)):
        pass


@pytest.mark.parametrize("weights", ["project", "reset"])
def test_only_a_reset_draws_random_numbers(weights: str) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 2, 3), nn.AvgPool2d(2))
    torch.manual_seed(5)
    convert(net, weights=weights)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn) == (weights == "project")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_a_gpu() -> None:
    net = nn.Sequential(SREConv2d(2, 2, 3), nn.Dropout(0.5)).cuda().train()
    before = torch.cuda.get_rng_state()
    equivariance_error(net, X.cuda())
    explain(net, X.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_recordings_within_recordings() -> None:
    from sre_triton.planning.plan import recording

    layer = SREConv2d(2, 2, 5)
    with torch.no_grad(), recording() as outer:
        layer(X)
        assert "SREConv2d" in explain(layer, X)
        with recording() as inner:
            layer(X)
        layer(X)
    assert len(inner) == 1
    assert len(outer) == 4


def test_a_turn_by_an_unknown_interpolation() -> None:
    with pytest.raises(ValueError, match="interpolation must be 'bilinear' or 'spline', got 'nearest'"):
        sre_triton.equivariance.rotation(30, interpolation="nearest")
