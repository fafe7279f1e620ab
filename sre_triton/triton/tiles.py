"""Which tile a kernel runs with: a choice from shapes, dtype and device, made without running anything.

Candidates that would spill registers or overflow a memory are struck out, and a count of instructions ranks
the rest (README.md derives both). The choice is a pure function of its arguments, so the first call compiles
one kernel, and every process chooses alike. Measured choices, where there are any, come before this one: see
:mod:`sre_triton.triton.tuning`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton

from sre_triton.triton.taps import Taps, row_step, row_stride

__all__ = [
    "DeviceLimits",
    "GradientPlan",
    "Problem",
    "Tile",
    "candidates",
    "device_limits",
    "expansion_blocks",
    "forward_tile",
    "gradient_plan",
    "is_narrow",
    "limits_of",
    "prefers_two_kernels",
    "reduction_splits",
    "registers",
    "shared_bytes",
    "shares_ring_sums",
    "tensor_memory_columns",
]

# Triton's own matrix product needs 16 rows, columns and channels.
_LEAST_BLOCK = 16


@dataclass(frozen=True)
class Tile:
    """Launch options of a kernel that forms ring sums.

    Args:
        rows, columns: output rows and pixels of each, powers of two.
        c_out: output channels of a program (0 for the ring writer).
        c_in: input channels of one step (0 for the kernels without a matrix product).
        warps: warps of a program.
        sums: where ring sums round. "packed": every addition in the input's dtype, two per instruction;
            "mixed": in the input's dtype within an input row, in float32 across rows; "float32": never
            before the matrix product.
    """

    rows: int
    columns: int
    c_out: int
    c_in: int
    warps: int
    sums: str = "packed"

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class DeviceLimits:
    """What the choice of a tile depends on."""

    name: str
    processors: int
    shared_bytes: int
    l2_bytes: int
    warp_size: int = 32
    registers: int = 255
    has_tensor_memory: bool = False


# For compiling without a device, and for anything that does not say its limits.
_KNOWN = {
    "sm_80": DeviceLimits("sm_80", 108, 163 * 1024, 40 * 2**20),
    "sm_90": DeviceLimits("sm_90", 132, 227 * 1024, 50 * 2**20),
    "sm_100": DeviceLimits("sm_100", 148, 227 * 1024, 126 * 2**20, has_tensor_memory=True),
    "gfx942": DeviceLimits("gfx942", 304, 64 * 1024, 4 * 2**20, warp_size=64, registers=512),
    "interpreter": DeviceLimits("interpreter", 2, 163 * 1024, 2**14),
}


def limits_of(arch: str) -> DeviceLimits:
    """Limits of an architecture by name, for compiling without a device."""
    return _KNOWN[arch]


@lru_cache(maxsize=64)
def device_limits(device: torch.device) -> DeviceLimits:
    """Limits of a device that is present."""
    if device.type == "cpu":
        return _KNOWN["interpreter"]
    properties = torch.get_device_module(device).get_device_properties(device)
    arch = getattr(properties, "gcnArchName", "").split(":")[0]
    if not arch and hasattr(properties, "major"):
        arch = f"sm_{properties.major}0"
    known = _KNOWN.get(arch, _KNOWN["sm_80"])
    return replace(
        known,
        name=properties.name,
        processors=getattr(properties, "multi_processor_count", known.processors),
        shared_bytes=getattr(properties, "shared_memory_per_block_optin", 0) or known.shared_bytes,
        l2_bytes=getattr(properties, "L2_cache_size", 0) or known.l2_bytes,
    )


@dataclass(frozen=True)
class Problem:
    """One launch as the heuristics see it. ``c_in`` and ``c_out`` count channels per group, ``batch`` counts
    images times planes, ``height`` and ``width`` are those of the output."""

    taps: Taps
    stride: tuple[int, int, int]
    dtype: torch.dtype
    groups: int
    c_in: int
    c_out: int
    batch: int
    height: int
    width: int
    device: DeviceLimits

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def rings(self) -> int:
        return len(self.taps.rings)

    def steps(self, rows: int) -> int:
        """Input rows that a tile of this many output rows reads, over all planes."""
        if not self.taps.rows:
            return 0
        return len(self.taps.planes) * (self.taps.rows[-1] + 1 + (rows - 1) * row_stride(self.taps, self.stride[1]))

    def programs(self, tile: Tile) -> int:
        step = row_step(self.taps, self.stride[1])
        bands = triton.cdiv(self.height, tile.rows * step) * step * triton.cdiv(self.width, tile.columns)
        blocks = triton.cdiv(self.groups * self.c_out, tile.c_out) if tile.c_in == 0 else (
            self.groups * triton.cdiv(self.c_out, tile.c_out) if tile.c_out else 1
        )  # fmt: skip
        return self.batch * bands * blocks


# What a tile needs ------------------------------------------------------------------------------------


def registers(problem: Problem, tile: Tile) -> int:
    """Estimated registers of a thread at the peak of a tile.

    The accumulator, the ring sums, the column shifts of one input row, and some 40 for addresses. With one
    block of channels the accumulator is born after the ring sums have moved on.
    """
    threads = tile.warps * problem.device.warp_size
    channels = tile.c_in or tile.c_out
    elements = tile.columns * channels / threads
    row_bytes = 4 if tile.sums == "float32" else problem.itemsize
    sum_bytes = 4 if tile.sums != "packed" else problem.itemsize
    sums = problem.rings * tile.rows * elements * sum_bytes / 4
    row = problem.taps.num_columns * elements * row_bytes / 4
    accumulator = tile.pixels * tile.c_out / threads
    if problem.device.has_tensor_memory and _tensor_cores_are_used(problem, tile):
        accumulator = 0.0
    if tile.c_in == 0:
        return round(accumulator + sums + row + 40)
    if problem.c_in <= tile.c_in:
        return round(max(accumulator, sums + row) + 40)
    return round(accumulator + sums + row + 40)


def shared_bytes(problem: Problem, tile: Tile) -> int:
    """Shared memory of both operands of the product of two rings, or of the output tile if that is larger."""
    operands = 2 * (tile.pixels + tile.c_out) * tile.c_in * problem.itemsize
    return max(operands, tile.pixels * tile.c_out * problem.itemsize)


def tensor_memory_columns(tile: Tile) -> int:
    """Columns of tensor memory (of 512): the float32 accumulator, and the left operand beside it.

    Beyond 512 Triton emits a kernel that traps, without an error.
    """
    return (tile.c_out + tile.c_in) * triton.cdiv(tile.pixels, 128)


def _tensor_cores_are_used(problem: Problem, tile: Tile) -> bool:
    return problem.dtype != torch.float32 and tile.pixels >= 64


def _fits(problem: Problem, tile: Tile) -> bool:
    if tile.pixels * max(tile.c_out, tile.c_in) < tile.warps * problem.device.warp_size:
        return False
    if registers(problem, tile) > _register_budget(problem):
        return False
    if shared_bytes(problem, tile) > problem.device.shared_bytes:
        return False
    return not problem.device.has_tensor_memory or tensor_memory_columns(tile) <= 512


def _register_budget(problem: Problem) -> int:
    # Compilers schedule loads early and use what is left; beyond three quarters they begin to spill.
    return problem.device.registers * 3 // 4


# The choice -------------------------------------------------------------------------------------------


def is_narrow(groups: int, c_in: int, c_out: int) -> bool:
    """Groups too narrow for a matrix product, which would be mostly padding."""
    return groups > 1 and min(c_in, c_out) < _LEAST_BLOCK


def default_sums(dtype: torch.dtype, taps: Taps) -> str:
    """Where ring sums round by default.

    float16 is chosen for its precision, and a ring of large values overflows it: its sums cross rows in
    float32, as they do with fractional weights. bfloat16 sums are packed.
    """
    if dtype == torch.float32 or (dtype == torch.float16 and not taps.is_hard):
        return "float32"
    return "mixed" if dtype == torch.float16 or not taps.is_hard else "packed"


def candidates(problem: Problem) -> list[Tile]:
    """Every tile worth trying for a problem: the search space of tuning and of the choice below."""
    sums = default_sums(problem.dtype, problem.taps)
    rows = [r for r in (8, 4, 2, 1) if r == 1 or r < 2 * problem.height]
    columns = [c for c in (64, 32, 16, 8) if c == 8 or c < 2 * problem.width]
    if is_narrow(problem.groups, problem.c_in, problem.c_out):
        tiles = [
            Tile(r, c, block, 0, warps, sums)
            for r, c, block, warps in itertools.product(rows, columns, _blocks(problem.groups * problem.c_out, 64), (4, 8))
        ]
    else:
        if max(rows) * max(columns) < _LEAST_BLOCK:
            columns = [_LEAST_BLOCK // max(rows)]
        tiles = [
            Tile(r, c, n, k, warps, sums)
            for r, c, n, k, warps in itertools.product(
                rows, columns, _blocks(problem.c_out, 256), _blocks(problem.c_in, 64), (4, 8)
            )
            if _LEAST_BLOCK <= r * c <= 128
        ]
    return [tile for tile in tiles if _fits(problem, tile)]


@lru_cache(maxsize=4096)
def forward_tile(problem: Problem) -> Tile:
    """The tile that the forward kernels run with."""
    return min(candidates(problem) or [_smallest(problem)], key=lambda tile: _cost(problem, tile))


@lru_cache(maxsize=4096)
def writer_tile(problem: Problem) -> Tile:
    """The tile of the ring writer: the rows and columns of a forward tile without a product."""
    sums = default_sums(problem.dtype, problem.taps)
    rows = [r for r in (8, 4, 2, 1) if r == 1 or r < 2 * problem.height]
    columns = [c for c in (64, 32, 16, 8) if c == 8 or c < 2 * problem.width]
    channels = _blocks(problem.groups * problem.c_in, 64)
    tiles = [Tile(r, c, 0, k, 4, sums) for r, c, k in itertools.product(rows, columns, channels)]
    fitting = [tile for tile in tiles if _fits(problem, tile)]
    return min(fitting or [_smallest(problem)], key=lambda tile: _cost(problem, tile))


def _blocks(channels: int, largest: int) -> list[int]:
    """Powers of two from 16 up to the first that holds all channels, largest first."""
    top = min(largest, max(_LEAST_BLOCK, triton.next_power_of_2(channels)))
    return [size for size in (256, 128, 64, 32, 16) if size <= top]


def _smallest(problem: Problem) -> Tile:
    """For kernels beyond every register budget (they spill, and run): the tile that needs the fewest."""
    narrow = is_narrow(problem.groups, problem.c_in, problem.c_out)
    return Tile(1, 16, 16, 0 if narrow else 16, 4, default_sums(problem.dtype, problem.taps))


def _cost(problem: Problem, tile: Tile) -> float:
    """Estimated lane instructions of the busiest processor. Only ratios between tiles mean anything."""
    threads = tile.warps * problem.device.warp_size
    channels = tile.c_in or tile.c_out
    vector = min(16 // problem.itemsize, max(1.0, tile.columns * channels / threads))
    steps = problem.steps(tile.rows) / tile.rows
    entries = sum(any(ring) for plane in problem.taps.table for row in plane for ring in row)
    packing = 2 if tile.sums == "packed" and problem.itemsize == 2 else 1
    loads = steps * problem.taps.num_columns * 5 / vector
    adds = (steps * problem.taps.num_columns + entries) / packing
    ring_sums = tile.pixels * channels * (loads + adds + problem.rings)
    if tile.c_in == 0:
        body = problem.c_in * (ring_sums + tile.pixels * tile.c_out * problem.rings)
    else:
        # A multiprocessor's tensor cores do 32 multiply-adds per lane and cycle in 16 bits, CUDA cores one.
        rate = 16 if problem.itemsize == 2 else 8
        product = tile.pixels * tile.c_in * tile.c_out * problem.rings / rate
        body = triton.cdiv(problem.c_in, tile.c_in) * (ring_sums + product)
    program = body + 2 * tile.pixels * tile.c_out + 100 * threads
    waves = triton.cdiv(problem.programs(tile), problem.device.processors)
    return waves * program


# Gradients and the two-kernel forward -----------------------------------------------------------------


@dataclass(frozen=True)
class GradientPlan:
    """How ring sums pass through memory: the writer's tile, the pixels of one chunk, and the product's blocks."""

    tile: Tile
    pixels: int
    splits: int
    bs: int
    bu: int
    bp: int
    warps: int = 4
    stages: int = 3


@lru_cache(maxsize=4096)
def gradient_plan(problem: Problem) -> GradientPlan:
    """``c_in`` are the channels that are ring-summed, ``c_out`` those of the other factor."""
    total = problem.batch * problem.height * problem.width
    channels = problem.groups * problem.c_in
    # Half of the cache for a chunk of ring sums leaves the rest to the tensors that meet them.
    pixels = problem.device.l2_bytes // (2 * problem.rings * channels * problem.itemsize) if problem.rings else total
    pixels = max(1, min(pixels, total))
    wide = problem.itemsize == 2
    bs = min(128 if wide else 64, triton.next_power_of_2(max(_LEAST_BLOCK, problem.rings * problem.c_in)))
    bu = min(128 if wide else 64, triton.next_power_of_2(max(_LEAST_BLOCK, problem.c_out)))
    bp = 64 if wide else 32
    owners = triton.cdiv(problem.rings * problem.c_in, bs) * triton.cdiv(problem.c_out, bu) * problem.groups
    splits = reduction_splits(triton.cdiv(pixels, bp), owners, problem.device)
    return GradientPlan(writer_tile(problem), pixels, splits, bs, bu, bp, warps=8 if bs * bu > 64 * 128 else 4)


def reduction_splits(blocks: int, owners: int, device: DeviceLimits) -> int:
    """Splits of a reduction over ``blocks``, so that ``owners`` times splits fill the chip twice."""
    return max(1, min(blocks, 2 * device.processors // max(1, owners), 256))


def prefers_two_kernels(problem: Problem) -> bool:
    """Whether ring sums through memory and a library product beat the fused kernel.

    The fused kernel forms ring sums again for every block of output channels; from 256 channels and 7 taps on
    that costs more than a pass through memory.
    """
    wide = problem.groups == 1 and min(problem.c_in, problem.c_out) >= 256
    return wide and problem.dtype != torch.float32 and problem.taps.num_columns >= 7


def shares_ring_sums(problem: Problem) -> bool:
    """Whether both gradients should use one set of ring sums of grad_y (``problem`` is the forward one).

    Possible at stride 1; worth it unless x is much the thinner side to ring-sum for the weight gradient.
    """
    unit = problem.stride == (1, 1, 1) and problem.groups == 1
    return unit and problem.dtype != torch.float32 and 2 * problem.c_in >= problem.c_out >= _LEAST_BLOCK


def expansion_blocks(taps: int) -> tuple[int, int]:
    """Blocks of (output, input) pairs and of taps."""
    bt = min(128, triton.next_power_of_2(taps))
    return max(1, 1024 // bt), bt
