"""What a call costs on a GPU, dense and with the Triton kernels: a roofline of shapes, dtype and device.

A backend takes as long as its memory traffic, or its arithmetic if that is longer. The kernels do arithmetic of two
kinds, instructions that form ring sums and matrix products, which are assumed not to overlap. How many
instructions was read off machine code (``python -m bench.compile_report``); what share of its peak each unit
reaches is assumed, low for these kernels and high for the vendor's. Measured speeds, where there are any, come
before this model: see :mod:`sre_triton.planning.gpu_tables`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from sre_triton.backends.base import Call

__all__ = ["Estimate", "Gpu", "describe", "estimate"]


@dataclass(frozen=True)
class Gpu:
    """A GPU as the model sees it.

    Args:
        name: as the driver reports it.
        processors: multiprocessors, or compute units.
        clock: in Hz.
        bandwidth: of its memory, in bytes per second.
        tensor_flop: of one processor's matrix units in one cycle, at 16 bits; 0 if unknown.
        lanes: instructions for one element that a processor issues in one cycle.
        packs_bfloat16: whether one instruction adds two bfloat16 values.
    """

    name: str
    processors: int
    clock: float
    bandwidth: float
    tensor_flop: int
    lanes: int = 128
    packs_bfloat16: bool = True


class _Arch(NamedTuple):
    """What drivers do not report; clock and bandwidth for those that report neither."""

    tensor_flop: int
    clock: float
    bandwidth: float
    lanes: int = 128
    packs_bfloat16: bool = True


_ARCHS = {
    "sm_80": _Arch(2048, 1.41e9, 1.55e12),
    "sm_86": _Arch(512, 1.7e9, 0.6e12),
    "sm_89": _Arch(512, 2.2e9, 0.7e12),
    "sm_90": _Arch(4096, 1.75e9, 3.3e12),
    "sm_100": _Arch(8192, 1.85e9, 7.7e12),
    "sm_120": _Arch(512, 2.2e9, 0.9e12),
    "gfx90a": _Arch(1024, 1.7e9, 1.6e12, lanes=64, packs_bfloat16=False),
    "gfx942": _Arch(2048, 2.1e9, 5.3e12, lanes=64, packs_bfloat16=False),
}


_UNKNOWN = _Arch(0, 0.0, 0.0)


@lru_cache(maxsize=64)
def describe(device: torch.device) -> Gpu:
    """The GPU behind a ``cuda`` device. An architecture that is not in the table is taken for the first of its
    generation; of an older or newer generation nothing is known."""
    properties: Any = torch.cuda.get_device_properties(device)
    arch_name = getattr(properties, "gcnArchName", "").split(":")[0]
    if not arch_name.startswith("gfx"):
        arch_name = f"sm_{properties.major}{properties.minor}"
    arch = _ARCHS.get(arch_name) or _ARCHS.get(f"sm_{properties.major}0") or _UNKNOWN
    # Both in kHz; memory moves data on both edges of its clock.
    clock = 1e3 * getattr(properties, "clock_rate", 0)
    bus = getattr(properties, "memory_bus_width", 0) / 8
    bandwidth = 2e3 * getattr(properties, "memory_clock_rate", 0) * bus
    return Gpu(
        properties.name,
        properties.multi_processor_count,
        clock or arch.clock,
        bandwidth or arch.bandwidth,
        arch.tensor_flop,
        arch.lanes,
        arch.packs_bfloat16,
    )


class Estimate(NamedTuple):
    """Predicted seconds of a call on each backend."""

    dense: float
    triton: float

    @property
    def backend(self) -> str:
        return "triton" if self.dense >= _MARGIN * self.triton else "dense"


# A model that no GPU has confirmed must promise this much.
_MARGIN = 1.3

# Shares of the peak that are reached. Libraries overlap loads, products and stores by hand; the kernels leave
# that to the compiler, and their ring sums wait on loads.
_DENSE_TENSOR, _DENSE_BANDWIDTH = 0.7, 0.85
_TENSOR, _ISSUE, _BANDWIDTH = 0.3, 0.4, 0.7
_CACHE = 2.0  # bandwidth of the L2 cache over that of the memory

# Seconds from call to start: a library's and a Triton launch.
_START, _TRITON_START = 6e-6, 1.2e-5

# Instructions per element of a ring sum: some for addresses, and these for each tap with weight.
_ADDRESS, _PACKED_TAP, _TAP = 6.0, 0.67, 2.15

_TILE_PIXELS, _TILE_CHANNELS = 128, 128


def estimate(call: Call, gpu: Gpu) -> Estimate | None:
    """What ``call`` costs on ``gpu``; None for what the model does not know: other GPUs, and layers too narrow for
    matrix units (stems, depthwise), for which libraries keep kernels that have little in common."""
    if not gpu.tensor_flop or min(call.in_channels, call.out_channels) // call.spec.groups < 16:
        return None
    return Estimate(_dense_seconds(call, gpu), _triton_seconds(call, gpu))


def _dense_seconds(call: Call, gpu: Gpu) -> float:
    spec = call.spec
    group_in, group_out = call.in_channels // spec.groups, call.out_channels // spec.groups
    passes = 2 if call.kind == "backward" else 1
    taps = spec.geometry.num_taps
    products = 2 * call.pixels * spec.groups * taps * _up_to(group_in, 8) * _up_to(group_out, 32)
    kernel = taps * call.out_channels * group_in * call.dtype.itemsize
    arithmetic = products / (_DENSE_TENSOR * _tensor_flops(call.dtype, gpu))
    traffic = _activation_bytes(call) / (_DENSE_BANDWIDTH * gpu.bandwidth)
    # The kernel is written once by the expansion, or its gradient read once by the adjoint.
    expansion = 2 * kernel / (_DENSE_BANDWIDTH * gpu.bandwidth)
    return passes * (2 * _START + max(arithmetic, traffic) + expansion)


def _triton_seconds(call: Call, gpu: Gpu) -> float:
    spec, dtype = call.spec, call.dtype
    if call.kind == "backward" and not _shares_sums(call):
        return sum(_triton_seconds(call._replace(kind=kind), gpu) for kind in ("transpose", "weight_grad"))
    group_in, group_out = call.in_channels // spec.groups, call.out_channels // spec.groups
    # Ring sums are formed of `summed` channels at `positions`, and multiplied by the ring weights to `mixed` channels.
    positions, summed, mixed, share = call.pixels, group_in, group_out, 1.0
    if call.kind in ("transpose", "backward"):
        positions, summed, mixed = call.batch * math.prod(call.input_size), group_out, group_in
        share = 1 / math.prod(spec.stride)  # of the taps that one position of the fine side meets
    through_memory = call.kind in ("weight_grad", "backward")
    blocks = 1 if through_memory else math.ceil(mixed / _TILE_CHANNELS)
    rings, passes = spec.geometry.num_rings, 2 if call.kind == "backward" else 1

    elements = positions * spec.groups * _up_to(summed, 16) * blocks
    per_tap = _PACKED_TAP if _packs(call, gpu) else _TAP
    instructions = elements * (_ADDRESS + per_tap * share * np.count_nonzero(spec.geometry.weights))
    issued = _ISSUE * gpu.processors * gpu.lanes * gpu.clock
    products = passes * 2 * positions * spec.groups * rings * _up_to(summed, 16) * _up_to(mixed, 16)
    # A chip that is not full is slower by as much.
    programs = math.ceil(positions / _TILE_PIXELS) * blocks * spec.groups
    arithmetic = instructions / issued + products / (_TENSOR * _tensor_flops(dtype, gpu))
    arithmetic /= min(1.0, programs / gpu.processors)
    if through_memory:
        sums = (1 + passes) * positions * spec.groups * summed * rings * dtype.itemsize
        arithmetic += sums / (_CACHE * _BANDWIDTH * gpu.bandwidth)
    traffic = passes * _activation_bytes(call) / (_BANDWIDTH * gpu.bandwidth)
    launches = math.prod(spec.stride) if call.kind == "transpose" else 1
    return (launches + 1) * _TRITON_START + max(arithmetic, traffic)


def _shares_sums(call: Call) -> bool:
    """Whether one set of ring sums serves both gradients."""
    wide = 2 * call.in_channels >= call.out_channels
    return call.spec.is_unit_stride and call.spec.groups == 1 and wide and call.dtype != torch.float32


def _packs(call: Call, gpu: Gpu) -> bool:
    hard = bool(np.isin(call.spec.geometry.weights, (0.0, 1.0)).all())
    return call.dtype == torch.bfloat16 and hard and gpu.packs_bfloat16


def _activation_bytes(call: Call) -> float:
    elements = call.batch * call.in_channels * math.prod(call.input_size) + call.pixels * call.out_channels
    return elements * call.dtype.itemsize


def _tensor_flops(dtype: torch.dtype, gpu: Gpu) -> float:
    """Peak of the matrix units. float32 is taken for TF32; without it both backends slow down, dense the more."""
    return gpu.processors * gpu.clock * gpu.tensor_flop * (1 if dtype.itemsize == 2 else 0.5)


def _up_to(channels: int, multiple: int) -> int:
    """Channels that are paid for."""
    return -(-channels // multiple) * multiple
