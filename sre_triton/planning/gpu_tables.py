"""Measured speeds of the Triton backend on a GPU, which the planner believes before its model.

They are the ``rows`` of the GPU's file (see :mod:`sre_triton.backends.measurements`), as ``python -m bench.gpu`` writes
them. A row holds ``kernel_size``, ``channels``, ``size``, ``batch``, ``dtype``, ``pass`` (forward, grad_x, grad_w,
step), ``ms``, ``dense_ms`` and ``speedup_vs_dense`` (null where the result was wrong).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sre_triton.backends import measurements
from sre_triton.backends.base import Call
from sre_triton.cache import cache_directory
from sre_triton.geometry.rings import default_num_rings

__all__ = ["Measured", "load", "lookup"]

_PASSES = {"forward": "forward", "transpose": "grad_x", "weight_grad": "grad_w"}


class Measured(NamedTuple):
    """How much faster than dense the Triton backend was on one layer; 0 if its result was wrong."""

    pass_name: str  # "forward", "grad_x", "grad_w" or "backward"
    dtype: str
    kernel_size: int
    channels: int
    size: int
    batch: int
    speedup: float


def load(gpu: str) -> list[Measured]:
    """Everything that was measured on a GPU."""
    return _load(gpu, cache_directory())


@lru_cache(maxsize=16)
def _load(gpu: str, directory: Path) -> list[Measured]:
    """``directory`` is where the measurements of this machine are."""
    return list(measurements.load(gpu, _measured).values())


def _measured(content: dict[str, Any]) -> dict[tuple[Any, ...], Measured]:
    """By pass and layer."""
    layers: dict[tuple[str, int, int, int, int], dict[str, dict[str, Any]]] = {}
    for row in content.get("rows", ()):
        layer = (row["dtype"], row["kernel_size"], row["channels"], row["size"], row["batch"])
        layers.setdefault(layer, {})[row["pass"]] = row
    found: dict[tuple[Any, ...], Measured] = {}
    for layer, passes in layers.items():
        speedups = {name: passes[name]["speedup_vs_dense"] for name in _PASSES.values() if name in passes}
        if {"forward", "step"} <= set(passes):
            forward, step = passes["forward"], passes["step"]
            ours = step["ms"] - forward["ms"]
            if step["speedup_vs_dense"] is None:
                speedups["backward"] = None
            elif ours > 0:  # else the clock was too coarse to tell
                speedups["backward"] = (step["dense_ms"] - forward["dense_ms"]) / ours
        found |= {(name, *layer): Measured(name, *layer, float(value or 0.0)) for name, value in speedups.items()}
    return found


def lookup(call: Call, rows: Iterable[Measured]) -> Measured | None:
    """The measured layer nearest to ``call``; None if none is like it: the same kernel, dtype and pass in two
    dimensions at stride 1, channels and size within a factor of two, and at least a quarter of the work."""
    spec, geometry = call.spec, call.spec.geometry
    plain = spec.ndim == 2 and spec.is_unit_stride and spec.groups == 1 and max(spec.dilation) == 1
    k = geometry.kernel_size[0]
    default = geometry.circular and not geometry.antialias and geometry.num_rings == default_num_rings(k)
    if not (plain and default):
        return None
    wanted = (_PASSES.get(call.kind, call.kind), str(call.dtype).removeprefix("torch."), k)
    size, work = math.sqrt(math.prod(call.input_size)), call.pixels * call.in_channels * call.out_channels

    def distance(row: Measured) -> float:
        apart = (call.in_channels / row.channels, call.out_channels / row.channels, size / row.size)
        return max(abs(math.log2(ratio)) for ratio in apart)

    near = [
        row
        for row in rows
        if (row.pass_name, row.dtype, row.kernel_size) == wanted
        and distance(row) <= 1
        and 4 * work >= row.batch * row.size**2 * row.channels**2
    ]
    return min(near, key=distance, default=None)
