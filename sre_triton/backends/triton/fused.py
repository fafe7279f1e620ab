"""The fused forward kernel: ring sums in registers, fed to the tensor cores."""

import triton
import triton.language as tl

from sre_triton.backends.triton.sums import first_row, ring_sums, split_index, stack_rows
from sre_triton.backends.triton.taps import num_rings, ring_index, rings_at, row_step, row_stride


@triton.jit(do_not_specialize=["origin_z", "origin_y", "origin_x"])
def ring_conv_fwd_kernel(
    p_x,
    p_w,
    p_bias,
    p_res,
    p_y,
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
    s_yn,
    s_yz,
    s_yy,
    s_yx,
    s_yc,
    s_wg,
    s_wb,
    s_wi,
    s_wo,
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
    ONE_BLOCK: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """y = act(sum_b W_b (S_b x) + bias + residual) for R rows of BM pixels and BN output channels.

    x [N, D, H, W, groups * c_in] dense, w [groups, rings, c_in, c_out] of any strides, bias [groups * c_out]; y
    and residual [N, D, H, W, groups * c_out] with the strides of y. Grid: (N * depth_out * num_y * num_x *
    num_n, groups) for num_y, num_x and num_n tiles of R, BM and BN.
    """
    i_group = tl.program_id(1)
    i_n, i_tile = split_index(tl.program_id(0), num_n)
    i_x, i_tile = split_index(i_tile, num_x)
    i_y, i_tile = split_index(i_tile, num_y)
    i_z, i_batch = split_index(i_tile, depth_out)
    i_batch = i_batch.to(tl.int64)
    i_row = first_row(i_y, TAPS, STRIDE_Y, R)

    channels = groups * c_in
    pitch = width_in * channels
    o_x = (i_x * BM + tl.arange(0, BM)) * STRIDE_X + origin_x
    o_pixel = o_x[:, None] * channels + tl.arange(0, BK)[None, :]
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < c_out
    p_image = p_x + i_batch * depth_in * height_in * pitch + i_group * c_in
    p_weight = p_w + i_group.to(tl.int64) * s_wg

    acc = tl.zeros((R * BM, BN), tl.float32)
    # Row addresses and masks do not depend on the block of channels. Hoisted out of the loop they would
    # take more registers than the ring sums.
    for o_k in tl.range(0, BK if ONE_BLOCK else c_in, BK, disable_licm=True):
        m_k = o_k + tl.arange(0, BK) < c_in
        sums = ring_sums(
            p_image + o_k, i_z * STRIDE_Z + origin_z, i_row * STRIDE_Y + origin_y, o_pixel, m_k,
            depth_in, height_in, pitch, pitch - o_k, channels, TAPS, row_stride(TAPS, STRIDE_Y), R, EVEN_K,
            ROW_DTYPE, SUM_DTYPE,
        )  # fmt: skip
        for first in tl.static_range(0, num_rings(TAPS), 2):
            b_s = stack_rows(sums, first, R, rings_at(TAPS, first), BM, BK, p_x.dtype.element_ty)
            b_w = load_ring_weights(
                p_weight, o_k, o_n, m_n, c_in, s_wb, s_wi, s_wo, TAPS, first, rings_at(TAPS, first), BK, EVEN_K
            )
            acc = tl.dot(b_s, b_w, acc, input_precision=PRECISION)

    # Row m of the accumulator is pixel (m // BM, m % BM) of the tile.
    o_m = tl.arange(0, R * BM)
    o_row = i_row + o_m // BM * row_step(TAPS, STRIDE_Y)
    o_col = i_x * BM + o_m % BM
    m_y = ((o_row < height_out) & (o_col < width_out))[:, None] & m_n[None, :]
    o_co = i_group * c_out + o_n
    o_image = i_batch * s_yn + i_z.to(tl.int64) * s_yz
    o_pixel_out = o_row.to(tl.int64) * s_yy + o_col.to(tl.int64) * s_yx
    # [R * BM, BN]
    o_y = o_pixel_out[:, None] + (o_co.to(tl.int64) * s_yc)[None, :]
    if HAS_BIAS:
        # [BN]
        acc += tl.load(p_bias + o_co, mask=m_n, other=0.0).to(tl.float32)[None, :]
    if HAS_RES:
        # [R * BM, BN]
        acc += tl.load(p_res + o_image + o_y, mask=m_y, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        acc = tl.where(acc < 0, 0.0, acc)  # keeps NaN, as PyTorch does
    elif ACTIVATION == "leaky_relu":
        acc = tl.where(acc > 0, acc, acc * SLOPE)
    tl.store(p_y + o_image + o_y, acc.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def load_ring_weights(
    p_w,
    o_k,
    o_n,
    m_n,
    c_in,
    s_wb,
    s_wi,
    s_wo,
    TAPS: tl.constexpr,
    first: tl.constexpr,
    RINGS: tl.constexpr,
    BK: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Weights of RINGS rings as one operand [RINGS * BK, BN] of a matrix product."""
    o_row = tl.arange(0, RINGS * BK)
    o_c = o_k + o_row % BK
    o_ring = tl.where(o_row < BK, ring_index(TAPS, first), ring_index(TAPS, first + RINGS - 1))
    # [RINGS * BK, BN]
    p_tile = p_w + (o_ring.to(tl.int64) * s_wb + o_c * s_wi)[:, None] + (o_n * s_wo)[None, :]
    return tl.load(p_tile, mask=m_n[None, :] if EVEN_K else (o_c < c_in)[:, None] & m_n[None, :], other=0.0)
