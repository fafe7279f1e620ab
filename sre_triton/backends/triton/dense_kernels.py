"""Ring weights to a dense kernel, and its adjoint. Both are memory bound: one pass, any pair of dtypes."""

import triton
import triton.language as tl


@triton.jit
def ring_expand_kernel(p_w, p_table, p_dense, pairs, taps, NUM_RINGS: tl.constexpr, BO: tl.constexpr,
                           BT: tl.constexpr):  # fmt: skip
    """dense[o, t] = sum_b w[o, b] table[b, t]. w [pairs, NUM_RINGS], table [NUM_RINGS, taps] float32.

    Grid: (tiles of BO, tiles of BT).
    """
    o_o = tl.program_id(0) * BO + tl.arange(0, BO)
    o_t = tl.program_id(1) * BT + tl.arange(0, BT)
    m_o = o_o < pairs
    m_t = o_t < taps
    acc = tl.zeros((BO, BT), tl.float32)
    for ring in tl.static_range(NUM_RINGS):
        # [BO]
        b_w = tl.load(p_w + o_o.to(tl.int64) * NUM_RINGS + ring, mask=m_o, other=0.0).to(tl.float32)
        # [BT]
        b_m = tl.load(p_table + ring * taps + o_t, mask=m_t, other=0.0)
        # A tap outside a ring takes nothing from it, not even a NaN or an infinity.
        acc += tl.where(b_m[None, :] != 0, b_w[:, None] * b_m[None, :], 0.0)
    # [BO, BT]
    p_tile = p_dense + o_o.to(tl.int64)[:, None] * taps + o_t[None, :]
    tl.store(p_tile, acc.to(p_dense.dtype.element_ty), mask=m_o[:, None] & m_t[None, :])


@triton.jit
def ring_collapse_kernel(p_dense, p_table, p_w, pairs, taps, NUM_RINGS: tl.constexpr, BO: tl.constexpr,
                             BT: tl.constexpr):  # fmt: skip
    """w[o, b] = sum_t dense[o, t] table[b, t], the adjoint of the expansion. Grid: (tiles of BO, NUM_RINGS)."""
    o_o = tl.program_id(0) * BO + tl.arange(0, BO)
    ring = tl.program_id(1)
    m_o = o_o < pairs
    acc = tl.zeros((BO,), tl.float32)
    for o_first in range(0, taps, BT):
        o_t = o_first + tl.arange(0, BT)
        m_t = o_t < taps
        # [BT]
        b_m = tl.load(p_table + ring * taps + o_t, mask=m_t, other=0.0)
        # [BO, BT]
        p_tile = p_dense + o_o.to(tl.int64)[:, None] * taps + o_t[None, :]
        b_d = tl.load(p_tile, mask=m_o[:, None] & (b_m != 0)[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(b_d * b_m[None, :], axis=1)
    tl.store(p_w + o_o.to(tl.int64) * NUM_RINGS + ring, acc.to(p_w.dtype.element_ty), mask=m_o)
