"""Random networks, converted, folded, fused and reported on: the result computes what it should, or the call was
refused and named what it was about."""

from __future__ import annotations

import copy
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sre_triton import convert, equivariance_error, fold, report
from sre_triton.layers import RingConvNd
from tests.conversion.reachability import still_reachable
from tests.fuzz.networks import Drawn, Entries, draw

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-10


def outputs(net: Any, x: Tensor) -> list[Tensor]:
    """Of the network, and of the other ways in; buffers that training moves are put back."""
    before = {key: value.clone() for key, value in net.named_buffers()}
    results = [net(x)]
    for module in net.modules():
        if isinstance(module, Entries):
            results.append(module.features(torch.ones(2, module.channels, 9, 9, dtype=x.dtype)))
    for key, value in net.named_buffers():
        value.copy_(before[key])
    return results


def state(net: nn.Module) -> dict[str, Any]:
    """What a look at it must not change."""
    return {
        "tensors": {k: v.detach().clone() for k, v in (*net.named_parameters(), *net.named_buffers())},
        "modules": [(name, id(m), type(m), m.training) for name, m in net.named_modules()],
        "history": [list(m.history) for m in net.modules() if hasattr(m, "history")],
        "rng": torch.get_rng_state(),
    }


def assert_state(net: nn.Module, before: dict[str, Any]) -> None:
    after = state(net)
    assert after["modules"] == before["modules"]
    assert after["history"] == before["history"]
    assert torch.equal(after["rng"], before["rng"])
    assert after["tensors"].keys() == before["tensors"].keys()
    for key, value in after["tensors"].items():
        assert torch.equal(value, before["tensors"][key]), key


def attempt(drawn: Drawn, net: nn.Module, call: Callable[[], Any]) -> Any:
    """What the call returns, None if it was rightly refused. ``net`` is left as it was."""
    before = state(net)
    try:
        result = call()
    except (ValueError, TypeError) as error:
        names = [name for name, _ in net.named_modules()]
        if not drawn.spoiled:
            raise AssertionError("refused without need") from error
        message = str(error)
        named = re.findall(r"[\w.]+", message)
        if not any(name in named or any(word.startswith(f"{name}.") for word in named) for name in names if name):
            raise AssertionError("refused without a name") from error
        result = None
    assert_state(net, before)
    return result


def assert_close(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    assert len(found) == len(expected), what
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape, what
        error = (a - b).norm() / b.norm().clamp(min=1)
        assert error < TOLERANCE, f"{what}: relative error {error:.2g}"


def without_gradient(net: nn.Module, x: Tensor) -> int:
    """How many parameters that ask for a gradient get none."""
    twin = copy.deepcopy(net)
    loss = twin(x).square().mean()
    if loss.requires_grad:
        loss.backward()
    return sum(p.requires_grad and p.grad is None for p in twin.parameters())


def check(seed: int) -> set[str]:
    """Draws a network and tries everything on it; returns what succeeded."""
    drawn, rng, done = draw(seed), random.Random(seed), set()
    net, x = drawn.net, drawn.x
    expected = outputs(net, x)
    seen = len(drawn.calls)
    drawn.calls.clear()

    # The same function: kernels are constant on rings, and strides stay.
    options: dict[str, Any] = {"kernel_size": rng.choice([None, None, 9]), "strides": "keep"}
    same = attempt(drawn, net, lambda: convert(net, **options))
    if same is not None:
        done.add("convert")
        assert still_reachable(net, same) == []
        drawn.calls.clear()
        assert_close(outputs(same, x), expected, "convert")
        assert len(drawn.calls) == seen, "hooks"
        assert without_gradient(same, x) == without_gradient(net, x), "gradients"
        inplace = convert(copy.deepcopy(net), inplace=True, **options) if not drawn.spoiled else same
        assert_close(outputs(inplace, x), expected, "in place")

    pooled = attempt(drawn, net, lambda: convert(net))
    if pooled is not None:
        assert still_reachable(net, pooled) == []
        assert [y.shape for y in outputs(pooled, x)] == [y.shape for y in expected], "sizes after convert"

    for name, ring in (("own", net), ("converted", pooled), ("same", same)):
        if ring is None:
            continue
        wanted = outputs(ring, x)
        folded = attempt(drawn, ring, lambda ring=ring: fold(ring))
        if folded is not None:
            done.add("fold")
            assert not any(isinstance(m, RingConvNd) for m in folded.modules())
            assert still_reachable(ring, folded) == []
            assert_close(outputs(folded, x), wanted, f"fold {name}")
            assert folded.training == ring.training
        if any(m.training for m in ring.modules()):
            continue
        fused = attempt(drawn, ring, lambda ring=ring: fold(ring, fuse_batchnorm=True))
        if fused is not None:
            assert_close(outputs(fused, x), wanted, f"fuse {name}")
            norms = [sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (ring, fused)]
            done |= {"fuse"} if norms[0] > norms[1] else set()

    for ring in (net, pooled):
        if ring is None:
            continue
        found = attempt(drawn, ring, lambda ring=ring: report(ring, x, group="flips"))
        if found is not None:
            done.add("report")
            assert found.parameters_after == sum(p.numel() for p in ring.parameters())
            twin = copy.deepcopy(ring).eval()
            error = equivariance_error(twin, x, "flips")
            assert abs(found.symmetry.error - error) <= 1e-9 * max(1.0, error)
            assert found.symmetry.symmetric == (not found.symmetry.breaks)
    return done


def check_many(seeds: range) -> dict[str, int]:
    counts: dict[str, int] = {}
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                done = check(seed)
            except Exception as error:
                error.add_note(f"network {seed}") if hasattr(error, "add_note") else None
                raise
        for key in done:
            counts[key] = counts.get(key, 0) + 1
    return counts


@pytest.mark.parametrize("first", range(0, 40, 4))
def test_a_sample_of_networks(first: int) -> None:
    counts = check_many(range(first, first + 4))
    assert counts.keys() >= {"report"}


@pytest.mark.fuzz
@pytest.mark.parametrize("batch", range(100))
def test_two_thousand_networks(batch: int, seed: int) -> None:
    first = 1000 + 2000 * seed + 20 * batch
    counts = check_many(range(first, first + 20))
    # Not everything may be refused.
    assert counts.get("convert", 0) >= 8, counts
    assert counts.get("fold", 0) >= 8, counts
