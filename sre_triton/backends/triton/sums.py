"""Device functions shared by the kernels: ring sums of a tile, formed in registers.

A tile is R output rows of BM columns and BK channels. The kernel *marches* over the input rows that the
tile needs. Each is loaded once per column shift; columns of equal weight are added first, and the results
are scattered into the ring sums of every output row that the input row serves. `sums` is a flat tuple of
R * B tensors [BM, BK], ring-major.
"""

import triton
import triton.language as tl

from sre_triton.backends.triton.taps import (
    column_offset,
    feeds,
    group_size,
    is_first,
    is_first_group,
    is_step_used,
    needs_group,
    num_groups,
    num_planes,
    num_rings,
    num_steps,
    plane_offset,
    row_step,
    row_unit,
    tap_weight,
)


@triton.jit
def is_within(position, end):
    """0 <= position < end, by one unsigned comparison."""
    return tl.cast(position, tl.uint32) < tl.cast(end, tl.uint32)


@triton.jit
def pixels_of_row(o_col, width, is_inside):
    """Which columns lie in the image: none of a row outside of it.

    The condition of the row moves the end. As a mask of its own it would be broadcast, which makes integers of it in
    Triton's interpreter.
    """
    return o_col < tl.where(is_inside, width, 0)


@triton.jit
def split_index(index, size):
    """(index % size, index // size); unsigned division is the cheaper one."""
    index = tl.cast(index, tl.uint32)
    size = tl.cast(size, tl.uint32)
    return tl.cast(index % size, tl.int32), tl.cast(index // size, tl.int32)


@triton.jit
def first_row(i_y, TAPS: tl.constexpr, STRIDE: tl.constexpr, R: tl.constexpr):
    """First output row of a tile; its R rows are `row_step` apart, so tiles interleave."""
    return i_y // row_step(TAPS, STRIDE) * (R * row_step(TAPS, STRIDE)) + i_y % row_step(TAPS, STRIDE)


@triton.jit
def load_column_group(
    p_row,
    row_end,
    o_pixel,
    m_c,
    channels,
    TAPS: tl.constexpr,
    group: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
):
    """Sum of the columns of one group of one input row, [BM, BK]."""
    total = tl.zeros(o_pixel.shape, ROW_DTYPE)
    for member in tl.static_range(group_size(TAPS, group)):
        o_tile = o_pixel + column_offset(TAPS, group, member) * channels
        # A pixel left or right of the row has its address outside the row.
        m_x = is_within(o_tile, row_end)
        # [BM, BK]
        b_x = tl.load(p_row + o_tile, mask=m_x if EVEN_K else m_x & m_c[None, :], other=0.0).to(ROW_DTYPE)
        if member == 0:
            total = b_x
        else:
            total += b_x
    return total


@triton.jit
def row_sum(
    columns,
    TAPS: tl.constexpr,
    plane: tl.constexpr,
    step: tl.constexpr,
    STRIDE: tl.constexpr,
    row: tl.constexpr,
    ring: tl.constexpr,
):
    """What one input row adds to one ring of one output row."""
    total = columns[0]
    for group in tl.static_range(num_groups(TAPS)):
        if tap_weight(TAPS, plane, step, STRIDE, row, ring, group) != 0:
            b_term = columns[group]
            if tap_weight(TAPS, plane, step, STRIDE, row, ring, group) != 1:
                b_term = (b_term * tap_weight(TAPS, plane, step, STRIDE, row, ring, group)).to(b_term.dtype)
            if is_first_group(TAPS, plane, step, STRIDE, row, ring, group):
                total = b_term
            else:
                total += b_term
    return total


@triton.jit
def ring_sums(
    p_x,
    o_z,
    o_y,
    o_pixel,
    m_c,
    depth,
    height,
    pitch,
    row_end,
    channels,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROW_DTYPE: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
):
    """Ring sums of R output rows, a tuple of R * B tensors [BM, BK] in SUM_DTYPE.

    p_x is the image at its first channel, o_pixel [BM, BK] the offsets within a row of the tile's input pixels
    and channels, (o_z, o_y) the input plane and row of the first tap of the first output row. A row has `pitch`
    elements, of which `row_end` remain from p_x on. STRIDE is the `row_stride` of the tile.
    """
    unused = tl.zeros(o_pixel.shape, ROW_DTYPE)
    sums = ()
    for _ in tl.static_range(R * num_rings(TAPS)):
        sums = sums + (unused.to(SUM_DTYPE),)
    for plane in tl.static_range(num_planes(TAPS)):
        i_z = o_z + plane_offset(TAPS, plane)
        p_plane = p_x + (i_z.to(tl.int64) * height + o_y) * pitch
        for step in tl.static_range(num_steps(TAPS, STRIDE, R)):
            if is_step_used(TAPS, plane, step, STRIDE, R):
                is_inside = is_within(i_z, depth) & is_within(o_y + step * row_unit(TAPS), height)
                p_row = p_plane + (step * row_unit(TAPS)) * pitch.to(tl.int64)
                i_end = tl.where(is_inside, row_end, 0)
                columns = ()
                for group in tl.static_range(num_groups(TAPS)):
                    b_group = unused
                    if needs_group(TAPS, plane, step, STRIDE, R, group):
                        b_group = load_column_group(
                            p_row, i_end, o_pixel, m_c, channels, TAPS, group, EVEN_K, ROW_DTYPE
                        )
                    columns = columns + (b_group,)
                updated = ()
                for i in tl.static_range(R * num_rings(TAPS)):
                    b_sum = sums[i]
                    if feeds(TAPS, plane, step, STRIDE, i % R, i // R):
                        b_part = row_sum(columns, TAPS, plane, step, STRIDE, i % R, i // R).to(SUM_DTYPE)
                        if is_first(TAPS, plane, step, STRIDE, i % R, i // R):
                            b_sum = b_part
                        else:
                            b_sum += b_part
                    updated = updated + (b_sum,)
                sums = updated
    return sums


@triton.jit
def stack_rows(
    sums,
    first: tl.constexpr,
    R: tl.constexpr,
    RINGS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """RINGS (1 or 2) rings of R rows as one operand [R * BM, RINGS * BK] of a matrix product.

    The last join decides which elements a thread stores side by side. With the ring joined last they are runs
    along BK, and stores into shared memory are 16 bytes wide.
    """
    tiles = ()
    for i in tl.static_range(RINGS * R):
        tiles = tiles + (sums[first * R + i].to(DTYPE),)
    for level in tl.static_range(num_levels(R)):
        joined = ()
        for i in tl.static_range((RINGS * R) >> (level + 1)):
            b_pair = tl.permute(tl.join(tiles[2 * i], tiles[2 * i + 1]), (2, 0, 1))
            joined = joined + (tl.reshape(b_pair, (BM << (level + 1), BK)),)
        tiles = joined
    # No early return: the compiler would go on to what follows it.
    if RINGS == 1:
        # The identity, for its layout: the last join is one along BK.
        b_even, b_odd = tl.split(tl.reshape(tiles[0], (R * BM, BK // 2, 2)))
        operand = tl.reshape(tl.join(b_even, b_odd), (R * BM, BK))
    else:
        operand = tl.reshape(tl.permute(tl.join(tiles[0], tiles[1]), (0, 2, 1)), (R * BM, 2 * BK))
    return operand


@triton.constexpr_function
def num_levels(rows):
    """Halvings from ``rows`` to one."""
    return rows.bit_length() - 1
