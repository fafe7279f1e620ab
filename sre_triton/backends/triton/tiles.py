"""Which tile a kernel runs with: a choice from shapes, dtype and device, made without running anything.

Candidates that would spill registers or overflow a memory are struck out, and a count of instructions ranks
the rest (README.md derives both). The choice is a pure function of its arguments, so the first call compiles
one kernel, and every process chooses alike. Measured choices, where there are any, come before this one: see
:mod:`sre_triton.backends.triton.tuning`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import triton

from sre_triton.backends.triton import rules
from sre_triton.backends.triton.devices import DeviceLimits
from sre_triton.backends.triton.taps import Taps, row_step, row_stride

__all__ = [
    "TENSOR_MEMORY_COLUMNS",
    "Blocks",
    "Problem",
    "Tile",
    "candidates",
    "chunk_pixels",
    "expansion_blocks",
    "forward_tile",
    "is_narrow",
    "is_struck",
    "loops",
    "narrow_grad_candidates",
    "narrow_grad_tile",
    "prefers_two_kernels",
    "product_blocks",
    "product_candidates",
    "product_splits",
    "reduction_splits",
    "registers",
    "shared_bytes",
    "shares_ring_sums",
    "tensor_memory_columns",
    "writer_candidates",
    "writer_tile",
]

TENSOR_MEMORY_COLUMNS = 512

# Triton's own matrix product needs 16 rows, columns and channels.
_LEAST_BLOCK = 16
# wgmma gives each warp 16 rows. Eight warps on 64 rows of a small image share them out along the channels, and spill at
# 256 of those (static: 80 bytes at k=5, 200 at k=7, 264 at k=9).
_WARPS_OF_16_ROWS = ("sm_90",)
_MASKED = " masked"  # of a block of input channels that some programs do not fill
_SPILLS = Path(__file__).with_name("spills.json")


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
        stages: of the pipeline that the compiler makes of the loop over input channels; 1 for none.
    """

    rows: int
    columns: int
    c_out: int
    c_in: int
    warps: int
    sums: str = "packed"
    stages: int = 1

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Problem:
    """One launch as the heuristics see it. ``c_in`` and ``c_out`` count channels per group, ``batch`` counts
    images times planes, ``height`` and ``width`` are those of the output."""

    taps: Taps
    stride: tuple[int, ...]
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
        if tile.c_in == 0:
            blocks = triton.cdiv(self.groups * self.c_out, tile.c_out)
        elif tile.c_out == 0:
            blocks = triton.cdiv(self.groups * self.c_in, tile.c_in)
        else:
            blocks = self.groups * triton.cdiv(self.c_out, tile.c_out)
        return self.batch * bands * blocks


# What a tile needs ------------------------------------------------------------------------------------


def registers(problem: Problem, tile: Tile) -> int:
    """Estimated registers of a thread at the peak of a tile, some 40 of them for addresses.

    While ring sums form: the sums, the column shifts of one input row and, in a loop over blocks of channels,
    the accumulator. While two rings are multiplied: the accumulator, the operand, and the rings yet to come.
    """
    threads = tile.warps * problem.device.warp_size
    elements = tile.columns * (tile.c_in or tile.c_out) / threads
    row = problem.taps.num_columns * elements * (4 if tile.sums == "float32" else problem.itemsize) / 4
    ring = tile.rows * elements * (problem.itemsize if tile.sums == "packed" else 4) / 4
    accumulator = tile.pixels * tile.c_out / threads
    if problem.device.has_tensor_memory and tile.c_in:
        accumulator /= 2
    operand = 2 * tile.pixels * tile.c_in * problem.itemsize / (4 * threads)
    forming = problem.rings * ring + row + (accumulator if loops(problem, tile) else 0)
    return round(max(forming, accumulator + operand + max(problem.rings - 2, 0) * ring) + 40)


def loops(problem: Problem, tile: Tile) -> bool:
    """Whether an accumulator lives while ring sums form."""
    return problem.c_in > (tile.c_in or 1)


