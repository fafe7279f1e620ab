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
from sre_triton.backends.triton import rules
from sre_triton.planning.cpu_cost import in_lanes

__all__ = ["Estimate", "Gpu", "describe", "estimate", "gpu_of"]


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
        l2_bytes: of the cache that all processors share.
    """

    name: str
    processors: int
    clock: float
    bandwidth: float
    tensor_flop: int
    lanes: int = 128
    packs_bfloat16: bool = True
    l2_bytes: int = 40 * 2**20


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


def gpu_of(arch: str, processors: int, name: str = "") -> Gpu:
    """A GPU that need not be there, to ask what would be planned for it.

    Args:
        arch: "sm_90", "gfx942" or another architecture that the model knows.
        processors: multiprocessors, or compute units.
        name: of the GPU; its measurements are looked up under it.

    Raises:
        ValueError: the model does not know the architecture.
    """
    if arch not in _ARCHS:
        raise ValueError(f"arch must be one of {', '.join(_ARCHS)}, got {arch!r}")
    known = _ARCHS[arch]
    return Gpu(name, processors, known.clock, known.bandwidth, known.tensor_flop, known.lanes, known.packs_bfloat16)


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
        getattr(properties, "L2_cache_size", 0) or Gpu.l2_bytes,
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

# Seconds between kernels on the device.
_GAP = 3e-6

# Seconds of the host: a call of this backend and each kernel that it starts (`python -m bench.host_time`), an operation
# of PyTorch, and a convolution of the vendor's library. The last two are assumed, and low: no plan should rest on them.
_HOST_CALL, _HOST_LAUNCH, _HOST_OPERATION, _HOST_LIBRARY = 7e-6, 6e-6, 5e-6, 8e-6

# Instructions of the weight gradient with ring sums in registers over those of the fused forward pass (static, k = 9).
_GRAD_IN_REGISTERS = 2.0

# Instructions per element of a ring sum: some for addresses, and these for each tap with weight.
_ADDRESS, _PACKED_TAP, _TAP = 6.0, 0.67, 2.15

_TILE_PIXELS, _TILE_CHANNELS = 128, 128


def estimate(call: Call, gpu: Gpu, in_graph: bool = False) -> Estimate | None:
    """What ``call`` costs on ``gpu``; None for what the model does not know: other GPUs, and layers too narrow for
    matrix units (stems, depthwise), for which libraries keep kernels that have little in common.

    Args:
        in_graph: whether the call is captured into a CUDA graph. Else a call takes as long as the device, or the host
            if it is the slower one; a graph's replay costs the host nothing.
    """
    if not gpu.tensor_flop or min(call.in_channels, call.out_channels) // call.spec.groups < 16:
        return None
    costs = (_dense_cost(call, gpu), _triton_cost(call, gpu))
    return Estimate(*(cost.device if in_graph else max(cost) for cost in costs))


class _Cost(NamedTuple):
    """Seconds that a call keeps the device and the host busy."""

    device: float
    host: float


def _dense_cost(call: Call, gpu: Gpu) -> _Cost:
    spec = call.spec
    group_in, group_out = call.in_channels // spec.groups, call.out_channels // spec.groups
    passes = 2 if call.kind == "backward" else 1
    taps = spec.geometry.num_taps
    products = 2 * call.pixels * spec.groups * taps * in_lanes(group_in, 8) * in_lanes(group_out, 32)
    kernel = taps * call.out_channels * group_in * call.dtype.itemsize
    arithmetic = products / (_DENSE_TENSOR * _tensor_flops(call.dtype, gpu))
    traffic = _activation_bytes(call) / (_DENSE_BANDWIDTH * gpu.bandwidth)
    # The kernel is written once by the expansion, or its gradient read once by the adjoint.
    expansion = 2 * kernel / (_DENSE_BANDWIDTH * gpu.bandwidth)
    device = passes * (2 * _GAP + max(arithmetic, traffic) + expansion)
    return _Cost(device, passes * (_HOST_CALL + _HOST_LAUNCH + _HOST_LIBRARY))


def _triton_cost(call: Call, gpu: Gpu) -> _Cost:
    spec, dtype = call.spec, call.dtype
    group_in, group_out = call.in_channels // spec.groups, call.out_channels // spec.groups
    in_registers = rules.may_sum_in_registers(group_out, dtype)
    if call.kind == "backward":
        may_share = rules.may_share_ring_sums(spec.is_unit_stride, spec.groups, group_in, group_out, dtype)
        if in_registers or not may_share:
            transpose, grad = (_triton_cost(call._replace(kind=kind), gpu) for kind in ("transpose", "weight_grad"))
            # One call makes both.
            return _Cost(transpose.device + grad.device, transpose.host + grad.host - _HOST_CALL)
    # Ring sums are formed of `summed` channels at `positions`, and multiplied by the ring weights to `mixed` channels.
    positions, summed, mixed, share = call.pixels, group_in, group_out, 1.0
    if call.kind in ("transpose", "backward"):
        positions, summed, mixed = call.batch * math.prod(call.input_size), group_out, group_in
        share = 1 / math.prod(spec.stride)  # of the taps that one position of the fine side meets
    columns = spec.geometry.kernel_size[-1]
    two_kernels = call.kind == "forward" and rules.takes_two_kernels(spec.groups, group_in, group_out, dtype, columns)
    in_registers = in_registers and call.kind == "weight_grad"
    through_memory = two_kernels or call.kind == "backward" or (call.kind == "weight_grad" and not in_registers)
    blocks = 1 if through_memory or in_registers else math.ceil(mixed / _TILE_CHANNELS)
    rings, passes = spec.geometry.num_rings, 2 if call.kind == "backward" else 1

    elements = positions * spec.groups * in_lanes(summed, 16) * blocks
    per_tap = _PACKED_TAP if _packs(call, gpu) else _TAP
    instructions = elements * (_ADDRESS + per_tap * share * np.count_nonzero(spec.geometry.weights))
    instructions *= _GRAD_IN_REGISTERS if in_registers else 1.0
    issued = _ISSUE * gpu.processors * gpu.lanes * gpu.clock
    products = passes * 2 * positions * spec.groups * rings * in_lanes(summed, 16) * in_lanes(mixed, 16)
    # A chip that is not full is slower by as much.
    programs = math.ceil(positions / _TILE_PIXELS) * blocks * spec.groups
    arithmetic = instructions / issued + products / (_TENSOR * _tensor_flops(dtype, gpu))
    arithmetic /= min(1.0, programs / gpu.processors)
    chunks = 0
    if through_memory:
        sums = (1 + passes) * positions * spec.groups * summed * rings * dtype.itemsize
        arithmetic += sums / (_CACHE * _BANDWIDTH * gpu.bandwidth)
        channels = spec.groups * summed, spec.groups * mixed
        chunks = math.ceil(positions / rules.chunk_pixels(rings, *channels, dtype.itemsize, gpu.l2_bytes))
    traffic = passes * _activation_bytes(call) / (_BANDWIDTH * gpu.bandwidth)
    ours, theirs = _starts(call, two_kernels, in_registers, chunks)
    device = (ours + theirs) * _GAP + max(arithmetic, traffic)
    return _Cost(device, _HOST_CALL + ours * _HOST_LAUNCH + theirs * _HOST_OPERATION)


def _starts(call: Call, two_kernels: bool, in_registers: bool, chunks: int) -> tuple[int, int]:
    """Launches of our kernels, and PyTorch's operations, of a call that is one set of ring sums."""
    if two_kernels:  # the ring writer and a product, after a copy of the weights
        return chunks, chunks + 1
    if call.kind == "weight_grad":  # the splits are added last
        return (2, 0) if in_registers else (2 * chunks + 1, 0)
    if call.kind == "backward":
        return 2 * chunks + 1, chunks + 1
    return (math.prod(call.spec.stride) if call.kind == "transpose" else 1), 1


def _packs(call: Call, gpu: Gpu) -> bool:
    hard = bool(np.isin(call.spec.geometry.weights, (0.0, 1.0)).all())
    return call.dtype == torch.bfloat16 and hard and gpu.packs_bfloat16


def _activation_bytes(call: Call) -> float:
    elements = call.batch * call.in_channels * math.prod(call.input_size) + call.pixels * call.out_channels
    return elements * call.dtype.itemsize


def _tensor_flops(dtype: torch.dtype, gpu: Gpu) -> float:
    """Peak of the matrix units. float32 is taken for TF32; without it both backends slow down, dense the more."""
    return gpu.processors * gpu.clock * gpu.tensor_flop * (1 if dtype.itemsize == 2 else 0.5)
