"""Depthwise and narrow grouped convolutions: too few channels per group for a matrix product.

Every program owns BC output channels. For each of the `c_in` channels of a group in turn, lane j holds the
ring sums of that input channel of *its* group, and multiplies them by its own ring weights.
"""

import triton
import triton.language as tl

from sre_triton.backends.triton.sums import first_row, pixels_of_row, ring_sums, split_index
from sre_triton.backends.triton.taps import num_rings, ring_index, row_step, row_stride


@triton.jit(do_not_specialize=["origin_z", "origin_y", "origin_x"])
def ring_conv_grouped_fwd_kernel(
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
    BC: tl.constexpr,
    EVEN_C: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """y = act(sum_b w_b (S_b x) + bias + residual) for R rows of BM pixels and BC output channels.

    x [N, D, H, W, groups * c_in] dense, w [groups, rings, c_in, c_out] of any strides, bias
    [groups * c_out]; y and residual [N, D, H, W, groups * c_out] with the strides of y. Grid: (N * depth_out *
    num_y * num_x * num_n,) for num_n tiles of BC channels.
    """
    i_n, i_tile = split_index(tl.program_id(0), num_n)
    i_x, i_tile = split_index(i_tile, num_x)
    i_y, i_tile = split_index(i_tile, num_y)
    i_z, i_batch = split_index(i_tile, depth_out)
    i_batch = i_batch.to(tl.int64)

    pitch = width_in * groups * c_in
    o_col = i_x * BM + tl.arange(0, BM)
    o_co = i_n * BC + tl.arange(0, BC)
    m_c = o_co < groups * c_out
    p_lane = p_w + (o_co // c_out) * s_wg + (o_co % c_out) * s_wo
    acc = ()
    for _ in tl.static_range(R):
        acc = acc + (tl.zeros((BM, BC), tl.float32),)
    for i_c in range(0, c_in):
        o_pixel = (o_col * STRIDE_X + origin_x)[:, None] * (groups * c_in) + (o_co // c_out * c_in + i_c)[None, :]
        sums = ring_sums(
            p_x + i_batch * depth_in * height_in * pitch,
            i_z * STRIDE_Z + origin_z, first_row(i_y, TAPS, STRIDE_Y, R) * STRIDE_Y + origin_y, o_pixel, m_c,
            depth_in, height_in, pitch, pitch, groups * c_in, TAPS,
            row_stride(TAPS, STRIDE_Y), R, EVEN_C, ROW_DTYPE, SUM_DTYPE,
        )  # fmt: skip
        for ring in tl.static_range(num_rings(TAPS)):
            # [BC]
            p_tile = p_lane + ring_index(TAPS, ring) * s_wb + i_c * s_wi
            b_w = tl.load(p_tile, mask=m_c, other=0.0).to(tl.float32)
            updated = ()
            for row in tl.static_range(R):
                updated = updated + (acc[row] + sums[ring * R + row].to(tl.float32) * b_w[None, :],)
            acc = updated

    o_image = i_batch * s_yn + i_z.to(tl.int64) * s_yz
    # [BM, BC]
    o_y = (o_col.to(tl.int64) * s_yx)[:, None] + (o_co.to(tl.int64) * s_yc)[None, :]
    for row in tl.static_range(R):
        i_row = first_row(i_y, TAPS, STRIDE_Y, R) + row * row_step(TAPS, STRIDE_Y)
        m_y = pixels_of_row(o_col, width_out, i_row < height_out)[:, None] & m_c[None, :]
        o_tile = o_image + i_row.to(tl.int64) * s_yy + o_y
        b_y = acc[row]
        if HAS_BIAS:
            b_y += tl.load(p_bias + o_co, mask=m_c, other=0.0).to(tl.float32)[None, :]
        if HAS_RES:
            b_y += tl.load(p_res + o_tile, mask=m_y, other=0.0).to(tl.float32)
        if ACTIVATION == "relu":
            b_y = tl.where(b_y < 0, 0.0, b_y)
        elif ACTIVATION == "leaky_relu":
            b_y = tl.where(b_y > 0, b_y, b_y * SLOPE)
        tl.store(p_y + o_tile, b_y.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit(do_not_specialize=["origin_z", "origin_y", "origin_x"])
def ring_conv_grouped_bwd_kernel_w(
    p_x,
    p_g,
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
    TAPS: tl.constexpr,
    STRIDE_Z: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    R: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    EVEN_C: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
):
    """grad[split, b, i, o] = sum_p (S_b x)[p, group(o) * c_in + i] g[p, o] over the tiles of one split.

    x [N, D, H, W, groups * c_in] and g [N, D, H, W, groups * c_out] dense; grad [splits,
    groups * c_out, c_in, rings], its rings dense, one owner per element. Grid: (tiles of BC, c_in, splits).
    """
    i_c = tl.program_id(1) % c_in  # known to be 0 where c_in is known to be 1, which keeps loads wide
    i_split = tl.program_id(2)
    pitch = width_in * groups * c_in
    channels_out = groups * c_out
    o_co = tl.program_id(0) * BC + tl.arange(0, BC)
    m_c = o_co < channels_out
    acc = ()
    for _ in tl.static_range(num_rings(TAPS)):
        acc = acc + (tl.zeros((BM, BC), tl.float32),)
    for i_block in tl.range(i_split * blocks_per_split, tl.minimum((i_split + 1) * blocks_per_split, num_blocks)):
        i_x, i_tile = split_index(i_block, num_x)
        i_y, i_slice = split_index(i_tile, num_y)
        i_z, i_batch = split_index(i_slice, depth_out)
        o_col = i_x * BM + tl.arange(0, BM)
        o_pixel = (o_col * STRIDE_X + origin_x)[:, None] * (groups * c_in) + (o_co // c_out * c_in + i_c)[None, :]
        sums = ring_sums(
            p_x + i_batch.to(tl.int64) * depth_in * height_in * pitch,
            i_z * STRIDE_Z + origin_z, first_row(i_y, TAPS, STRIDE_Y, R) * STRIDE_Y + origin_y, o_pixel, m_c,
            depth_in, height_in, pitch, pitch, groups * c_in, TAPS,
            row_stride(TAPS, STRIDE_Y), R, EVEN_C, ROW_DTYPE, SUM_DTYPE,
        )  # fmt: skip
        for row in tl.static_range(R):
            i_row = first_row(i_y, TAPS, STRIDE_Y, R) + row * row_step(TAPS, STRIDE_Y)
            o_p = (i_slice.to(tl.int64) * height_out + i_row) * width_out + o_col
            m_g = pixels_of_row(o_col, width_out, i_row < height_out)[:, None] & m_c[None, :]
            # [BM, BC]
            b_g = tl.load(p_g + o_p[:, None] * channels_out + o_co[None, :], mask=m_g, other=0.0).to(tl.float32)
            updated = ()
            for ring in tl.static_range(num_rings(TAPS)):
                updated = updated + (acc[ring] + sums[ring * R + row].to(tl.float32) * b_g,)
            acc = updated
    for ring in tl.static_range(num_rings(TAPS)):
        # [BC]
        p_tile = p_grad + i_split.to(tl.int64) * s_split + o_co * s_go + i_c * s_gi + ring_index(TAPS, ring)
        tl.store(p_tile, tl.sum(acc[ring], axis=0).to(p_grad.dtype.element_ty), mask=m_c)
