"""The choice of tiles: every branch, and the limits that it keeps."""

from __future__ import annotations

import itertools

import pytest
import torch

from sre_triton.backends.triton import devices, routes, tiles
from sre_triton.backends.triton.taps import conv_taps
from sre_triton.backends.triton.tiles import Problem, Tile
from sre_triton.geometry.conv import conv_spec

ARCHS = ["sm_80", "sm_90", "sm_100", "gfx942"]


def problem(
    kernel_size: int = 5,
    c_in: int = 64,
    c_out: int = 64,
    size: tuple[int, int] = (56, 56),
    groups: int = 1,
    batch: int = 32,
    stride: int = 1,
    dilation: int = 1,
    ndim: int = 2,
    antialias: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    arch: str = "sm_90",
) -> Problem:
    k, n = kernel_size, ndim
    spec = conv_spec(n, k, k // 2 + 1, True, antialias, (stride,) * n, (k // 2,) * n, (dilation,) * n, groups)
    strides = (1,) * (3 - n) + spec.stride
    return Problem(
        conv_taps(spec).taps, strides, dtype, groups, c_in, c_out, batch, *size, devices.limits_of(arch)
    )  # fmt: skip


RANGE = [
    problem(k, c, c, (s, s), dtype=dtype, arch=arch)
    for k, c, s, dtype, arch in itertools.product(
        (3, 5, 7, 9, 11), (3, 16, 64, 256), (7, 128), (torch.bfloat16, torch.float16, torch.float32), ARCHS
    )
]


@pytest.mark.parametrize("arch", ARCHS)
def test_choice_stays_within_every_limit(arch: str) -> None:
    for case in (p for p in RANGE if p.device.arch == arch):
        tile = tiles.forward_tile(case)
        assert tile in tiles.candidates(case), "the fallback was needed"
        assert tiles.shared_bytes(case, tile) <= case.device.shared_bytes
        assert tiles.registers(case, tile) < case.device.registers
        if case.device.has_tensor_memory:
            assert tiles.tensor_memory_columns(tile) <= 512
        assert tile.pixels >= min(64, case.height * case.width)
        assert {tile.rows, tile.columns, tile.c_out, tile.c_in} <= {2**i for i in range(10)}


def test_choice_is_deterministic() -> None:
    first = [tiles.forward_tile(p) for p in RANGE[:40]]
    tiles.forward_tile.cache_clear()
    assert [tiles.forward_tile(p) for p in RANGE[:40]] == first


def test_tiles_fit_the_image() -> None:
    assert tiles.forward_tile(problem(size=(7, 7))).columns == 8
    assert tiles.forward_tile(problem(ndim=1, size=(1, 4096))).rows == 1
    single = tiles.forward_tile(problem(size=(1, 1)))
    assert single.pixels == 16


@pytest.mark.parametrize("kernel_size", [5, 7, 9, 11])
def test_eight_warps_of_wgmma_have_16_rows_each(kernel_size: int) -> None:
    wide = problem(kernel_size, 512, 512, (7, 7), batch=512)
    assert tiles.candidates(wide)
    assert all(tile.pixels >= 16 * tile.warps for tile in tiles.candidates(wide))
    other = problem(kernel_size, 512, 512, (7, 7), batch=512, arch="sm_80")
    assert any(tile.pixels < 16 * tile.warps for tile in tiles.candidates(other))


def test_sums_by_dtype_and_rings() -> None:
    assert tiles.forward_tile(problem()).sums == "packed"
    assert tiles.forward_tile(problem(dtype=torch.float16)).sums == "float32"
    assert tiles.forward_tile(problem(dtype=torch.float32)).sums == "float32"
    assert tiles.forward_tile(problem(arch="gfx942")).sums == "float32"  # it adds no bfloat16 pairs
    assert tiles.forward_tile(problem(antialias=True)).sums == "mixed"


def test_narrow_groups_do_without_a_product() -> None:
    assert tiles.is_narrow(64, 1, 1)
    assert tiles.is_narrow(4, 16, 8)
    assert not tiles.is_narrow(4, 16, 16)
    assert not tiles.is_narrow(1, 3, 64)
    depthwise = problem(groups=64, c_in=1, c_out=1)
    assert tiles.forward_tile(depthwise).c_in == 0
    assert tiles.narrow_grad_tile(depthwise).rows <= 2


def test_beyond_every_budget_the_smallest_tile_runs() -> None:
    huge = problem(kernel_size=31, dtype=torch.float32)
    assert not tiles.candidates(huge)
    assert tiles.forward_tile(huge) == Tile(1, 64, 16, 16, 4, "float32")
    assert tiles.forward_tile(problem(kernel_size=31, groups=64, c_in=1, c_out=1, dtype=torch.float32)).c_in == 0


def test_two_kernels_where_channels_and_taps_are_many() -> None:
    assert tiles.prefers_two_kernels(problem(7, 256, 256))
    assert not tiles.prefers_two_kernels(problem(5, 256, 256))
    assert not tiles.prefers_two_kernels(problem(7, 128, 256))
    assert not tiles.prefers_two_kernels(problem(7, 256, 256, dtype=torch.float32))
    assert not tiles.prefers_two_kernels(problem(7, 256, 256, groups=2))


def test_gradients_share_ring_sums_at_unit_stride() -> None:
    assert tiles.shares_ring_sums(problem())
    assert not tiles.shares_ring_sums(problem(stride=2))
    assert not tiles.shares_ring_sums(problem(groups=2))
    assert not tiles.shares_ring_sums(problem(c_in=16, c_out=64))
    assert not tiles.shares_ring_sums(problem(dtype=torch.float32))


def test_chunks_of_ring_sums_fit_the_cache() -> None:
    """Together with what is read to form them, the other factor, and the gradient that is written beside it."""
    for case in RANGE:
        elements = case.groups * (case.rings * case.c_in + case.c_in + 2 * case.c_out)
        pixels = tiles.chunk_pixels(case)
        assert pixels == 1 or pixels * elements * case.itemsize <= case.device.l2_bytes
        assert pixels <= case.batch * case.height * case.width
        assert 1 <= tiles.product_splits(case, tiles.product_blocks(case)) <= 256


def test_blocks_of_the_product_stay_within_every_limit() -> None:
    for case in RANGE:
        blocks = tiles.product_candidates(case)
        assert tiles.product_blocks(case) in blocks
        for block in blocks:
            held = (block.stages - 1) * block.pixels * (block.rings + block.channels) * case.itemsize
            assert held <= case.device.shared_bytes
            assert block.rings * block.channels <= 128 * block.warps * case.device.warp_size


def test_the_product_pipelines_less_where_its_third_stage_spills() -> None:
    stages = {
        (arch, dtype): tiles.product_blocks(problem(dtype=dtype, arch=arch)).stages
        for arch, dtype in itertools.product(("sm_90", "sm_100"), (torch.float32, torch.bfloat16))
    }
    assert {choice for choice, value in stages.items() if value == 2} == {("sm_100", torch.float32)}
    assert set(stages.values()) == {2, 3}


def test_threads_share_out_the_register_file() -> None:
    """Twice the warps on gfx942 leave each thread half of the registers; on the others both have 255."""
    for arch in ARCHS:
        case = problem(arch=arch)
        four, eight = (tiles._register_budget(case, Tile(4, 16, 64, 64, warps, "packed")) for warps in (4, 8))
        assert (eight == four // 2) if arch == "gfx942" else (eight == four)


def test_tensor_memory_overflow_is_refused() -> None:
    """128 pixels with 512 columns of operands: Triton would emit a kernel that traps."""
    assert tiles.tensor_memory_columns(Tile(4, 64, 256, 64, 8)) > 512


def test_known_spills_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem()
    chosen = tiles.forward_tile(case)
    signature = tiles._signature(case, chosen)
    monkeypatch.setattr(tiles, "_known_spills", lambda: frozenset({signature}))
    assert chosen not in tiles.candidates(case)


def test_what_spills_with_a_mask_stays_where_channels_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    even, masked = problem(9, 64, 64), problem(9, 40, 64)
    tile = Tile(4, 32, 64, 64, 8)
    signatures = [tiles._signature(case, tile) for case in (even, masked)]
    assert signatures[1] == signatures[0] + " masked"
    for known, struck in zip(signatures, ((True, True), (False, True)), strict=True):
        monkeypatch.setattr(tiles, "_known_spills", lambda known=known: frozenset({known}))
        assert (tiles.is_struck(even, tile), tiles.is_struck(masked, tile)) == struck


@pytest.mark.parametrize(("kernel_size", "rows", "columns", "fits"), [
    (5, 8, 32, False), (5, 8, 16, True), (5, 4, 32, True), (9, 8, 32, False), (9, 4, 32, False), (9, 8, 16, True),
])  # fmt: skip
def test_operands_in_registers_count(kernel_size: int, rows: int, columns: int, fits: bool) -> None:
    """Static, gfx942: what the estimate refuses spills 256 to 2412 bytes, what it passes none."""
    tile = Tile(rows, columns, 64, 32, 8, "float32")
    assert (tile in routes.fused_grad_candidates(problem(kernel_size, arch="gfx942"))) == fits
