"""Differential invariants as kernels: three taps along each axis and no product of matrices.

They follow sre_triton/invariants/formulas.py operation by operation, whose README has the derivation. They are launched
without fused additions, so that two terms of a sum may change places without changing its last bit: maps turn exactly
on the plane.
"""

import triton
import triton.language as tl

_BOUND = tl.constexpr(2.0**40)  # of a derivative: no product of three overflows
_CORNER = tl.constexpr(1 / 12)

GRADIENT, ANISOTROPY, ISOPHOTE, FLOW = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def _elements(channels, depth, height, width, INNER: tl.constexpr, BLOCK: tl.constexpr):
    """A program's image, its elements of that image in the order of memory and which of them there are, and of each the
    channel, the pixel and its position (z, y, x)."""
    pixels = depth * height * width
    blocks = tl.cdiv(channels * pixels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    if INNER:
        channel, pixel = e % channels, e // channels
    else:
        channel, pixel = e // pixels, e % pixels
    row = pixel // width
    return image, e, e < channels * pixels, channel, pixel, row // height, row % height, pixel % width


@triton.jit
def _in_map(number, channel, pixel, channels, pixels, MAPS: tl.constexpr, INNER: tl.constexpr):
    """Where an image of MAPS times as many channels holds these elements of map ``number``."""
    if INNER:
        return (pixel * MAPS + number) * channels + channel
    return (number * channels + channel) * pixels + pixel


@triton.jit
def _steps(i, size, stride, DILATION: tl.constexpr):
    """From a position to the taps ahead and behind; the border is repeated."""
    return (tl.minimum(i + DILATION, size - 1) - i) * stride, (tl.maximum(i - DILATION, 0) - i) * stride


@triton.jit
def _read(p, at, m):
    return tl.load(p + at, mask=m, other=0.0).to(tl.float32)


@triton.jit
def _clip(value):
    return tl.clamp(value, -_BOUND, _BOUND, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _along(p, at, ahead, behind, m, NDIM: tl.constexpr, CENTER: tl.constexpr):
    """First and second difference along an axis; without CENTER the second one lacks its middle."""
    LENGTHWISE: tl.constexpr = 0.5 * (1 - (NDIM - 1) / 3)
    b_ahead, b_behind = _read(p, at + ahead, m), _read(p, at + behind, m)
    first, second = (b_ahead - b_behind) * LENGTHWISE, b_ahead + b_behind
    if CENTER:
        second = second - 2 * _read(p, at, m)
    return first, second


@triton.jit
def _across(p, at, ahead_a, behind_a, ahead_b, behind_b, m):
    """What the corners of a plane add to the first differences along its axes, and the mixed one."""
    b_pp, b_mm = _read(p, at + ahead_a + ahead_b, m), _read(p, at + behind_a + behind_b, m)
    b_pm, b_mp = _read(p, at + ahead_a + behind_b, m), _read(p, at + behind_a + ahead_b, m)
    u, v = (b_pp - b_mm) * _CORNER, (b_pm - b_mp) * _CORNER
    return u + v, u - v, ((b_pp + b_mm) - (b_pm + b_mp)) * 0.25


@triton.jit
def _derivatives(p, at, z, y, x, m, channels, depth, height, width, NDIM: tl.constexpr, DILATION: tl.constexpr,
                     CENTER: tl.constexpr, INNER: tl.constexpr):  # fmt: skip
    """(g_z, g_y, g_x), (h_zz, h_yy, h_xx), (h_zy, h_zx, h_yx); on the plane those along z are 0."""
    s_x = channels if INNER else 1
    s_y = s_x * width
    ahead_y, behind_y = _steps(y, height, s_y, DILATION)
    ahead_x, behind_x = _steps(x, width, s_x, DILATION)
    g_y, h_yy = _along(p, at, ahead_y, behind_y, m, NDIM, CENTER)
    g_x, h_xx = _along(p, at, ahead_x, behind_x, m, NDIM, CENTER)
    g_z, h_zz, h_zy, h_zx = g_x * 0, g_x * 0, g_x * 0, g_x * 0
    if NDIM == 3:
        ahead_z, behind_z = _steps(z, depth, s_y * height, DILATION)
        g_z, h_zz = _along(p, at, ahead_z, behind_z, m, NDIM, CENTER)
        to_z, to_y, h_zy = _across(p, at, ahead_z, behind_z, ahead_y, behind_y, m)
        g_z, g_y = g_z + to_z, g_y + to_y
        to_z, to_x, h_zx = _across(p, at, ahead_z, behind_z, ahead_x, behind_x, m)
        g_z, g_x = g_z + to_z, g_x + to_x
    to_y, to_x, h_yx = _across(p, at, ahead_y, behind_y, ahead_x, behind_x, m)
    g_y, g_x = g_y + to_y, g_x + to_x
    return (
        (_clip(g_z), _clip(g_y), _clip(g_x)),
        (_clip(h_zz), _clip(h_yy), _clip(h_xx)),
        (_clip(h_zy), _clip(h_zx), _clip(h_yx)),
    )


@triton.jit
def _square_of_gradient(g, NDIM: tl.constexpr):
    if NDIM == 3:
        return g[0] * g[0] + g[1] * g[1] + g[2] * g[2]
    return g[1] * g[1] + g[2] * g[2]


@triton.jit
def _square_of_anisotropy(h, mixed, NDIM: tl.constexpr):
    """Of the eigenvalues' difference on the plane, of the traceless Hessian's norm in space."""
    d_yx = h[1] - h[2]
    if NDIM == 3:
        d_zy, d_zx = h[0] - h[1], h[0] - h[2]
        first = d_zy * d_zy * (1 / 3) + mixed[0] * mixed[0] * 2
        second = d_zx * d_zx * (1 / 3) + mixed[1] * mixed[1] * 2
        return first + second + (d_yx * d_yx * (1 / 3) + mixed[2] * mixed[2] * 2)
    return d_yx * d_yx + mixed[2] * mixed[2] * 4


@triton.jit
def _along_gradient(g, h, mixed, NDIM: tl.constexpr):
    if NDIM == 3:
        total = g[0] * g[0] * h[0] + g[1] * g[1] * h[1] + g[2] * g[2] * h[2]
        return total + 2 * (g[0] * g[1]) * mixed[0] + 2 * (g[0] * g[2]) * mixed[1] + 2 * (g[1] * g[2]) * mixed[2]
    return g[1] * g[1] * h[1] + g[2] * g[2] * h[2] + 2 * (g[1] * g[2]) * mixed[2]


@triton.jit
def _trace(h, NDIM: tl.constexpr):
    if NDIM == 3:
        return h[0] + h[1] + h[2]
    return h[1] + h[2]


@triton.jit
def _root(square, EPS: tl.constexpr):
    return tl.sqrt_rn(square + EPS * EPS)


@triton.jit
def _invariant(g, h, mixed, KIND: tl.constexpr, NDIM: tl.constexpr, EPS: tl.constexpr):
    if KIND == GRADIENT:
        return _root(_square_of_gradient(g, NDIM), EPS) - EPS
    if KIND == ANISOTROPY:
        return _root(_square_of_anisotropy(h, mixed, NDIM), EPS) - EPS
    if KIND == FLOW:
        return _along_gradient(g, h, mixed, NDIM)
    return _square_of_gradient(g, NDIM) * _trace(h, NDIM) - _along_gradient(g, h, mixed, NDIM)


@triton.jit
def invariants_kernel(p_z, p_y, channels, depth, height, width, KINDS: tl.constexpr, DILATIONS: tl.constexpr,
                          NDIM: tl.constexpr, CENTER: tl.constexpr, EPS: tl.constexpr, LARGEST: tl.constexpr,
                          INNER: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """y[n, dilation, kind, c] of z[n, c]. LARGEST cuts off the results, None leaves them as they are.

    Grid: images times blocks of an image's elements.
    """
    MAPS: tl.constexpr = len(KINDS) * len(DILATIONS)
    pixels = depth * height * width
    image, e, m, channel, pixel, z, y, x = _elements(channels, depth, height, width, INNER, BLOCK)
    p_z += image * channels * pixels
    p_y += image * channels * pixels * MAPS
    for i in tl.static_range(len(DILATIONS)):
        g, h, mixed = _derivatives(
            p_z, e, z, y, x, m, channels, depth, height, width, NDIM, DILATIONS[i], CENTER, INNER
        )
        for j in tl.static_range(len(KINDS)):
            value = _invariant(g, h, mixed, KINDS[j], NDIM, EPS)
            if LARGEST is not None:
                value = tl.clamp(value, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
            at = _in_map(i * len(KINDS) + j, channel, pixel, channels, pixels, MAPS, INNER)
            tl.store(p_y + at, value.to(p_y.dtype.element_ty), mask=m)


@triton.jit
def _pulled_back(grad, g, h, mixed, KIND: tl.constexpr, NDIM: tl.constexpr, EPS: tl.constexpr):
    """What one invariant's gradient gives to g, h and mixed."""
    zero = grad * 0
    SHARE: tl.constexpr = 1.0 if NDIM == 2 else 1 / 3
    if KIND == GRADIENT:
        share = tl.div_rn(grad, _root(_square_of_gradient(g, NDIM), EPS))
        return (share * g[0], share * g[1], share * g[2]), (zero, zero, zero), (zero, zero, zero)
    if KIND == ANISOTROPY:
        share = tl.div_rn(grad, _root(_square_of_anisotropy(h, mixed, NDIM), EPS))
        unlike = share * (h[1] - h[2]) * SHARE
        if NDIM == 2:
            return (zero, zero, zero), (zero, unlike, -unlike), (zero, zero, share * mixed[2] * 4)
        zy, zx = share * (h[0] - h[1]) * SHARE, share * (h[0] - h[2]) * SHARE
        c_mixed = (share * mixed[0] * 2, share * mixed[1] * 2, share * mixed[2] * 2)
        return (zero, zero, zero), (zy + zx, unlike - zy, -unlike - zx), c_mixed
    signed = grad if KIND == FLOW else -grad
    twice = 2 * signed
    c_gz = twice * (g[0] * h[0] + g[1] * mixed[0] + g[2] * mixed[1])
    c_gy = twice * (g[1] * h[1] + g[0] * mixed[0] + g[2] * mixed[2])
    c_gx = twice * (g[2] * h[2] + g[0] * mixed[1] + g[1] * mixed[2])
    c_zz, c_yy, c_xx = signed * g[0] * g[0], signed * g[1] * g[1], signed * g[2] * g[2]
    if KIND == ISOPHOTE:
        square, trace = grad * _square_of_gradient(g, NDIM), 2 * grad * _trace(h, NDIM)
        c_gz, c_gy, c_gx = c_gz + trace * g[0], c_gy + trace * g[1], c_gx + trace * g[2]
        c_zz, c_yy, c_xx = c_zz + square, c_yy + square, c_xx + square
    c_mixed = (twice * g[0] * g[1], twice * g[0] * g[2], twice * g[1] * g[2])
    return (c_gz, c_gy, c_gx), (c_zz, c_yy, c_xx), c_mixed


@triton.jit
def _sum(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def _unbound(grad, value):
    """Where a derivative was cut off it does not depend on the map."""
    return tl.where(tl.abs(value) >= _BOUND, 0.0, grad)


@triton.jit
def invariants_cotangents_kernel(p_z, p_grad, p_c, channels, depth, height, width, KINDS: tl.constexpr,
                                     DILATIONS: tl.constexpr, NDIM: tl.constexpr, CENTER: tl.constexpr,
                                     EPS: tl.constexpr, LARGEST: tl.constexpr, INNER: tl.constexpr,
                                     BLOCK: tl.constexpr):  # fmt: skip
    """c[n, dilation, derivative, c], float32: gradients of the derivatives (g by axis, h by axis, mixed by pair) of
    z[n, c] from those of the invariants, grad[n, dilation, kind, c]. Grid: as above."""
    MAPS: tl.constexpr = len(KINDS) * len(DILATIONS)
    PLANES: tl.constexpr = 5 if NDIM == 2 else 9
    ALL: tl.constexpr = PLANES * len(DILATIONS)
    pixels = depth * height * width
    image, e, m, channel, pixel, z, y, x = _elements(channels, depth, height, width, INNER, BLOCK)
    p_z += image * channels * pixels
    p_grad += image * channels * pixels * MAPS
    p_c += image * channels * pixels * ALL
    for i in tl.static_range(len(DILATIONS)):
        g, h, mixed = _derivatives(
            p_z, e, z, y, x, m, channels, depth, height, width, NDIM, DILATIONS[i], CENTER, INNER
        )
        zero = g[2] * 0
        c_g, c_h, c_mixed = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero)
        for j in tl.static_range(len(KINDS)):
            at = _in_map(i * len(KINDS) + j, channel, pixel, channels, pixels, MAPS, INNER)
            grad = _read(p_grad, at, m)
            if LARGEST is not None:
                grad = tl.where(tl.abs(_invariant(g, h, mixed, KINDS[j], NDIM, EPS)) > LARGEST, 0.0, grad)
            to_g, to_h, to_mixed = _pulled_back(grad, g, h, mixed, KINDS[j], NDIM, EPS)
            c_g, c_h, c_mixed = _sum(c_g, to_g), _sum(c_h, to_h), _sum(c_mixed, to_mixed)
        if NDIM == 2:
            found = (c_g[1], c_g[2], c_h[1], c_h[2], c_mixed[2])
            values = (g[1], g[2], h[1], h[2], mixed[2])
        else:
            found = (c_g[0], c_g[1], c_g[2], c_h[0], c_h[1], c_h[2], c_mixed[0], c_mixed[1], c_mixed[2])
            values = (g[0], g[1], g[2], h[0], h[1], h[2], mixed[0], mixed[1], mixed[2])
        for k in tl.static_range(PLANES):
            at = _in_map(i * PLANES + k, channel, pixel, channels, pixels, ALL, INNER)
            tl.store(p_c + at, _unbound(found[k], values[k]), mask=m)


@triton.jit
def _outside(i, size, number, DILATION: tl.constexpr):
    """A position of the padded axis that repeats ``i``, and whether there is one: ``i`` itself, then DILATION ahead of
    the first and as many behind the last."""
    ahead, behind = -number, size - 1 + number - DILATION
    outside = tl.where(number == 0, i, tl.where(number <= DILATION, ahead, behind))
    return outside, (number == 0) | tl.where(number <= DILATION, i == 0, i == size - 1)


@triton.jit
def _inside(q, size, DILATION: tl.constexpr):
    """Whether the taps behind, at and ahead of ``q`` lie on an axis."""
    behind, ahead = q - DILATION, q + DILATION
    return (behind >= 0) & (behind < size), (q >= 0) & (q < size), (ahead >= 0) & (ahead < size)


@triton.jit
def _gathered(p_c, at, inside, step, m, stride, NDIM: tl.constexpr, DILATION: tl.constexpr, CENTER: tl.constexpr):
    """What one position of a padded map gets from the derivatives that read it.

    Args:
        at: its address in the first plane; the position may lie outside.
        inside, step: along each axis which taps lie inside, and how far they are.
        stride: between planes.
    """
    LENGTHWISE: tl.constexpr = 0.5 * (1 - (NDIM - 1) / 3)
    NO: tl.constexpr = 3 - NDIM  # axes that there are not
    total = tl.zeros(at.shape, tl.float32)
    for a in tl.static_range(NO, 3):
        beside = m & inside[(a + 1) % 3][1] & inside[(a + 2) % 3][1]
        if CENTER:
            p_h = p_c + (a - NO + NDIM) * stride
            total -= 2 * tl.load(p_h + at, mask=beside & inside[a][1], other=0.0)
        for s in tl.static_range(-1, 2, 2):
            there, at_a = beside & inside[a][1 - s], at - s * step[a]
            c_g = tl.load(p_c + (a - NO) * stride + at_a, mask=there, other=0.0)
            total += tl.load(p_c + (a - NO + NDIM) * stride + at_a, mask=there, other=0.0) + s * LENGTHWISE * c_g
            for b in tl.static_range(a + 1, 3):
                for t in tl.static_range(-1, 2, 2):
                    corner, at_b = m & inside[3 - a - b][1] & inside[a][1 - s] & inside[b][1 - t], at_a - t * step[b]
                    c_a = tl.load(p_c + (a - NO) * stride + at_b, mask=corner, other=0.0)
                    c_b = tl.load(p_c + (b - NO) * stride + at_b, mask=corner, other=0.0)
                    p_mixed = p_c + (2 * NDIM + (a + b - 1 if NDIM == 3 else 0)) * stride
                    c_mixed = tl.load(p_mixed + at_b, mask=corner, other=0.0)
                    total += _CORNER * (s * c_a + t * c_b) + s * t * 0.25 * c_mixed
    return total


@triton.jit
def invariants_adjoint_kernel(p_c, p_grad, channels, depth, height, width, DILATIONS: tl.constexpr,
                                  NDIM: tl.constexpr, CENTER: tl.constexpr, INNER: tl.constexpr,
                                  BLOCK: tl.constexpr):  # fmt: skip
    """grad[n, c] of the map from the gradients of its derivatives, c[n, dilation, derivative, c]. Grid: as above.

    Each element gathers from the positions whose differences read it; on the border, which is repeated, also from those
    that read its repetitions.
    """
    PLANES: tl.constexpr = 5 if NDIM == 2 else 9
    ALL: tl.constexpr = PLANES * len(DILATIONS)
    pixels = depth * height * width
    image, e, m, channel, pixel, z, y, x = _elements(channels, depth, height, width, INNER, BLOCK)
    p_c += image * channels * pixels * ALL
    p_grad += image * channels * pixels
    s_x = ALL * channels if INNER else 1
    s_y = s_x * width
    stride = channels if INNER else channels * pixels
    on_border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    if NDIM == 3:
        on_border = on_border | (z == 0) | (z == depth - 1)
    has_border = tl.max((m & on_border).to(tl.int32), axis=0)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(len(DILATIONS)):
        ways = 2 * DILATIONS[i] + 1
        more = ways * ways * ways if NDIM == 3 else ways * ways
        for number in range(1 + has_border * (more - 1)):
            q_x, there_x = _outside(x, width, number % ways, DILATIONS[i])
            q_y, there_y = _outside(y, height, number // ways % ways, DILATIONS[i])
            q_z, there_z = z, m
            if NDIM == 3:
                q_z, there_z = _outside(z, depth, number // (ways * ways), DILATIONS[i])
            there = m & there_z & there_y & there_x
            if tl.max(there.to(tl.int32), axis=0) > 0:
                at = _in_map(i * PLANES, channel, pixel, channels, pixels, ALL, INNER)
                at += (q_z - z) * s_y * height + (q_y - y) * s_y + (q_x - x) * s_x
                inside = (_inside(q_z, depth, DILATIONS[i]), _inside(q_y, height, DILATIONS[i]),
                          _inside(q_x, width, DILATIONS[i]))  # fmt: skip
                step = (s_y * height * DILATIONS[i], s_y * DILATIONS[i], s_x * DILATIONS[i])
                total += _gathered(p_c, at, inside, step, there, stride, NDIM, DILATIONS[i], CENTER)
    tl.store(p_grad + e, total.to(p_grad.dtype.element_ty), mask=m)
