"""The table that the kernels unroll, against the geometry that it comes from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sre_triton.backends.triton import taps as T
from sre_triton.geometry.conv import ConvSpec, conv_spec


def spec(ndim: int, k: int, stride: int = 1, dilation: int = 1, antialias: bool = False) -> ConvSpec:
    rings = k // 2 + 1
    return conv_spec(ndim, k, rings, True, antialias, (stride,) * ndim, (1,) * ndim, (dilation,) * ndim, 1)


def weights(placed: T.Placed) -> dict[tuple[int, int, int], dict[int, float]]:
    """{input position: {ring: weight}} for output position 0."""
    taps, (z0, y0, x0) = placed
    found: dict[tuple[int, int, int], dict[int, float]] = {}
    for (iz, z), (iy, y), (ib, ring), (ig, group) in itertools.product(
        enumerate(taps.planes), enumerate(taps.rows), enumerate(taps.rings), enumerate(taps.columns)
    ):
        for x in group:
            if weight := taps.table[iz][iy][ib][ig]:
                found.setdefault((z0 + z, y0 + y * taps.row_unit, x0 + x), {})[ring] = weight
    return found


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("ndim", "k", "dilation"), [(1, 5, 2), (2, 3, 1), (2, 9, 1), (2, 5, 3), (3, 3, 2), (3, 5, 1)])
def test_convolution_taps_are_the_geometry(ndim: int, k: int, dilation: int, antialias: bool) -> None:
    layer = spec(ndim, k, dilation=dilation, antialias=antialias)
    found = weights(T.conv_taps(layer))
    lead = (0,) * (3 - ndim)
    for tap, column in zip(itertools.product(range(k), repeat=ndim), layer.geometry.weights.T, strict=True):
        position = lead + tuple(dilation * t - 1 for t in tap)
        assert found.pop(position, {}) == {ring: column[ring] for ring in np.flatnonzero(column)}
    assert not found


@pytest.mark.parametrize(
    ("k", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (9, 2, 1), (5, 3, 2), (3, 4, 1), (3, 2, 2)]
)
def test_phases_of_the_adjoint_share_out_the_taps(k: int, stride: int, dilation: int) -> None:
    layer = spec(2, k, stride, dilation)
    forward = weights(T.conv_taps(layer))
    count = 0
    for phase in itertools.product(range(stride), repeat=2):
        for (_, y, x), rings in weights(T.transpose_taps(layer, (0, *phase))).items():
            # Output q = phase of the adjoint reads input (y, x), which fed it at offset q - stride * (y, x).
            assert forward[0, phase[0] - stride * y, phase[1] - stride * x] == rings
            count += 1
    assert count == len(forward)


def test_adjoint_at_unit_stride_shares_the_kernel() -> None:
    layer = spec(2, 9)
    assert T.transpose_taps(layer, (0, 0, 0)).taps is T.conv_taps(layer).taps


def test_columns_of_equal_weight_are_added_first() -> None:
    taps = T.conv_taps(spec(2, 9)).taps
    assert taps.columns == ((4,), (3, 5), (2, 6), (1, 7), (0, 8))
    assert taps.is_hard
    assert not T.conv_taps(spec(2, 5, antialias=True)).taps.is_hard


@pytest.mark.parametrize("taps", [T.conv_taps(spec(2, 5)).taps, T.conv_taps(spec(3, 3)).taps])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rows", [1, 4])
def test_march_feeds_every_tap_once(taps: T.Taps, stride: int, rows: int) -> None:
    for row, ring in itertools.product(range(rows), range(len(taps.rings))):
        steps = [
            (plane, step)
            for plane in range(len(taps.planes))
            for step in range(T.num_steps(taps, stride, rows))
            if T.feeds(taps, plane, step, stride, row, ring)
        ]
        assert [s for s in steps if T.is_first(taps, *s, stride, row, ring)] == steps[:1]
        assert all(T.is_step_used(taps, plane, step, stride, rows) for plane, step in steps)
        expected = sum(any(taps.table[p][y][ring]) for p in range(len(taps.planes)) for y in range(len(taps.rows)))
        assert len(steps) == expected


def test_rows_of_a_dilated_tile_share_their_input() -> None:
    dilated = T.conv_taps(spec(2, 5, dilation=3)).taps
    assert (T.row_step(dilated, 1), T.row_stride(dilated, 1)) == (3, 1)
    assert (T.row_step(dilated, 3), T.row_stride(dilated, 3)) == (1, 1)
    assert (T.row_step(dilated, 2), T.row_stride(dilated, 2)) == (3, 2)


def test_description_tells_taps_apart() -> None:
    """Triton keys compiled kernels on disk by it."""
    layers = [spec(2, 3), spec(2, 5), spec(2, 5, dilation=2), spec(2, 5, antialias=True), spec(3, 3)]
    assert len({str(T.conv_taps(layer).taps) for layer in layers}) == len(layers)