def shared_bytes(problem: Problem, tile: Tile) -> int:
    """Shared memory of both operands of the product of two rings, or of the output tile if that is larger."""
    operands = 2 * (tile.pixels + tile.c_out) * tile.c_in * problem.itemsize
    return max(operands, tile.pixels * tile.c_out * problem.itemsize)


def tensor_memory_columns(tile: Tile) -> int:
    """Columns of tensor memory (of 512): the float32 accumulator, and the left operand beside it.

    Beyond 512 Triton emits a kernel that traps, without an error.
    """
    return (tile.c_out + tile.c_in) * triton.cdiv(tile.pixels, 128)


def _fits(problem: Problem, tile: Tile) -> bool:
    if registers(problem, tile) > _register_budget(problem, tile) or is_struck(problem, tile):
        return False
    if shared_bytes(problem, tile) > problem.device.shared_bytes:
        return False
    return not problem.device.has_tensor_memory or tensor_memory_columns(tile) <= TENSOR_MEMORY_COLUMNS


def _register_budget(problem: Problem, tile: Tile) -> int:
    """Estimates above which compilers were seen to spill: they schedule loads early into what seems free."""
    looping = loops(problem, tile)
    if problem.device.has_tensor_memory:
        budget = 156 if looping else 140
    elif tile.sums == "packed":
        budget = 188
    else:
        budget = 150 if looping else 130
    device = problem.device
    return budget * min(device.registers, device.register_file // (tile.warps * device.warp_size)) // 255


@lru_cache(maxsize=1)
def _known_spills() -> frozenset[str]:
    """Tiles that spill although the estimate lets them pass, as found by ``python -m bench.spills``."""
    return frozenset(json.loads(_SPILLS.read_text())) if _SPILLS.exists() else frozenset()


def is_struck(problem: Problem, tile: Tile, kind: str = "") -> bool:
    """Whether a tile is known to spill. What spills with every channel in use does so with a mask, not the reverse."""
    signature = _signature(problem, tile, kind)
    return not _known_spills().isdisjoint((signature, signature.removesuffix(_MASKED)))


def _signature(problem: Problem, tile: Tile, kind: str = "") -> str:
    """What a compiler's use of registers depends on."""
    taps = problem.taps
    geometry = (len(taps.planes), taps.num_columns, problem.rings, row_stride(taps, problem.stride[1]))
    kind = kind or ("loop" if loops(problem, tile) else "once")
    options = (tile.rows, tile.columns, tile.c_out, tile.c_in, tile.warps)
    masked = _MASKED if tile.c_in and problem.c_in % tile.c_in else ""
    return f"{problem.device.arch} {geometry} {problem.itemsize} {tile.sums} {kind} {options}{masked}"


# The choice -------------------------------------------------------------------------------------------


def is_narrow(groups: int, c_in: int, c_out: int) -> bool:
    """Groups too narrow for a matrix product, which would be mostly padding."""
    return groups > 1 and min(c_in, c_out) < _LEAST_BLOCK


def default_sums(problem: Problem) -> str:
    """Where ring sums round by default.

    float16 is chosen for its precision, and a ring of large values overflows it: its sums stay in float32.
    bfloat16 sums are packed where the device packs them. Fractional weights go one step up.
    """
    if problem.dtype == torch.bfloat16 and problem.device.packs_bfloat16:
        return "packed" if problem.taps.is_hard else "mixed"
    return "float32"


def candidates(problem: Problem) -> list[Tile]:
    """Every tile worth trying for a problem: the search space of tuning and of the choice below."""
    sums = default_sums(problem)
    if is_narrow(problem.groups, problem.c_in, problem.c_out):
        blocks = _blocks(problem.groups * problem.c_out, 64)[:1]
        areas = _areas(problem, _LEAST_BLOCK)
        tiles = [Tile(r, c, n, 0, w, sums) for (r, c), n, w in itertools.product(areas, blocks, (4, 8))]
    else:
        channels = itertools.product(_blocks(problem.c_out, 256), _blocks(problem.c_in, 64))
        arch = problem.device.arch
        tiles = [
            Tile(r, c, n, k, w, sums)
            for (r, c), (n, k), w in itertools.product(_areas(problem), channels, (4, 8))
            if r * c >= 16 * w or (r * c == _area_limit(problem) and not (w == 8 and arch in _WARPS_OF_16_ROWS))
        ]
    return [tile for tile in tiles if _fits(problem, tile)]


@lru_cache(maxsize=4096)
def forward_tile(problem: Problem) -> Tile:
    """The tile that the forward kernels run with."""
    return _cheapest(problem, candidates(problem))


def narrow_grad_candidates(problem: Problem) -> list[Tile]:
    """Tiles of the narrow weight gradient, which holds a float32 sum per ring instead of per row."""
    block = _blocks(problem.groups * problem.c_out, 64)[0]
    sums = default_sums(problem)
    found = []
    for (rows, columns), warps in itertools.product(_areas(problem, _LEAST_BLOCK), (4, 8)):
        tile = Tile(rows, columns, block, 0, warps, sums)
        extra = (problem.rings - rows) * columns * block // (warps * problem.device.warp_size)
        fits = registers(problem, tile) + extra <= _register_budget(problem, tile)
        if rows <= 2 and fits and not is_struck(problem, tile, "grad"):
            found.append(tile)
    return found


@lru_cache(maxsize=4096)
def narrow_grad_tile(problem: Problem) -> Tile:
    """The tile that the narrow weight gradient runs with."""
    return _cheapest(problem, narrow_grad_candidates(problem))


def writer_candidates(problem: Problem) -> list[Tile]:
    """Tiles of the ring writer: no product, and runs of channels long enough for whole cache lines."""
    block = _blocks(problem.groups * problem.c_in, 64)[0]
    sums = default_sums(problem)
    areas = _areas(problem, _LEAST_BLOCK)
    tiles = [Tile(r, c, 0, block, w, sums) for (r, c), w in itertools.product(areas, (4, 8))]
    return [tile for tile in tiles if _fits(problem, tile)]


@lru_cache(maxsize=4096)
def writer_tile(problem: Problem) -> Tile:
    """The tile that the ring writer runs with."""
    return _cheapest(problem, writer_candidates(problem))


def _cheapest(problem: Problem, tiles: list[Tile]) -> Tile:
    return min(tiles or [_smallest(problem)], key=lambda tile: _cost(problem, tile))


def _area_limit(problem: Problem) -> int:
    """Pixels of the largest tile: 128, or as many as a small image fills."""
    return min(128, max(_LEAST_BLOCK, triton.next_power_of_2(problem.height) * triton.next_power_of_2(problem.width)))


def _areas(problem: Problem, least: int = 64) -> list[tuple[int, int]]:
    """Rows and columns of tiles of ``least`` to 128 pixels, fewer where the image is smaller."""
    limit = _area_limit(problem)
    return [
        (rows, columns)
        for rows, columns in itertools.product((8, 4, 2, 1), (128, 64, 32, 16, 8, 4, 2))
        if min(limit, least) <= rows * columns <= limit
        and rows < 2 * problem.height
        and (columns < 2 * problem.width or rows * columns == _LEAST_BLOCK)
    ]


def _blocks(channels: int, largest: int) -> list[int]:
    """Powers of two from 16 up to the first that holds all channels, largest first."""
    top = min(largest, max(_LEAST_BLOCK, triton.next_power_of_2(channels)))
    return [size for size in (256, 128, 64, 32, 16) if size <= top]


def _smallest(problem: Problem) -> Tile:
    """For kernels beyond every register budget (they spill, and run): the tile that needs the fewest."""
    narrow = is_narrow(problem.groups, problem.c_in, problem.c_out)
    return Tile(1, 64, 16, 0 if narrow else 16, 4, default_sums(problem))


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
        weights = problem.rings * tile.c_in * tile.c_out * problem.itemsize / 4
        body = triton.cdiv(problem.c_in, tile.c_in) * (ring_sums + product + weights)
    blocks = triton.cdiv(problem.c_in, tile.c_in) if tile.c_in else problem.c_in
    program = body + 2 * tile.pixels * tile.c_out + (80 + 80 * blocks) * threads
    waves = triton.cdiv(problem.programs(tile), problem.device.processors)
    return waves * program


# Gradients and the two-kernel forward -----------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """Launch options of the weight gradient's product of ring sums with another factor.

    Args:
        rings: columns of ring sums, (ring, channel) pairs, that a program owns.
        channels: channels of the other factor that it owns.
        pixels: pixels of one step.
        warps, stages: warps of a program, and stages of its pipeline of loads.
    """

    rings: int
    channels: int
    pixels: int
    warps: int = 4
    stages: int = 3


def chunk_pixels(problem: Problem) -> int:
    """Pixels whose ring sums are in memory at a time. In this and what follows ``c_in`` are the channels that are
    ring-summed, ``c_out`` those of the other factor."""
    total = problem.batch * problem.height * problem.width
    channels = problem.groups * problem.c_in, problem.groups * problem.c_out
    return min(rules.chunk_pixels(problem.rings, *channels, problem.itemsize, problem.device.l2_bytes), total) or 1


@lru_cache(maxsize=4096)
def product_blocks(problem: Problem) -> Blocks:
    """The blocks that the product runs with."""
    wide = problem.itemsize == 2
    rings = min(128 if wide else 64, _block_over(problem.rings * problem.c_in))
    channels = min(128 if wide else 64, _block_over(problem.c_out))
    # With tensor memory the compiler spills at the third stage of float32 loads.
    stages = 3 if wide or not problem.device.has_tensor_memory else 2
    return Blocks(rings, channels, 64 if wide else 32, warps=8 if rings * channels > 64 * 128 else 4, stages=stages)


def product_candidates(problem: Problem) -> list[Blocks]:
    """Every choice of blocks worth trying."""
    columns, channels = _block_over(problem.rings * problem.c_in), _block_over(problem.c_out)
    sizes = itertools.product((16, 32, 64, 128, 256), (16, 32, 64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4))
    return [
        Blocks(r, c, p, warps, stages)
        for r, c, p, warps, stages in sizes
        if r <= columns
        and c <= channels
        # Enough of an accumulator for every thread, but no more than half of its registers.
        and min(1024, columns * channels) <= r * c <= 128 * warps * problem.device.warp_size
        # A compiler may keep the last stage in registers; what it makes of the rest is seen once compiled.
        and (stages - 1) * p * (r + c) * problem.itemsize <= problem.device.shared_bytes
    ]


def product_splits(problem: Problem, blocks: Blocks) -> int:
    """Splits of the pixels of a chunk, each with an owner of its own."""
    owners = triton.cdiv(problem.rings * problem.c_in, blocks.rings) * triton.cdiv(problem.c_out, blocks.channels)
    return reduction_splits(
        triton.cdiv(chunk_pixels(problem), blocks.pixels), owners * problem.groups, problem.device
    )  # fmt: skip


def _block_over(size: int) -> int:
    return triton.next_power_of_2(max(_LEAST_BLOCK, size))


def reduction_splits(blocks: int, owners: int, device: DeviceLimits) -> int:
    """Splits of a reduction over ``blocks``, so that ``owners`` times splits fill the chip twice."""
    return max(1, min(blocks, 2 * device.processors // max(1, owners), 256))


def prefers_two_kernels(problem: Problem) -> bool:
    """Whether ring sums through memory and a library product beat the fused kernel."""
    channels = problem.c_in, problem.c_out
    return rules.takes_two_kernels(problem.groups, *channels, problem.dtype, problem.taps.num_columns)


def shares_ring_sums(problem: Problem) -> bool:
    """Whether both gradients may use one set of ring sums of grad_y (``problem`` is the forward one)."""
    channels = problem.c_in, problem.c_out
    return rules.may_share_ring_sums(problem.stride == (1, 1, 1), problem.groups, *channels, problem.dtype)


def expansion_blocks(taps: int) -> tuple[int, int]:
    """Blocks of (output, input) pairs and of taps."""
    bt = min(128, triton.next_power_of_2(taps))
    return max(1, 1024 // bt), bt
