"""Measured speeds: tables of ``python -m bench.gpu``, one per GPU, that the planner believes before its model.

A table is the file ``gpu-<name>.json`` that the benchmark writes, put into the folder ``gpu_tables`` of this
package. What counts are its ``dtype`` (bfloat16 if it says nothing) and its ``rows``, of which each holds
``kernel_size``, ``channels``, ``size``, ``batch``, ``pass`` (forward, grad_x, grad_w, step), ``ms``, ``dense_ms``
and ``speedup_vs_dense`` (null where the result was wrong).
"""

from __future__ import annotations

import json
import math
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sre_triton.backends.base import Call
from sre_triton.cache import gpu_file_name
from sre_triton.geometry.rings import default_num_rings

__all__ = ["FOLDER", "Measured", "load", "lookup"]

FOLDER = Path(__file__).with_name("gpu_tables")

_PASSES = {"forward": "forward", "transpose": "grad_x", "weight_grad": "grad_w"}


class Measured(NamedTuple):
    """How much faster than dense the Triton backend was on one layer; 0 if its result was wrong."""

    pass_name: str  # "forward", "grad_x", "grad_w" or "backward"
    kernel_size: int
    channels: int
    size: int
    batch: int
    speedup: float


class Table(NamedTuple):
    """Everything that was measured on one GPU."""

    dtype: str
    rows: tuple[Measured, ...]


@lru_cache(maxsize=16)
def load(gpu: str, folder: Path = FOLDER) -> Table | None:
    """The table of a GPU; None if there is none, or, with a warning, if it cannot be read."""
    path = folder / gpu_file_name(gpu)
    try:
        content = json.loads(path.read_text())
        return Table(content.get("dtype", "bfloat16"), tuple(_rows(content["rows"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is not a table of bench.gpu and is ignored: {error!r}", RuntimeWarning, stacklevel=2)
        return None


def _rows(rows: list[dict[str, Any]]) -> list[Measured]:
    layers: dict[tuple[int, int, int, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        layer = (row["kernel_size"], row["channels"], row["size"], row["batch"])
        layers.setdefault(layer, {})[row["pass"]] = row
    found = []
    for layer, passes in layers.items():
        speedups = {name: passes[name]["speedup_vs_dense"] for name in _PASSES.values() if name in passes}
        if {"forward", "step"} <= set(passes):
            forward, step = passes["forward"], passes["step"]
            ours = step["ms"] - forward["ms"]
            if step["speedup_vs_dense"] is None:
                speedups["backward"] = None
            elif ours > 0:  # else the clock was too coarse to tell
                speedups["backward"] = (step["dense_ms"] - forward["dense_ms"]) / ours
        found += [Measured(name, *layer, float(value or 0.0)) for name, value in speedups.items()]
    return found


def lookup(call: Call, table: Table) -> Measured | None:
    """The measured layer nearest to ``call``; None if none is like it: the same kernel and pass in two dimensions
    at stride 1, channels and size within a factor of two, and at least a quarter of the work."""
    spec, geometry = call.spec, call.spec.geometry
    plain = spec.ndim == 2 and spec.is_unit_stride and spec.groups == 1 and max(spec.dilation) == 1
    k = geometry.kernel_size[0]
    default = geometry.circular and not geometry.antialias and geometry.num_rings == default_num_rings(k)
    if not (plain and default) or call.dtype is not getattr(torch, table.dtype, None):
        return None
    wanted = _PASSES.get(call.kind, call.kind)
    size, work = math.sqrt(math.prod(call.input_size)), call.pixels * call.in_channels * call.out_channels

    def distance(row: Measured) -> float:
        apart = (call.in_channels / row.channels, call.out_channels / row.channels, size / row.size)
        return max(abs(math.log2(ratio)) for ratio in apart)

    near = [
        row
        for row in table.rows
        if (row.pass_name, row.kernel_size) == (wanted, k)
        and distance(row) <= 1
        and 4 * work >= row.batch * row.size**2 * row.channels**2
    ]
    return min(near, key=distance, default=None)
