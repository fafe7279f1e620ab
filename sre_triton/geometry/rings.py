"""Ring geometry: which taps of a kernel belong to which ring, and by what share.

A ring kernel of size ``k`` has one weight per *ring* instead of one per *tap*. The geometry is the
matrix ``M[ring, tap]`` that spreads the ring weights over the taps of the dense kernel::

    dense[o, i, tap] = sum_ring weight[o, i, ring] * M[ring, tap]

*Hard* rings (the default) give every tap to exactly one ring, so the columns of ``M`` are one-hot
(or zero, where a corner tap lies outside the last ring). *Anti-aliased* rings give every tap the
share of its pixel that the ring covers. Nothing here knows PyTorch.

The ring edges are those of the reference packages SRE_Conv 1.0.2 and GMR_Conv 1.0.3.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RingGeometry", "default_num_rings", "ring_geometry"]

FloatArray = npt.NDArray[np.float64]

# Covered shares are multiples of 2**-24: exact in float32 as in float64, so that their differences
# and sums are exact too (a tap never weighs more than 1) and tables are the same on every machine.
_SHARE_UNIT = 2.0**-24

# Far above any kernel in use. What is larger is a mistake, and would take all memory before anything refused it.
_MOST_TAPS = 2**22
_MOST_TABLE_ENTRIES = 2**27


def default_num_rings(kernel_size: int, circular: bool = True, ndim: int = 2) -> int:
    """Number of rings that the reference packages give a kernel of this size.

    ``k // 2 + 1`` for circular kernels, one more for non-circular ones. In 1-D (where the reference's
    layers cannot be constructed) and for a single tap there are only ``k // 2 + 1`` distances to tell
    apart, so one more ring would be empty.
    """
    corners = not circular and ndim > 1 and kernel_size > 1
    return kernel_size // 2 + (2 if corners else 1)


@dataclass(frozen=True)
class RingGeometry:
    """The rings of one kernel shape. Immutable, hashable, compared by its arguments.

    Args:
        kernel_size: one odd number of pixels per spatial dimension, all equal, e.g. ``(9, 9)``.
        num_rings: how many rings the radius is divided into.
        circular: rings end at radius ``k // 2 + 0.5`` pixels and taps beyond carry no weight. If False,
            rings reach the corner and the last ring is the set of corner taps alone.
        antialias: weigh each tap by the share of its pixel that a ring covers.

    Raises:
        TypeError, ValueError: for anything that is not such a geometry; see :func:`ring_geometry`.
    """

    kernel_size: tuple[int, ...]
    num_rings: int
    circular: bool = True
    antialias: bool = False

    def __post_init__(self) -> None:
        # Equal arguments are one geometry, so they are stored as Python's own integers.
        object.__setattr__(self, "kernel_size", _checked_kernel_size(self.kernel_size))
        if not _is_integer(self.num_rings):
            raise TypeError(f"num_rings must be an int, got {self.num_rings!r}")
        object.__setattr__(self, "num_rings", operator.index(self.num_rings))
        for name in ("circular", "antialias"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.num_rings < 1:
            raise ValueError(f"num_rings must be at least 1, got {self.num_rings}")
        if self.antialias and not self.circular:
            raise ValueError(
                "antialias=True needs circular=True: with circular=False the last ring is the set of "
                "corner taps and has no area that could cover a pixel"
            )
        self._check_independent_rings()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # geometries are keys of caches that every call looks into
        return hash((self.kernel_size, self.num_rings, self.circular, self.antialias))

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies are made by their arguments: NumPy forgets in pickling that a table is read-only.
        return ring_geometry, (self.kernel_size, self.num_rings, self.circular, self.antialias)

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions, 1 to 3."""
        return len(self.kernel_size)

    @property
    def num_taps(self) -> int:
        """Taps of the dense kernel, ``k ** ndim``, whether they carry weight or not."""
        return math.prod(self.kernel_size)

    @cached_property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """Position of every tap relative to the centre, in the row-major order of the dense kernel."""
        return tuple(itertools.product(*(range(-(k // 2), k // 2 + 1) for k in self.kernel_size)))

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """Radii, in pixels, at which rings begin and end.

        Ring ``i`` holds the distances ``edges[i] <= d < edges[i + 1]``. Circular geometries have
        ``num_rings + 1`` edges. Non-circular ones have ``num_rings``: their last ring is ``d ==
        edges[-1]``.
        """
        radius = self.kernel_size[0] // 2
        if self.circular:
            return tuple(np.linspace(0.0, radius + 0.5, self.num_rings + 1).tolist())
        return tuple(np.linspace(0.0, math.sqrt(self.ndim * radius**2), self.num_rings).tolist())

    @cached_property
    def weights(self) -> FloatArray:
        """``M[ring, tap]``, float64, shape ``(num_rings, num_taps)``, read-only."""
        table = self._covered_shares() if self.antialias else self._one_hot()
        table.setflags(write=False)
        return table

    @property
    def tap_counts(self) -> tuple[int, ...]:
        """Number of taps that each ring touches."""
        return tuple(int(n) for n in np.count_nonzero(self.weights, axis=1))

    def _one_hot(self) -> FloatArray:
        distance = np.sqrt((np.array(self.offsets, dtype=np.int64) ** 2).sum(axis=1))
        edges = np.array(self.edges)
        rings = [(distance >= lo) & (distance < hi) for lo, hi in itertools.pairwise(edges)]
        if not self.circular:
            rings.append(distance == edges[-1])
        return np.array(rings, dtype=np.float64)

    def _covered_shares(self) -> FloatArray:
        if self.num_taps == 1:
            # The pixel is the whole kernel: a share of pi/4 would only rescale its one weight.
            return np.ones((1, 1))
        # Taps that a symmetry of the square or cube exchanges share one computation, so that their
        # weights are equal to the last bit.
        orbits = [tuple(sorted(map(abs, offset))) for offset in self.offsets]
        discs = {orbit: [_share_in_ball(orbit, edge) for edge in self.edges] for orbit in set(orbits)}
        return np.diff(np.array([discs[orbit] for orbit in orbits]), axis=1).T.copy()

    def _check_independent_rings(self) -> None:
        advice = (
            f"use fewer rings (the default for kernel_size={self.kernel_size[0]} is "
            f"{default_num_rings(self.kernel_size[0], self.circular, self.ndim)}) or a larger kernel"
        )
        label = (
            f"num_rings={self.num_rings} with kernel_size={self.kernel_size}, "
            f"circular={self.circular}, antialias={self.antialias}"
        )
        if self.num_taps < self.num_rings:
            raise ValueError(f"{label}: more rings than taps; {advice}")
        if self.num_taps * self.num_rings > _MOST_TABLE_ENTRIES:
            raise ValueError(
                f"{label}: rings times taps must be at most {_MOST_TABLE_ENTRIES}, got {self.num_taps * self.num_rings}"
            )
        empty = [ring for ring, count in enumerate(self.tap_counts) if count == 0]
        if empty:
            raise ValueError(f"{label}: ring(s) {empty} hold no tap; {advice}")
        # Disjoint non-empty rings are always independent; only fractions can fail here.
        if self.antialias and np.linalg.matrix_rank(self.weights) < self.num_rings:
            raise ValueError(f"{label}: the rings' kernels are linearly dependent; {advice}")


def ring_geometry(
    kernel_size: tuple[int, ...],
    num_rings: int | None = None,
    circular: bool = True,
    antialias: bool = False,
) -> RingGeometry:
    """The one shared :class:`RingGeometry` for these arguments.

    Args:
        kernel_size: one odd number of pixels per spatial dimension (1 to 3 of them), all equal.
        num_rings: number of rings; None takes ``kernel_size // 2 + 1``, one more if not circular.
        circular: True ends the rings at radius ``kernel_size // 2 + 0.5`` pixels; False at the corners.
        antialias: weigh each tap by the share of its pixel that a ring covers; needs ``circular=True``.

    Returns:
        The same object for the same arguments.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the kernel is even or not cubic, a ring would hold no tap, or the rings' kernels
            would be linearly dependent: the message says what to use instead. Or it has more than
            ``2**22`` taps, or more than ``2**27`` taps times rings.

    Examples:
        >>> sre_triton.ring_geometry((5, 5)).tap_counts  # four corners carry no weight
        (1, 8, 12)
        >>> sre_triton.ring_geometry((5, 5), num_rings=9)
        Traceback (most recent call last):
        ValueError: ...
    """
    kernel_size = _checked_kernel_size(kernel_size)
    if num_rings is None:
        num_rings = default_num_rings(kernel_size[0], circular, len(kernel_size))
    elif _is_integer(num_rings):
        num_rings = operator.index(num_rings)
    return _cached_geometry(kernel_size, num_rings, circular, antialias)


# Typed, since True == 1 == 1.0 and a wrong type must not find what a right one left behind.
_cached_geometry = lru_cache(maxsize=1024, typed=True)(RingGeometry)


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked_kernel_size(kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(kernel_size, tuple) or not all(map(_is_integer, kernel_size)):
        raise TypeError(f"kernel_size must be a tuple of ints, one per spatial dimension, got {kernel_size!r}")
    if not 1 <= len(kernel_size) <= 3:
        raise ValueError(f"kernel_size must have 1 to 3 entries, got {kernel_size}")
    if min(kernel_size) < 1:
        raise ValueError(f"kernel_size must be positive, got {kernel_size}")
    if len(set(kernel_size)) > 1:
        raise ValueError(
            f"kernel_size must be the same in every dimension for rings to be round, got {kernel_size}; "
            f"use {(max(kernel_size),) * len(kernel_size)}"
        )
    if kernel_size[0] % 2 == 0:
        raise ValueError(
            f"kernel_size must be odd for rings to have a centre tap, got {kernel_size}; "
            f"use {kernel_size[0] - 1 or 1} or {kernel_size[0] + 1}"
        )
    if math.prod(map(operator.index, kernel_size)) > _MOST_TAPS:
        raise ValueError(f"kernel_size must have at most {_MOST_TAPS} taps, got {kernel_size}")
    return tuple(map(operator.index, kernel_size))


def _share_in_ball(centre: tuple[int, ...], radius: float) -> float:
    """Share of the unit pixel around ``centre`` inside the ball of ``radius`` around the origin."""
    lower = tuple(c - 0.5 for c in centre)
    upper = tuple(c + 0.5 for c in centre)
    measure = (_interval_in_ball, _rectangle_in_disc, _box_in_ball)[len(centre) - 1]
    share = measure(lower, upper, radius)
    return min(max(round(share / _SHARE_UNIT), 0) * _SHARE_UNIT, 1.0)


def _interval_in_ball(lower: tuple[float, ...], upper: tuple[float, ...], radius: float) -> float:
    return min(upper[0], radius) - max(lower[0], -radius)  # negative outside, and then no share


def _rectangle_in_disc(lower: tuple[float, ...], upper: tuple[float, ...], radius: float) -> float:
    (x0, y0), (x1, y1) = lower, upper
    return (
        _corner_area(x1, y1, radius)
        - _corner_area(x0, y1, radius)
        - _corner_area(x1, y0, radius)
        + _corner_area(x0, y0, radius)
    )


def _corner_area(x: float, y: float, radius: float) -> float:
    """Area of the disc within ``[0, x] x [0, y]``, odd in x and y so that differences give rectangles."""
    sign = math.copysign(1.0, x) * math.copysign(1.0, y)
    x, y = min(abs(x), radius), min(abs(y), radius)
    if x * x + y * y <= radius * radius:
        return sign * x * y

    def below_arc(u: float) -> float:  # antiderivative of sqrt(radius^2 - u^2)
        return 0.5 * (u * math.sqrt(max(radius * radius - u * u, 0.0)) + radius**2 * math.asin(u / radius))

    bend = math.sqrt(radius * radius - y * y)  # left of it the rectangle's top is the lower bound
    return sign * (bend * y + below_arc(x) - below_arc(bend))


def _box_in_ball(lower: tuple[float, ...], upper: tuple[float, ...], radius: float) -> float:
    """Integrates the disc's share of each slice. The slice area is smooth between the heights at
    which the slice's circle passes a corner, an edge or an axis of the rectangle."""
    (*xy0, z0), (*xy1, z1) = lower, upper
    landmarks = {abs(a) for a in (*xy0, *xy1)} | {0.0}
    landmarks |= {math.hypot(x, y) for x in (xy0[0], xy1[0]) for y in (xy0[1], xy1[1])}
    heights = [math.sqrt(radius * radius - d * d) for d in landmarks if d <= radius]
    cuts = sorted({z0, z1, *(s * h for h in heights for s in (-1.0, 1.0) if z0 < s * h < z1)})
    nodes, node_weights = np.polynomial.legendre.leggauss(32)
    total = 0.0
    for a, b in itertools.pairwise(cuts):
        # z = a + (b - a) sin^2(t) flattens the square-root behaviour at both ends of a piece.
        t = (nodes + 1.0) * (math.pi / 4)
        z = a + (b - a) * np.sin(t) ** 2
        dz = (b - a) * np.sin(2 * t) * node_weights * (math.pi / 4)
        radii = np.sqrt(np.maximum(radius * radius - z * z, 0.0))
        areas = [_rectangle_in_disc(tuple(xy0), tuple(xy1), float(r)) if r > 0 else 0.0 for r in radii]
        total += float(np.dot(areas, dz))
    return total
