"""Which way a pass goes where there is more than one, and the tile of the fused weight gradient.

Pure functions of a problem, like those of :mod:`sre_triton.backends.triton.tiles`.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
import triton

from sre_triton.backends.triton import tiles
from sre_triton.backends.triton.tiles import Problem, Tile

__all__ = ["fused_grad_candidates", "fused_grad_registers", "fused_grad_splits", "fused_grad_tile", "packs_weights"]

# Estimates from which on compilers were seen to spill (static, sm_90: 138 at k = 9).
_GRAD_BUDGET = 130
# Matrix instructions that read both operands from registers, which the compiler fills before the first product.
_OPERANDS_IN_REGISTERS = ("gfx942",)

_DIRECT_WEIGHTS = 16  # of two rings that a thread may load one by one

# A split that owns fewer tiles costs more to add up than it saves.
_LEAST_TILES = 4


def packs_weights(problem: Problem, tile: Tile) -> bool:
    """Whether ring weights are copied into the order in which programs load them, output channels innermost.

    As they are, a thread loads them one by one: many of them spill its registers (static, sm_90, k = 9: 576 bytes at 64
    of two rings, none at 16), and every program pays for it, so that the launch of the copy pays once programs fill the
    chip twice. Groups too narrow for a matrix product load few weights.
    """
    if tiles.is_narrow(problem.groups, problem.c_in, problem.c_out):
        return False
    per_thread = 2 * tile.c_in * tile.c_out / (tile.warps * problem.device.warp_size)
    return per_thread > _DIRECT_WEIGHTS or problem.programs(tile) > 2 * problem.device.processors


@lru_cache(maxsize=4096)
def fused_grad_tile(problem: Problem) -> Tile | None:
    """The tile of the weight gradient with ring sums in registers; None where they go through memory.

    The accumulators, one of all rings, live as long as the program, so little is left for ring sums. A block of
    output channels that does not hold all of them forms the sums again, which pays only where launches are what
    costs.
    """
    found = fused_grad_candidates(problem)
    once = [tile for tile in found if tile.c_out >= problem.c_out]  # at most 128: see rules.may_sum_in_registers
    few = [tile for tile in found if problem.programs(tile) <= 2 * problem.device.processors]
    return min(once or few, key=lambda tile: _grad_cost(problem, tile), default=None)


def fused_grad_candidates(problem: Problem) -> list[Tile]:
    """Tiles whose estimate of registers lets them pass; none in float32, whose products are slow enough to wait for
    memory."""
    if problem.dtype == torch.float32 or tiles.is_narrow(problem.groups, problem.c_in, problem.c_out):
        return []
    sums = tiles.default_sums(problem)
    areas = itertools.product((2, 4, 8), (8, 16, 32))
    blocks = itertools.product((16, 32, 64, 128), (16, 32))
    c_out, c_in = (triton.next_power_of_2(max(16, n)) for n in (problem.c_out, problem.c_in))
    # Threads of 4 warps would hold twice as much and spill; two rings of 32 channels are what wgmma multiplies.
    found = [
        Tile(r, c, n, k, 8, sums)
        for (r, c), (n, k) in itertools.product(areas, blocks)
        if n <= c_out and k == min(32, c_in) and r * c >= 32 and r * c * k >= 2048
    ]
    device = problem.device
    budget = _GRAD_BUDGET * min(device.registers, device.register_file // (8 * device.warp_size)) // 255
    return [
        tile
        for tile in found
        if fused_grad_registers(problem, tile) <= budget
        and tiles.shared_bytes(problem, tile) <= problem.device.shared_bytes
        and not tiles.is_struck(problem, tile, "fused_grad")
    ]


def fused_grad_registers(problem: Problem, tile: Tile) -> int:
    """Estimated registers of a thread while ring sums form: for the sums, one row's column shifts, all accumulators,
    some 40 addresses, and operands where a product reads them from registers (static, gfx942: at 125 nothing spills, at
    134 it is 256 bytes)."""
    threads = tile.warps * problem.device.warp_size
    elements = tile.columns * tile.c_in / threads
    row = problem.taps.num_columns * elements * (4 if tile.sums == "float32" else problem.itemsize) / 4
    ring = tile.rows * elements * (problem.itemsize if tile.sums == "packed" else 4) / 4
    accumulators = problem.rings * tile.c_in * tile.c_out / threads
    operands = 0.0
    if problem.device.arch in _OPERANDS_IN_REGISTERS:
        operands = tile.pixels * (2 * tile.c_in + tile.c_out) * problem.itemsize / (4 * threads)
    return round(problem.rings * ring + row + accumulators + operands + 40)


def _grad_cost(problem: Problem, tile: Tile) -> float:
    """Instructions of all threads together: loads of shifted rows, additions, and what a tile costs anyway."""
    elements = problem.steps(tile.rows) * tile.columns * tile.c_in
    vector = max(1.0, min(8.0, tile.columns * tile.c_in / (32 * tile.warps)))
    loads = elements * problem.taps.num_columns * 5 / vector
    additions = elements * problem.taps.num_columns / 2
    fixed = 250 * 32 * tile.warps
    blocks = triton.cdiv(problem.c_out, tile.c_out) * triton.cdiv(problem.c_in, tile.c_in) * problem.groups
    return grad_tiles(problem, tile) * blocks * (loads + additions + fixed)


def grad_tiles(problem: Problem, tile: Tile) -> int:
    """Tiles of output pixels."""
    step = tiles.row_step(problem.taps, problem.stride[1])
    rows = triton.cdiv(problem.height, tile.rows * step) * step
    return problem.batch * rows * triton.cdiv(problem.width, tile.columns)


def fused_grad_splits(problem: Problem, tile: Tile) -> int:
    """Splits of the tiles of pixels, each with an owner of its own."""
    owners = triton.cdiv(problem.c_in, tile.c_in) * triton.cdiv(problem.c_out, tile.c_out) * problem.groups
    blocks = triton.cdiv(grad_tiles(problem, tile), _LEAST_TILES)
    return tiles.reduction_splits(blocks, owners, problem.device)
