"""Centred pooling: where its windows lie, that it commutes with the symmetries of the grid, and what traces it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sre_triton
from sre_triton import pooling
from sre_triton.equivariance import grid_symmetries

POOLS = {
    name: (getattr(pooling, f"Centered{name}"), getattr(nn, name))
    for name in (f"{kind}Pool{n}d" for kind in ("Avg", "Max") for n in (1, 2, 3))
}


def symmetric_windows(n: int, stride: int, reach: int) -> list[range]:
    """Pixels under each of ``ceil((n - reach) / stride)`` windows, stepped off from the centre of the line."""
    count = -(-(n - reach) // stride)
    centres = [(n - 1) / 2 + (i - (count - 1) / 2) * stride for i in range(count)]
    # The smallest window that is at least a stride wide, leaves out no pixel and has its edges between pixels.
    least = max(stride, n - (count - 1) * stride)
    width = next(w for w in (least, least + 1) if ((n - 1) + (count - 1) * stride + (w - 1)) % 2 == 0)
    starts = [round(c - (width - 1) / 2) for c in centres]
    return [range(max(s, 0), min(s + width, n)) for s in starts]


@pytest.mark.parametrize("reach", range(7))
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_windows_are_those_stepped_off_from_the_centre(kind: str, stride: int, reach: int) -> None:
    reduce = {"avg": torch.mean, "max": torch.amax}[kind]
    pool = getattr(pooling, f"centered_{kind}_pool")
    for n in range(reach + 1, reach + 20):
        x = torch.randn(1, 2, n, dtype=torch.float64)
        windows = symmetric_windows(n, stride, reach)
        assert sorted({i for window in windows for i in window}) == list(range(n))
        expected = torch.stack([reduce(x[..., list(window)], -1) for window in windows], -1)
        torch.testing.assert_close(pool(x, stride, reach=reach), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("name", POOLS)
def test_commutes_with_every_symmetry_of_the_grid(name: str, stride: int) -> None:
    layer = POOLS[name][0](stride)
    sizes: Any = range(1, 14) if layer.ndim < 3 else (1, 3, 4, 5, 6, 7)
    for n in sizes:
        x = torch.randn(1, 2, *[n] * layer.ndim, dtype=torch.float64)
        y = layer(x)
        assert y.shape == (1, 2, *[-(-n // stride)] * layer.ndim)
        for symmetry in grid_symmetries(layer.ndim):
            # A maximum is exact; a mean adds up in another order.
            bound = 0 if name.startswith("Max") else 1e-15
            torch.testing.assert_close(layer(symmetry(x)), symmetry(y), rtol=0, atol=bound)


@pytest.mark.parametrize("name", POOLS)
def test_is_the_ordinary_pooling_where_the_stride_divides_the_size(name: str) -> None:
    ours, ordinary = POOLS[name]
    ndim = ours.ndim
    for stride in (2, 3):
        x = torch.randn(2, 3, *[6] * ndim)
        assert torch.equal(ours(stride)(x), ordinary(stride)(x))
        assert torch.equal(ours(stride)(x[0]), ordinary(stride)(x[0]))  # unbatched


def test_the_formula_for_two_dimensions() -> None:
    for h, w in itertools.product((4, 5, 7), (6, 9)):
        x = torch.randn(1, 2, h, w)
        expected = F.avg_pool2d(x, (2 + h % 2, 2 + w % 2), 2, (h % 2, w % 2), count_include_pad=False)
        assert torch.equal(pooling.centered_avg_pool(x), expected)


def test_one_stride_per_dimension() -> None:
    x = torch.randn(1, 2, 7, 9, dtype=torch.float64)
    y = pooling.centered_avg_pool(x, (1, 3))
    assert torch.equal(y, F.avg_pool2d(x, (1, 3)))
    assert repr(pooling.CenteredAvgPool2d((1, 3))) == "CenteredAvgPool2d(stride=(1, 3))"


def test_the_maximum_of_negative_numbers_is_not_the_padding() -> None:
    assert pooling.centered_max_pool(torch.full((1, 1, 5, 5), -3.0)).eq(-3).all()


def test_gradients_and_memory_format() -> None:
    for name, (layer, _) in POOLS.items():
        x = torch.randn(1, 2, *[5] * layer.ndim, dtype=torch.float64, requires_grad=True)
        assert layer()(x).shape[2:] == (3,) * layer.ndim
        assert torch.autograd.gradcheck(layer(), x), name
    x = torch.randn(1, 4, 7, 7).contiguous(memory_format=torch.channels_last)
    assert pooling.centered_avg_pool(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (5, 3, 1), (7, 7, 0)])
@pytest.mark.parametrize("name", ["AvgPool1d", "MaxPool1d"])
def test_reach_gives_the_sizes_of_an_ordinary_pooling(name: str, kernel: int, stride: int, padding: int) -> None:
    ours, ordinary = POOLS[name]
    layer = ours(stride, reach=kernel - 1 - 2 * padding)
    compared = 0
    for n in range(1, 30):
        x = torch.randn(1, 2, n, dtype=torch.float64)
        if n + 2 * padding < kernel:
            with pytest.raises(RuntimeError):
                layer(x)
            continue
        y, plain = layer(x), ordinary(kernel, stride, padding)(x)
        assert y.shape == plain.shape
        torch.testing.assert_close(layer(x.flip(-1)), y.flip(-1), rtol=0, atol=1e-15)
        if padding == 0 and (n - kernel) % stride == 0 and kernel <= stride + 1:
            assert torch.equal(y, plain)  # its windows were centred
            compared += 1
    assert compared or padding or kernel > stride + 1


@pytest.mark.parametrize("reach", [-1, (0, 1, 1)])
def test_a_reach_that_is_none(reach: Any) -> None:
    with pytest.raises(ValueError, match="reach must be a non-negative int or 2 of them, got"):
        pooling.CenteredAvgPool2d(reach=reach)


@pytest.mark.parametrize("stride", [0, -1, (2, 2, 2)])
def test_a_stride_that_is_none(stride: Any) -> None:
    for pool in (pooling.CenteredAvgPool2d, lambda s: pooling.centered_max_pool(torch.zeros(1, 1, 4, 4), s)):
        with pytest.raises(ValueError, match="stride must be a positive int or 2 of them, got"):
            pool(stride)


def test_an_input_without_space() -> None:
    with pytest.raises(ValueError, match="in 1 to 3 dimensions, got 0 spatial dimensions"):
        pooling.centered_avg_pool(torch.zeros(2, 3))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_upsampling_is_symmetric_and_returns_to_the_size_that_was_pooled(ndim: int) -> None:
    for n in (2, 5, 8, 9) if ndim == 3 else range(1, 40):
        x = torch.randn(1, 2, *[n] * ndim, dtype=torch.float64)
        small = pooling.centered_max_pool(x)
        y = pooling.upsample_to(small, x.shape[2:])
        assert y.shape == x.shape
        for symmetry in grid_symmetries(ndim):
            torch.testing.assert_close(
                pooling.upsample_to(symmetry(small), x.shape[2:]), symmetry(y), rtol=0, atol=1e-12
            )


class DownAndUp(nn.Module):
    """What a network does with its maps' sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.average = pooling.CenteredAvgPool2d()
        self.maximum = pooling.CenteredMaxPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        small = self.maximum(self.average(x))
        return pooling.upsample_to(small, x.shape[-2:], ndim=2)


