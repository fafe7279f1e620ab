"""Every choice that the heuristics make is run: each kind of tile, and each way from a call to its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sre_triton.backends.triton import launch, tiles
from sre_triton.backends.triton.launch import fused_forward
from sre_triton.backends.triton.prepared import forward_problem
from sre_triton.backends.triton.tiles import Tile
from tests.backends.triton.cases import Layer, assert_accurate, dense_backward, dense_forward
from tests.backends.triton.test_tiles import ARCHS, problem

F16, F32 = torch.float16, torch.float32
CHANNELS, SIZES = (3, 16, 32, 64, 128, 256, 512), (1, 7, 14, 32, 128)


def chosen(dtype: torch.dtype, narrow: bool) -> list[Tile]:
    """The tiles that the rule chooses on any GPU, over kernel sizes, channels and image sizes."""
    found: dict[Tile, None] = {}
    for arch, k, channels, size in itertools.product(ARCHS, (1, 3, 5, 7, 9, 11), CHANNELS, SIZES):
        groups, c = (channels, 1) if narrow else (1, channels)
        case = problem(k, c, c, (size, size), groups=groups, dtype=dtype, arch=arch)
        if tiles.is_narrow(groups, c, c) == narrow:
            found[tiles.forward_tile(case)] = None
    return list(found)


def traits(tile: Tile) -> set[Any]:
    """What decides how a tile's code unrolls, its width aside."""
    return {(name, getattr(tile, name)) for name in ("rows", "c_out", "c_in", "sums")}


def cover(found: list[Tile]) -> Iterator[Tile]:
    """A few tiles that show every trait of all of them."""
    missing = set().union(*map(traits, found))
    while missing:
        tile = max(found, key=lambda tile: (len(traits(tile) & missing), -tile.pixels * (tile.c_out + tile.c_in)))
        missing -= traits(tile)
        yield tile


def run(tile: Tile, dtype: torch.dtype, narrow: bool, device: torch.device) -> None:
    """One layer that fills no tile, with a loop over channels where the tile allows for one."""
    channels = {"c_in": 20, "c_out": 20, "groups": 20} if narrow else {"c_in": min(tile.c_in + 4, 40), "c_out": 18}
    layer = Layer(kernel_size=3, size=(5, 9), batch=1, dtype=dtype, **channels)
    x, weight, bias, _ = layer.tensors(device)
    y = fused_forward(x, weight, bias, layer.spec, tile=tile)
    assert_accurate(y, *dense_forward(layer, x, weight, bias))


@pytest.mark.parametrize("narrow", [False, True], ids=["product", "narrow"])
@pytest.mark.parametrize("dtype", [F32, F16], ids=["float32", "float16"])
def test_tiles_of_every_trait_compute_the_same(dtype: torch.dtype, narrow: bool, device: torch.device) -> None:
    found = chosen(dtype, narrow)
    few = list(cover(found))
    assert len(few) < len(found)
    for tile in few:
        run(tile, dtype, narrow, device)


@pytest.mark.exhaustive
@pytest.mark.parametrize("narrow", [False, True], ids=["product", "narrow"])
@pytest.mark.parametrize("dtype", [F32, F16], ids=["float32", "float16"])
def test_every_tile_computes_the_same(dtype: torch.dtype, narrow: bool, device: torch.device) -> None:
    for tile in chosen(dtype, narrow):
        run(tile, dtype, narrow, device)


# From a call to its kernels -------------------------------------------------------------------------

