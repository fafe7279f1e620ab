"""Ring sums in memory and the weight gradient as a matrix product with them; the same with ring sums in registers."""

import triton
import triton.language as tl

from sre_triton.backends.triton.sums import first_row, pixels_of_row, ring_sums, split_index, stack_rows
from sre_triton.backends.triton.taps import num_rings, ring_index, rings_at, row_step, row_stride


# Chunks differ in these alone: one kernel must serve them all.
@triton.jit(do_not_specialize=["first_block", "origin_z", "origin_y", "origin_x"])
def ring_sum_kernel(
    p_x,
    p_s,
    depth_in,
    height_in,
    width_in,
    depth_out,
    height_out,
    width_out,
    channels,
    origin_z,
    origin_y,
    origin_x,
    first_block,
    num_y,
    num_x,
    num_k,
    TAPS: tl.constexpr,
    NUM_WEIGHTS: tl.constexpr,
    STRIDE_Z: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    R: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
):
    """s[p, b, c] = (S_b x)[p, c] for the output pixels p of consecutive tiles of rows.

    x [N, D, H, W, channels] dense; s [pixels, NUM_WEIGHTS, channels] dense, its first pixel is the first one
    of `first_block`, the first of `row_step` tiles that interleave. Grid: (tiles of rows * num_x * num_k,).
    """
    i_k, i_tile = split_index(tl.program_id(0), num_k)
    i_x, i_block = split_index(i_tile, num_x)
    i_y, i_slice = split_index(i_block + first_block, num_y)
    i_z, i_batch = split_index(i_slice, depth_out)
    i_row = first_row(i_y, TAPS, STRIDE_Y, R)
    i_first_y, i_first_slice = split_index(first_block, num_y)
    o_first = (i_first_slice.to(tl.int64) * height_out + first_row(i_first_y, TAPS, STRIDE_Y, R)) * width_out

    pitch = width_in * channels
    o_col = i_x * BM + tl.arange(0, BM)
    o_c = i_k * BK + tl.arange(0, BK)
    m_c = o_c < channels
    o_pixel = (o_col * STRIDE_X + origin_x)[:, None] * channels + o_c[None, :]
    sums = ring_sums(
        p_x + i_batch.to(tl.int64) * depth_in * height_in * pitch,
        i_z * STRIDE_Z + origin_z, i_row * STRIDE_Y + origin_y, o_pixel, m_c,
        depth_in, height_in, pitch, pitch, channels, TAPS, row_stride(TAPS, STRIDE_Y), R, EVEN_K, ROW_DTYPE, SUM_DTYPE,
    )  # fmt: skip
    o_slice = i_slice.to(tl.int64) * height_out * width_out - o_first
    for i in tl.static_range(R * num_rings(TAPS)):
        i_out = i_row + i % R * row_step(TAPS, STRIDE_Y)
        o_p = o_slice + i_out * width_out + o_col
        m_p = pixels_of_row(o_col, width_out, i_out < height_out)
        # [BM, BK]
        p_tile = p_s + (o_p * NUM_WEIGHTS + ring_index(TAPS, i // R))[:, None] * channels + o_c[None, :]
        tl.store(p_tile, sums[i].to(p_s.dtype.element_ty), mask=m_p[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=["pixels", "pixels_per_split", "is_later"])
def ring_conv_bwd_kernel_w(
    p_s,
    p_u,
    p_grad,
    pixels,
    pixels_per_split,
    is_later,
    groups,
    c_s,
    c_u,
    s_split,
    s_gg,
    s_gs,
    s_gu,
    num_u,
    NUM_WEIGHTS: tl.constexpr,
    BS: tl.constexpr,
    BU: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad[split, g, (b, i), j] = sum_p s[p, b, g, i] u[p, g, j] over the pixels of one split.

    s [pixels, NUM_WEIGHTS, groups * c_s], u [pixels, groups * c_u], grad float32 of any strides, its rings dense.
    Where `is_later` is set, the sums of earlier chunks are there already and are added to. Every element has one
    owner that adds in a fixed order: the result is deterministic. Grid: (tiles of BS * num_u, groups, splits).
    """
    i_u, i_s = split_index(tl.program_id(0), num_u)
    i_group = tl.program_id(1)
    i_split = tl.program_id(2)
    o_s = i_s * BS + tl.arange(0, BS)
    o_u = i_u * BU + tl.arange(0, BU)
    m_s = o_s < NUM_WEIGHTS * c_s
    m_u = o_u < c_u
    # Column (b, i) of a group lies at b * groups * c_s + group * c_s + i.
    o_column = o_s if groups == 1 else o_s // c_s * (groups * c_s) + i_group * c_s + o_s % c_s
    p_start = i_split.to(tl.int64) * pixels_per_split
    p_end = tl.minimum(p_start + pixels_per_split, pixels)
    acc = tl.zeros((BS, BU), tl.float32)
    for o_block in tl.range(p_start, p_end, BP):
        o_p = o_block + tl.arange(0, BP)
        m_p = o_p < p_end
        # [BP, BS]
        p_tile = p_s + o_p[:, None] * (NUM_WEIGHTS * groups * c_s) + o_column[None, :]
        b_s = tl.load(p_tile, mask=m_p[:, None] & m_s[None, :], other=0.0)
        # [BP, BU]
        p_tile = p_u + o_p[:, None] * (groups * c_u) + (i_group * c_u + o_u)[None, :]
        b_u = tl.load(p_tile, mask=m_p[:, None] & m_u[None, :], other=0.0)
        acc = tl.dot(tl.trans(b_s), b_u, acc, input_precision=PRECISION)
    # [BS, BU]
    p_grad += i_split.to(tl.int64) * s_split + i_group * s_gg
    # Addresses twice, from offsets of 32 bits: what is kept from the load to the store, or added in 64 bits, spills.
    if is_later != 0:
        p_tile = p_grad + ((o_s % c_s * s_gs + o_s // c_s)[:, None] + (o_u * s_gu)[None, :])
        acc += tl.load(p_tile, mask=m_s[:, None] & m_u[None, :], other=0.0)
    p_tile = p_grad + ((o_s % c_s * s_gs + o_s // c_s)[:, None] + (o_u * s_gu)[None, :])
    tl.store(p_tile, acc, mask=m_s[:, None] & m_u[None, :])


@triton.jit(do_not_specialize=["origin_z", "origin_y", "origin_x", "num_blocks", "blocks_per_split"])
def ring_conv_fused_bwd_kernel_w(
    p_x,
    p_u,
    p_grad,
    depth_in,
    height_in,
    width_in,
    depth_out,
    height_out,
    width_out,
    groups,
    c_in,
    c_out,
    origin_z,
    origin_y,
    origin_x,
    s_split,
    s_gi,
    s_go,
    num_blocks,
    blocks_per_split,
    num_y,
    num_x,
    num_n,
    TAPS: tl.constexpr,
    STRIDE_Z: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    R: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad[split, b, i, o] = sum_p (S_b x)[p, i] u[p, o] over the tiles of one split, ring sums in registers.

    x [N, D, H, W, groups * c_in] and u [N, D, H, W, groups * c_out] dense; grad [splits, groups * c_out, c_in,
    rings], its rings dense, one owner per element. Grid: (tiles of BK * num_n, groups, splits) for num_n tiles of
    BN channels of u.
    """
    i_n, i_k = split_index(tl.program_id(0), num_n)
    i_group = tl.program_id(1)
    i_split = tl.program_id(2)
    channels = groups * c_in
    pitch = width_in * channels
    o_k = i_k * BK
    m_k = o_k + tl.arange(0, BK) < c_in
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < c_out
    p_channel = p_x + i_group * c_in + o_k
    p_factor = p_u + i_group * c_out
    acc = ()
    for first in tl.static_range(0, num_rings(TAPS), 2):
        acc = acc + (tl.zeros((rings_at(TAPS, first) * BK, BN), tl.float32),)
    last_block = tl.minimum((i_split + 1) * blocks_per_split, num_blocks)
    for i_block in tl.range(i_split * blocks_per_split, last_block, disable_licm=True):
        i_x, i_tile = split_index(i_block, num_x)
        i_y, i_slice = split_index(i_tile, num_y)
        i_z, i_batch = split_index(i_slice, depth_out)
        i_row = first_row(i_y, TAPS, STRIDE_Y, R)
        o_x = (i_x * BM + tl.arange(0, BM)) * STRIDE_X + origin_x
        o_pixel = o_x[:, None] * channels + tl.arange(0, BK)[None, :]
        sums = ring_sums(
            p_channel + i_batch.to(tl.int64) * depth_in * height_in * pitch,
            i_z * STRIDE_Z + origin_z, i_row * STRIDE_Y + origin_y, o_pixel, m_k,
            depth_in, height_in, pitch, pitch - o_k, channels, TAPS, row_stride(TAPS, STRIDE_Y), R, EVEN_K,
            ROW_DTYPE, SUM_DTYPE,
        )  # fmt: skip
        # Row m of an operand is pixel (m // BM, m % BM) of the tile.
        o_m = tl.arange(0, R * BM)
        o_row = i_row + o_m // BM * row_step(TAPS, STRIDE_Y)
        o_col = i_x * BM + o_m % BM
        m_p = ((o_row < height_out) & (o_col < width_out))[:, None]
        o_p = (i_slice.to(tl.int64) * height_out + o_row) * width_out + o_col
        # [R * BM, BN]
        b_u = tl.load(p_factor + o_p[:, None] * (groups * c_out) + o_n[None, :], mask=m_p & m_n[None, :], other=0.0)
        updated = ()
        for first in tl.static_range(0, num_rings(TAPS), 2):
            b_s = stack_rows(sums, first, R, rings_at(TAPS, first), BM, BK, p_x.dtype.element_ty)
            # Beyond the output there are ring sums too; a NaN in them would survive a zero in u.
            b_s = tl.where(m_p, b_s, tl.zeros_like(b_s))
            updated = updated + (tl.dot(tl.trans(b_s), b_u, acc[first // 2], input_precision=PRECISION),)
        acc = updated
    p_grad += i_split.to(tl.int64) * s_split + i_group * c_out * s_go
    for first in tl.static_range(0, num_rings(TAPS), 2):
        o_s = tl.arange(0, rings_at(TAPS, first) * BK)
        o_i = o_k + o_s % BK
        o_ring = tl.where(o_s < BK, ring_index(TAPS, first), ring_index(TAPS, first + rings_at(TAPS, first) - 1))
        # [rings * BK, BN]
        p_tile = p_grad + (o_i * s_gi + o_ring)[:, None] + (o_n * s_go)[None, :]
        tl.store(p_tile, acc[first // 2].to(p_grad.dtype.element_ty), mask=(o_i < c_in)[:, None] & m_n[None, :])


@triton.jit(do_not_specialize=["splits"])
def add_splits_kernel(p_partial, p_grad, splits, numel, BLOCK: tl.constexpr, SPLITS: tl.constexpr):
    """grad[i] = sum_split partial[split, i], in a fixed order and in float32. Grid: (tiles of BLOCK,)."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_split = tl.arange(0, SPLITS)
    acc = tl.zeros((SPLITS, BLOCK), tl.float32)
    for first in tl.range(0, splits, SPLITS):
        m = (first + o_split < splits)[:, None] & (o < numel)[None, :]
        # [SPLITS, BLOCK]
        acc += tl.load(p_partial + (first + o_split).to(tl.int64)[:, None] * numel + o[None, :], mask=m, other=0.0)
    tl.store(p_grad + o, tl.sum(acc, axis=0).to(p_grad.dtype.element_ty), mask=o < numel)
