"""Ring weights to a dense kernel and back: types, and constants that outlive the call that made them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sre_triton
from sre_triton.backends import expansion
from sre_triton.geometry.rings import RingGeometry, ring_geometry
from tests.oracle import BACKENDS

HALF, SHORT, SINGLE = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "to"), [(HALF, HALF), (HALF, SINGLE), (SINGLE, HALF), (SHORT, SINGLE), (SINGLE, SHORT), (HALF, SHORT)]
)
@pytest.mark.parametrize(("convert", "shape"), [(expansion.expand, (8, 8, 4)), (expansion.collapse, (8, 8, 7, 7))])
def test_sums_are_rounded_once(
    convert: Callable[[Tensor, RingGeometry, torch.dtype], Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    to: torch.dtype,
) -> None:
    geometry = ring_geometry((7, 7), antialias=True)
    x = torch.randn(shape, dtype=dtype)
    exact = convert(x.double(), geometry, torch.float64)
    y = convert(x, geometry, to)
    assert y.dtype == to
    error, once = ((result.double() - exact).square().mean().sqrt() for result in (y, exact.to(to)))
    assert error <= 1.05 * once + 1e-6  # float32's own share


@pytest.mark.parametrize("backend", BACKENDS)
def test_constants_made_in_inference_mode_serve_training(backend: str) -> None:
    layer, x = sre_triton.SREConv2d(4, 4, 7, antialias=True), torch.randn(2, 4, 9, 9)
    expansion._table.cache_clear()
    with sre_triton.backend(backend):
        with torch.inference_mode():
            y = layer(x)
        (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
        grad.square().sum().backward()
        assert torch.equal(layer(x), y)
    assert layer.weight.grad.isfinite().all()