def test_a_traced_graph_runs_where_this_package_is_not(tmp_path: Path) -> None:
    module = DownAndUp()
    graph = torch.fx.symbolic_trace(module)
    for size in ((7, 8), (12, 5), (6, 6)):
        x = torch.randn(1, 2, *size)
        assert torch.equal(graph(x), module(x))
    for node in graph.graph.nodes:
        node.type = None  # torch.fx cannot write down an annotation that is a string
    graph.recompile()
    torch.save(graph, tmp_path / "graph.pt")
    script = (
        "import sys, torch; sys.modules['sre_triton'] = None; graph = torch.load(sys.argv[1], weights_only=False);"
        "print(tuple(graph(torch.randn(1, 2, 11, 14)).shape))"
    )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "graph.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "(1, 2, 11, 14)"


def test_compiles_with_dynamic_shapes() -> None:
    torch._dynamo.reset()
    module = DownAndUp()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((7, 8), (12, 5), (13, 13)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(compiled(x), module(x))


def test_equivariance_error_sees_what_the_ordinary_pooling_loses() -> None:
    for n in (6, 7):
        x = torch.randn(1, 2, n, n)
        assert sre_triton.equivariance_error(pooling.CenteredAvgPool2d(), x) < 1e-6
    assert sre_triton.equivariance_error(nn.AvgPool2d(2), torch.randn(1, 2, 7, 7)) > 0.1
    assert sre_triton.equivariance_error(nn.MaxPool2d(3, 2, 1), torch.randn(1, 2, 6, 6)) > 0.1


@pytest.mark.parametrize("kind", ["Avg", "Max"])
def test_the_input_is_called_as_by_pytorch(kind: str) -> None:
    x = torch.randn(1, 2, 6, 6)
    ours, theirs = getattr(pooling, f"Centered{kind}Pool2d")(2), getattr(nn, f"{kind}Pool2d")(2)
    assert torch.equal(ours(input=x), theirs(input=x))
