"""Independent truths that tests are held against: none of this comes from, or imports, ``sre_triton``."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from scipy import integrate, ndimage

Array = npt.NDArray[np.float64]


# The reference packages -----------------------------------------------------------------------------


@lru_cache
def sre_conv_package() -> ModuleType:
    """The layers of SRE_Conv 1.0.2."""
    return _module_file("SRE_Conv", "sre_conv.py")


@lru_cache
def gmr_conv_package() -> ModuleType:
    """The layers of GMR_Conv 1.0.3."""
    return _module_file("GMR_Conv", "gmr_conv.py")


def _module_file(package: str, file: str) -> ModuleType:
    """One file of a package, without its ``__init__`` (which imports what it does not declare)."""
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not installed"
    assert found.submodule_search_locations is not None
    path = Path(found.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location(f"reference_{package}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Geometry -------------------------------------------------------------------------------------------


def ring_masks(kernel_size: tuple[int, ...], num_rings: int, circular: bool) -> Array:
    """One-hot map (rings, taps) by the reference packages' rule, on SciPy's distance transform."""
    away_from_centre = np.ones(kernel_size)
    away_from_centre[tuple(k // 2 for k in kernel_size)] = 0
    distance = ndimage.distance_transform_edt(away_from_centre).ravel()
    if circular:
        edges = np.linspace(0, kernel_size[0] // 2 + 0.5, num_rings + 1)
        return np.array([(lo <= distance) & (distance < hi) for lo, hi in itertools.pairwise(edges)], dtype=np.float64)
    edges = np.linspace(0, distance.max(), num_rings)
    rings = [(lo <= distance) & (distance < hi) for lo, hi in itertools.pairwise(edges)]
    return np.array([*rings, distance == edges[-1]], dtype=np.float64)


def share_in_ball(centre: Sequence[float], radius: float) -> float:
    """Share of the unit pixel (voxel) around ``centre`` inside a ball around the origin, to 1e-9.

    Adaptive quadrature, one dimension inside another, with breaks where a slice stops being smooth.
    """
    return _measure([(c - 0.5, c + 0.5) for c in centre], radius)


def _measure(sides: Sequence[tuple[float, float]], radius: float) -> float:
    (lo, hi), *rest = sides
    lo, hi = max(lo, -radius), min(hi, radius)
    if lo >= hi:
        return 0.0
    if not rest:
        return hi - lo
    # A slice's circle touches faces, edges and corners of the other sides at these heights.
    landmarks = [math.hypot(*point) for point in itertools.product(*[(0.0, *side) for side in rest])]
    heights = [math.sqrt(radius**2 - d**2) for d in landmarks if d <= radius]
    breaks = sorted({lo, hi, *(s * h for h in heights for s in (-1, 1) if lo < s * h < hi)})

    def slice_measure(x: float) -> float:
        return _measure(rest, math.sqrt(max(radius**2 - x**2, 0.0)))

    return sum(
        integrate.quad(slice_measure, a, b, epsabs=1e-11, epsrel=1e-11)[0] for a, b in itertools.pairwise(breaks)
    )


# Convolution ----------------------------------------------------------------------------------------


def expand(weight: Array, kernel_size: tuple[int, ...], table: Array) -> Array:
    """Dense kernel of ring weights (o, i, rings) for a table of weights per ring and tap."""
    return (weight.astype(np.float64) @ table).reshape(*weight.shape[:2], *kernel_size)


def ring_conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    table: Array,
    *,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Array:
    """The convolution straight from its definition: a loop over taps, in float64."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((p, p) for p in padding)])
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    size = [(n - r - 1) // s + 1 for n, r, s in zip(padded.shape[2:], reach, stride, strict=True)]
    y = np.zeros((len(x), len(weight), *size))
    for tap, mixing in _taps(weight, kernel_size, table):
        seen = padded[(..., *_reached(tap, size, stride, dilation))]
        y += _mix(mixing, seen, groups)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(size))


def ring_conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None,
    table: Array,
    *,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Array:
    """The transposed convolution straight from its definition: every tap scatters the input."""
    size = x.shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    full = [(n - 1) * s + r + 1 + o for n, s, r, o in zip(size, stride, reach, output_padding, strict=True)]
    y = np.zeros((len(x), weight.shape[1] * groups, *full))
    for tap, mixing in _taps(weight, kernel_size, table):
        backwards = mixing.reshape(groups, -1, mixing.shape[1]).transpose(0, 2, 1).reshape(-1, len(mixing) // groups)
        y[(..., *_reached(tap, size, stride, dilation))] += _mix(backwards, x.astype(np.float64), groups)
    y = y[(..., *(slice(p, n - p) for p, n in zip(padding, full, strict=True)))]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(size))


def _taps(weight: Array, kernel_size: tuple[int, ...], table: Array):  # type: ignore[no-untyped-def]
    """Position of every tap and its matrix (o, i) that mixes channels."""
    kernel = expand(weight, kernel_size, table)
    for tap in np.ndindex(*kernel_size):
        yield tap, kernel[(..., *tap)]


def _reached(
    tap: Sequence[int], size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[slice, ...]:
    """Where on the fine grid a tap finds the pixels of the coarse grid."""
    return tuple(
        slice(d * t, d * t + (n - 1) * s + 1, s) for t, n, s, d in zip(tap, size, stride, dilation, strict=True)
    )


def _mix(mixing: Array, x: Array, groups: int) -> Array:
    """Channels of (n, c, ...) mixed by (o, c / groups) within groups."""
    n, c, *space = x.shape
    blocks = mixing.reshape(groups, -1, c // groups)
    return np.einsum("goi,ngip->ngop", blocks, x.reshape(n, groups, c // groups, -1)).reshape(n, -1, *space)