SUMS, PRODUCT, FUSED = "ring_sum_kernel", "ring_conv_bwd_kernel_w", "ring_conv_fwd_kernel"
GROUPED, GROUPED_GRAD = "ring_conv_grouped_fwd_kernel", "ring_conv_grouped_bwd_kernel_w"
FUSED_GRAD, ADD = "ring_conv_fused_bwd_kernel_w", "add_splits_kernel"
SMALL = {"size": (3, 4), "batch": 1}
ROUTES = {
    "fused; gradients apart in float32": (Layer(c_in=16, c_out=16, **SMALL), [FUSED], [FUSED, SUMS, PRODUCT, ADD]),
    "one split of a fused gradient": (Layer(c_in=16, c_out=16, dtype=F16, **SMALL), [FUSED], [FUSED, FUSED_GRAD]),
    "splits of a fused gradient": (
        Layer(c_in=16, c_out=16, dtype=F16, size=(17, 20)), [FUSED], [FUSED, FUSED_GRAD, ADD],
    ),
    "gradients share ring sums": (
        Layer(c_in=144, c_out=144, dtype=F16, size=(3, 4), batch=4), [FUSED], [SUMS, PRODUCT, ADD],
    ),
    "one launch per phase of a stride": (
        Layer(c_in=16, c_out=16, stride=2, dtype=F16, **SMALL), [FUSED], [FUSED, FUSED, FUSED, FUSED, FUSED_GRAD],
    ),
    "narrow groups": (Layer(c_in=8, c_out=8, groups=8, **SMALL), [GROUPED], [GROUPED, GROUPED_GRAD, ADD]),
    "wide groups": (Layer(c_in=32, c_out=32, groups=2, dtype=F16, **SMALL), [FUSED], [FUSED, FUSED_GRAD]),
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_routes(route: str, device: torch.device, launched: list[Any]) -> None:
    layer, forward, backward = ROUTES[route]
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # it has routes of its own
    try:
        x, weight, bias, grad_y = layer.tensors(device)
        assert_accurate(launch.forward(x, weight, bias, layer.spec), *dense_forward(layer, x, weight, bias))
        assert names(launched) == forward
        launched.clear()
        results = launch.backward(grad_y, x, weight, layer.spec)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    for result, expected in zip(results, dense_backward(layer, grad_y, x, weight), strict=True):
        assert_accurate(result, *expected)
    found = names(launched)
    if SUMS in backward:  # one pair per chunk of the pixels
        pairs = found.count(SUMS)
        at = backward.index(SUMS)
        backward = backward[:at] + [SUMS, PRODUCT] * pairs + backward[at + 2 :]
    assert found == backward


def names(launched: list[Any]) -> list[str]:
    return [launch.kernel.fn.__name__ for launch in launched]


def test_two_kernels_are_taken_for_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "TwoKernels", lambda *args: lambda *args: "two")
    monkeypatch.setattr(launch, "Convolution", lambda *args: lambda *args: "one")
    taken = {}
    for name, deterministic in (("free", False), ("deterministic", True)):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda value=deterministic: value)
        for k, dtype in itertools.product((5, 7), (F16, F32)):
            layer = Layer(kernel_size=k, c_in=256, c_out=256, dtype=dtype, **SMALL)
            x, weight, bias, _ = layer.tensors(torch.device("cpu"))
            taken[name, k, dtype] = launch.forward(x, weight, bias, layer.spec)
    assert [choice for choice, value in taken.items() if value == "two"] == [("free", 7, F16)]


def test_the_fallback_beyond_every_budget_computes(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_register_budget", lambda problem, tile: 0)
    for clear in (tiles.forward_tile, tiles.writer_tile, tiles.narrow_grad_tile):
        clear.cache_clear()
    for layer in (Layer(c_in=16, c_out=16, **SMALL), Layer(c_in=4, c_out=4, groups=4, **SMALL)):
        x, weight, bias, grad_y = layer.tensors(device)
        assert tiles.forward_tile(forward_problem(x, weight, layer.spec)).columns == 64
        assert_accurate(launch.forward(x, weight, bias, layer.spec), *dense_forward(layer, x, weight, bias))
        expected = dense_backward(layer, grad_y, x, weight)
        for result, values in zip(launch.backward(grad_y, x, weight, layer.spec), expected, strict=True):
            assert_accurate(result, *values)
    for clear in (tiles.forward_tile, tiles.writer_tile, tiles.narrow_grad_tile):
        clear.cache_clear()
