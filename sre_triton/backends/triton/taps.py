"""The taps of a ring kernel in the form that the Triton kernels unroll.

A kernel walks over the *planes*, *rows* and *columns* of input that an output row needs. All of it is
known at compile time, so it is handed over as one constant object, :class:`Taps`, and read through the
``constexpr`` functions at the end of this file. 1-D and 2-D kernels have one plane, 1-D ones one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import triton

from sre_triton.geometry.conv import ConvSpec

__all__ = ["Placed", "Taps", "conv_taps", "tap_table", "transpose_taps"]

NestedTable = list[list[list[list[float]]]]
Table = tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]


@dataclass(frozen=True, eq=False)
class Taps:
    """Where a kernel looks and how much of what it sees goes to which ring.

    Output position ``o`` of a dimension reads input position ``stride * o + origin + offset``, where the
    strides and origins belong to the launch and the offsets stand here.

    Args:
        planes: input offsets along depth, ascending from 0.
        rows: input offsets along the height in units of ``row_unit``, ascending from 0.
        columns: input offsets along the width, grouped: columns of one group have equal weights and
            are added once, e.g. ``((2,), (1, 3), (0, 4))``.
        rings: the ring weights that these taps use, ascending.
        table: weight of a tap, ``table[plane][row][ring][column group]``.
        row_unit: the dilation along the height (1 for a single row).

    Compared by identity: there is one object per content, so that a convolution and its adjoint share
    their kernels.
    """

    planes: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    rings: tuple[int, ...]
    table: Table = field(repr=False)
    row_unit: int = 1

    @property
    def is_hard(self) -> bool:
        """Every weight is 0 or 1: sums need no multiplication."""
        return all(w in (0.0, 1.0) for plane in self.table for row in plane for ring in row for w in ring)

    @property
    def num_columns(self) -> int:
        return sum(map(len, self.columns))

    def __repr__(self) -> str:
        # Triton keys its disk cache by this string: it must hold everything that a kernel reads.
        return f"Taps({self.planes},{self.rows},{self.columns},{self.rings},{self.table},{self.row_unit})"


class Placed(NamedTuple):
    """Taps, and the input position (z, y, x) of the first of them for output position 0."""

    taps: Taps
    origin: tuple[int, int, int]


def tap_table(spec: ConvSpec) -> NestedTable:
    """``M`` as nested lists ``[z][y][x][ring]``, with missing leading dimensions of size one."""
    k = spec.geometry.kernel_size
    sizes = (1,) * (3 - spec.ndim) + k
    return spec.geometry.weights.T.reshape(*sizes, spec.geometry.num_rings).tolist()


@lru_cache(maxsize=256)
def conv_taps(spec: ConvSpec) -> Placed:
    """Taps of a convolution."""
    padding = (0,) * (3 - spec.ndim) + spec.padding
    axes = [[(i * d - p, i) for i in range(k)] for (k, d), p in zip(_sizes(spec), padding, strict=True)]
    return _place(tap_table(spec), axes)


@lru_cache(maxsize=1024)
def transpose_taps(spec: ConvSpec, phase: tuple[int, int, int]) -> Placed:
    """Taps of the adjoint for the outputs of one phase.

    Outputs ``q = stride * m + phase`` of a transposed convolution read the inputs
    ``m + (phase + padding - dilation * tap) / stride`` for the taps where that is a whole number, so each
    phase is a convolution of stride 1 with its own share of the taps.
    """
    lead = 3 - spec.ndim
    stride, padding = (1,) * lead + spec.stride, (0,) * lead + spec.padding
    axes = []
    for (k, d), s, p, f in zip(_sizes(spec), stride, padding, phase, strict=True):
        hits = ((divmod(f + p - d * i, s), i) for i in range(k))
        axes.append(sorted((offset, i) for (offset, rest), i in hits if rest == 0))
    return _place(tap_table(spec), axes)


def _sizes(spec: ConvSpec) -> list[tuple[int, int]]:
    """``(kernel size, dilation)`` for depth, height and width."""
    return [(1, 1)] * (3 - spec.ndim) + list(zip(spec.geometry.kernel_size, spec.dilation, strict=True))


def _place(table: NestedTable, axes: list[list[tuple[int, int]]]) -> Placed:
    """Keep the listed ``(offset, index)`` of each axis, without empty planes, rows, columns and rings."""

    def weights(z: int, y: int, x: int) -> list[float]:
        return table[z][y][x]

    zs, ys, xs = axes
    zs = [z for z in zs if any(any(weights(z[1], y[1], x[1])) for y in ys for x in xs)]
    ys = [y for y in ys if any(any(weights(z[1], y[1], x[1])) for z in zs for x in xs)]
    xs = [x for x in xs if any(any(weights(z[1], y[1], x[1])) for z in zs for y in ys)]
    rings = [
        ring
        for ring in range(len(table[0][0][0]))
        if any(weights(z, y, x)[ring] for _, z in zs for _, y in ys for _, x in xs)
    ]
    z0, y0, x0 = origin = tuple(axis[0][0] if axis else 0 for axis in (zs, ys, xs))
    groups: dict[tuple[float, ...], list[tuple[int, int]]] = {}
    for offset, x in xs:
        profile = tuple(weights(z, y, x)[ring] for _, z in zs for _, y in ys for ring in rings)
        groups.setdefault(profile, []).append((offset - x0, x))
    # The narrowest group first: rings grow outwards, so sums over neighbouring groups are shared.
    ordered = sorted(groups.values(), key=lambda group: group[-1][0] - group[0][0])
    unit = math.gcd(*(offset - y0 for offset, _ in ys)) or 1
    taps = _shared(
        tuple(offset - z0 for offset, _ in zs),
        tuple((offset - y0) // unit for offset, _ in ys),
        tuple(tuple(offset for offset, _ in group) for group in ordered),
        tuple(rings),
        tuple(
            tuple(tuple(tuple(weights(z, y, group[0][1])[b] for group in ordered) for b in rings) for _, y in ys)
            for _, z in zs
        ),
        unit,
    )
    return Placed(taps, origin)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def _shared(*fields: Any) -> Taps:
    return Taps(*fields)


# What the kernels ask at compile time -----------------------------------------------------------------
#
# The R output rows of a tile are `row_step` apart, so that input rows that serve one of them serve the others
# too, whatever the dilation. In units of `row_unit` the tile is then one of dilation 1 and stride `row_stride`.


@triton.constexpr_function
def row_step(taps, stride):
    return taps.row_unit // math.gcd(stride, taps.row_unit)


@triton.constexpr_function
def row_stride(taps, stride):
    return stride // math.gcd(stride, taps.row_unit)


@triton.constexpr_function
def row_unit(taps):
    return taps.row_unit


@triton.constexpr_function
def num_planes(taps):
    return len(taps.planes)


@triton.constexpr_function
def num_rings(taps):
    return len(taps.rings)


@triton.constexpr_function
def num_groups(taps):
    return len(taps.columns)


@triton.constexpr_function
def group_size(taps, group):
    return len(taps.columns[group])


@triton.constexpr_function
def plane_offset(taps, plane):
    return taps.planes[plane]


@triton.constexpr_function
def column_offset(taps, group, member):
    return taps.columns[group][member]


@triton.constexpr_function
def ring_index(taps, ring):
    return taps.rings[ring]


@triton.constexpr_function
def rings_at(taps, first):
    """Rings that one matrix product takes from ``first`` on: two, or the odd last one."""
    return min(2, len(taps.rings) - first)


@triton.constexpr_function
def num_steps(taps, stride, rows):
    """Input rows from the first to the last that ``rows`` output rows read."""
    return taps.rows[-1] + stride * (rows - 1) + 1 if taps.rows else 0


@triton.constexpr_function
def feeds(taps, plane, step, stride, row, ring):
    """Whether the input row of this step carries weight in a ring of output row ``row``."""
    offset = step - stride * row
    return offset in taps.rows and any(taps.table[plane][taps.rows.index(offset)][ring])


@triton.constexpr_function
def is_step_used(taps, plane, step, stride, rows):
    return any(feeds(taps, plane, step, stride, r, ring) for r in range(rows) for ring in range(len(taps.rings)))


@triton.constexpr_function
def is_first(taps, plane, step, stride, row, ring):
    """Whether no earlier input row has fed this ring of output row ``row``."""
    lag = step - stride * row
    earlier = [(p, s) for p in range(plane) for s in range(taps.rows[-1] + 1)]
    earlier += [(plane, s) for s in range(lag)]
    return not any(feeds(taps, p, s, 1, 0, ring) for p, s in earlier)


@triton.constexpr_function
def tap_weight(taps, plane, step, stride, row, ring, group):
    offset = step - stride * row
    return taps.table[plane][taps.rows.index(offset)][ring][group]


@triton.constexpr_function
def is_first_group(taps, plane, step, stride, row, ring, group):
    """Whether this is the first column group that carries weight in the ring on this row."""
    weights = taps.table[plane][taps.rows.index(step - stride * row)][ring]
    return not any(weights[:group])


@triton.constexpr_function
def needs_group(taps, plane, step, stride, rows, group):
    """Whether any of the output rows gives weight to this column group of the input row."""
    for row in range(rows):
        offset = step - stride * row
        if offset in taps.rows and any(ring[group] for ring in taps.table[plane][taps.rows.index(offset)]):
            return True
    return False
