"""Ring sums in memory, and the weight gradient as a matrix product with them."""

import triton
import triton.language as tl

from sre_triton.backends.triton.sums import first_row, pixels_of_row, ring_sums, split_index
from sre_triton.backends.triton.taps import num_rings, ring_index, row_step, row_stride


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


@triton.jit(do_not_specialize=["pixels", "pixels_per_split"])
def ring_conv_bwd_kernel_w(
    p_s,
    p_u,
    p_grad,
    pixels,
    pixels_per_split,
    groups,
    c_s,
    c_u,
    num_u,
    NUM_WEIGHTS: tl.constexpr,
    BS: tl.constexpr,
    BU: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad[split, g, (b, i), j] += sum_p s[p, b, g, i] u[p, g, j] over the pixels of one split.

    s [pixels, NUM_WEIGHTS, groups * c_s], u [pixels, groups * c_u], grad [splits, groups, NUM_WEIGHTS * c_s, c_u]
    float32. Every element has one owner that adds in a fixed order: the result is deterministic.
    Grid: (tiles of BS * num_u, groups, splits).
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
    o_grad = ((i_split.to(tl.int64) * groups + i_group) * NUM_WEIGHTS * c_s + o_s)[:, None] * c_u + o_u[None, :]
    m_grad = m_s[:, None] & m_u[None, :]
    acc += tl.load(p_grad + o_grad, mask=m_grad, other=0.0)
    tl.store(p_grad + o_grad, acc, mask=m_grad)
