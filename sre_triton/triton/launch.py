"""Launchers: layouts, grids and arguments of the Triton kernels.

The four functions that every execution path offers, :func:`forward`, :func:`transpose`, :func:`weight_grad`
and :func:`backward`, plus :func:`fused_forward` with its epilogue and the expansion pair. They neither
synchronise with the device nor look at data, so they may be captured into CUDA graphs.

The kernels see every tensor as ``[N, D, H, W, C]``, channels innermost. Inputs in another layout are converted
once on entry; outputs are written straight into the layout of the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from sre_triton.rings import RingGeometry
from sre_triton.spec import ConvSpec
from sre_triton.triton import tiles, tuning
from sre_triton.triton.expansion import ring_collapse_kernel, ring_expand_kernel
from sre_triton.triton.fused import ring_conv_fwd_kernel
from sre_triton.triton.gradient import ring_conv_bwd_kernel_w, ring_sum_kernel
from sre_triton.triton.grouped import ring_conv_grouped_bwd_kernel_w, ring_conv_grouped_fwd_kernel
from sre_triton.triton.taps import Placed, Taps, conv_taps, row_step, transpose_taps
from sre_triton.triton.tiles import Problem, Tile

__all__ = [
    "backward",
    "collapse",
    "expand",
    "forward",
    "fused_forward",
    "output_format",
    "refusal",
    "transpose",
    "weight_grad",
]

ACTIVATIONS = ("relu", "leaky_relu")

_TL_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}
_MAX_ROW = 2**31 - 1  # offsets within one row of the image are 32-bit, all others 64-bit


def refusal(x: Tensor, weight: Tensor, spec: ConvSpec) -> str | None:
    """Why this call cannot run here, in words; None if it can."""
    if triton.knobs.runtime.interpret:
        if x.device.type != "cpu":
            return f"TRITON_INTERPRET=1 runs kernels on CPU tensors, got a {x.device.type} tensor"
        if x.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 incorrectly"
    elif x.device.type not in ("cuda", "xpu"):  # ROCm devices are called cuda
        return f"Triton needs a CUDA, ROCm or XPU device, got a {x.device.type} tensor"
    for name, tensor in (("input", x), ("weight", weight)):
        if tensor.dtype not in _TL_DTYPE:
            return f"the kernels take float32, float16 and bfloat16, got a {name} of {tensor.dtype}"
    if x.dtype != weight.dtype:
        return f"input and weight must have one dtype, got {x.dtype} and {weight.dtype}"
    if x.device != weight.device:
        return f"input and weight must be on one device, got {x.device} and {weight.device}"
    reach = max(r * p for r, p in zip((1, *spec.reach), (1, *spec.stride), strict=True))
    if (x.shape[-1] + 2 * reach) * max(x.shape[1], weight.shape[0]) > _MAX_ROW:
        return f"one row of the image holds more than {_MAX_ROW} elements"
    return None


def output_format(x: Tensor) -> torch.memory_format:
    """Memory format of the output for this input: channels_last for channels_last, else contiguous."""
    memory_format = _FORMAT.get(x.dim())
    if memory_format is None or not x.is_contiguous(memory_format=memory_format):
        return torch.contiguous_format
    return memory_format if x.stride(1) == 1 and x.stride(-1) == x.shape[1] else torch.contiguous_format


# The four functions of an execution path --------------------------------------------------------------


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Ring convolution. x ``(N, Ci, *space)``, weight ``(Co, Ci / groups, rings)``, bias ``(Co,)``."""
    size = spec.output_size(x.shape[2:])
    problem = _problem(x, weight, spec, size)
    if tiles.prefers_two_kernels(problem) and not torch.are_deterministic_algorithms_enabled():
        return two_kernel_forward(x, weight, bias, spec)
    return fused_forward(x, weight, bias, spec)


def fused_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Ring convolution with the epilogue ``activation(conv(x) + bias + residual)`` in the same kernel.

    Args:
        activation: None, "relu" or "leaky_relu" (with ``negative_slope``).
        residual: added before the activation; the shape of the output.
        tile: launch options; None lets :mod:`sre_triton.triton.tiles` choose.

    Raises:
        ValueError: unknown activation, or a residual that has not the output's shape, dtype and device.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {ACTIVATIONS}, got {activation!r}")
    y = _empty(x, weight.shape[0], spec.output_size(x.shape[2:]))
    if residual is not None:
        if (residual.shape, residual.dtype, residual.device) != (y.shape, y.dtype, y.device):
            raise ValueError(
                f"residual must be like the output, {tuple(y.shape)} {y.dtype} on {y.device}; "
                f"got {tuple(residual.shape)} {residual.dtype} on {residual.device}"
            )
        if residual.stride() != y.stride():
            residual = torch.empty_like(y).copy_(residual)
        residual = _channels_inner(residual)
    stride = (1,) * (3 - spec.ndim) + spec.stride
    epilogue = (bias, residual, activation or "", negative_slope if activation == "leaky_relu" else 0.0)
    _convolve(
        _dense(x), _forward_weight(weight, spec), _channels_inner(y), conv_taps(spec), stride, spec, epilogue, tile
    )
    return y


def transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    output_padding: Sequence[int],
    *,
    tile: Tile | None = None,
) -> Tensor:
    """Adjoint of :func:`forward` in its input. x ``(N, Co, *space)``, bias ``(Ci,)``.

    Every phase of the output modulo the stride is a stride-1 convolution with its own share of the taps:
    one launch per phase, one altogether at stride 1. No zeros are inserted or multiplied.
    """
    y = _empty(x, weight.shape[1] * spec.groups, spec.transposed_size(x.shape[2:], output_padding))
    dense, w, out = _dense(x), _transposed_weight(weight, spec), _channels_inner(y)
    stride = (1,) * (3 - spec.ndim) + spec.stride
    for phase in itertools.product(*map(range, stride)):
        part = out[:, phase[0] :: stride[0], phase[1] :: stride[1], phase[2] :: stride[2]]
        placed = transpose_taps(spec, phase)
        _convolve(dense, w, part, placed, (1, 1, 1), spec, (bias, None, "", 0.0), tile)
    return y


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    """Adjoint of :func:`forward` in its weight, ``(Co, Ci / groups, rings)`` in the dtype of x.

    Deterministic: partial sums in float32, added in a fixed order.
    """
    c_in, c_out = x.shape[1] // spec.groups, grad_y.shape[1] // spec.groups
    if tiles.is_narrow(spec.groups, c_in, c_out):
        return _narrow_weight_grad(x, grad_y, spec)
    stride = (1,) * (3 - spec.ndim) + spec.stride
    grad, _ = _ring_sum_products(_dense(x), _dense(grad_y), conv_taps(spec), stride, spec, None)
    # [groups, rings, c_in, c_out]
    return grad.permute(0, 3, 2, 1).reshape(-1, c_in, spec.geometry.num_rings).to(x.dtype)


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    """Gradients in input and weight.

    At stride 1 both follow from the ring sums of ``grad_y``, formed once, where two products are cheaper than
    a second pass of ring sums.
    """
    problem = _problem(x, weight, spec, grad_y.shape[2:])
    if not tiles.shares_ring_sums(problem) or torch.are_deterministic_algorithms_enabled():
        padding = spec.output_padding(x.shape[2:], grad_y.shape[2:])
        return transpose(grad_y, weight, None, spec, padding), weight_grad(x, grad_y, spec)
    grad_x = _empty(x, x.shape[1], x.shape[2:])
    # [1, rings, c_out, c_in] -> [rings * c_out, c_in]
    w = _transposed_weight(weight, spec).flatten(0, 2)
    placed = transpose_taps(spec, (0, 0, 0))
    grad, product = _ring_sum_products(_dense(grad_y), _dense(x), placed, (1, 1, 1), spec, w)
    _channels_inner(grad_x).copy_(product)
    # [1, rings, c_out, c_in] -> [c_out, c_in, rings]
    return grad_x, grad[0].permute(1, 2, 0).to(x.dtype, memory_format=torch.contiguous_format)


def expand(weight: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Dense kernel ``(o, i, *kernel_size)`` of ring weights ``(o, i, rings)``, in ``dtype`` or theirs."""
    o, i, rings = weight.shape
    weight = weight.contiguous()
    dense = weight.new_empty((o, i, *geometry.kernel_size), dtype=dtype or weight.dtype)
    if dense.numel():
        bo, bt = tiles.expansion_blocks(geometry.num_taps)
        grid = (triton.cdiv(o * i, bo), triton.cdiv(geometry.num_taps, bt))
        table = _table(geometry, weight.device)
        with _device_of(weight):
            ring_expand_kernel[grid](
                weight, table, dense, o * i, geometry.num_taps, NUM_RINGS=rings, BO=bo, BT=bt
            )  # fmt: skip
    return dense


def collapse(dense: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Adjoint of :func:`expand`: weighted sum of a dense kernel's taps over each ring."""
    o, i = dense.shape[:2]
    dense = dense.contiguous()
    weight = dense.new_empty((o, i, geometry.num_rings), dtype=dtype or dense.dtype)
    if weight.numel():
        bo, bt = tiles.expansion_blocks(geometry.num_taps)
        grid = (triton.cdiv(o * i, bo), geometry.num_rings)
        table = _table(geometry, dense.device)
        with _device_of(dense):
            ring_collapse_kernel[grid](
                dense, table, weight, o * i, geometry.num_taps, NUM_RINGS=geometry.num_rings, BO=bo, BT=bt
            )  # fmt: skip
    return weight


# One launch each --------------------------------------------------------------------------------------

Epilogue = tuple[Tensor | None, Tensor | None, str, float]


def _convolve(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    placed: Placed,
    stride: tuple[int, int, int],
    spec: ConvSpec,
    epilogue: Epilogue,
    tile: Tile | None,
) -> None:
    """y = act(sum_b W_b (S_b x) + bias + residual) on [N, D, H, W, C] tensors.

    w is ``[groups, rings, c_in, c_out]``; y and the residual may have any strides.
    """
    if y.numel() == 0:
        return
    groups, rings, c_in, c_out = w.shape
    taps, origin = placed
    n, depth, height, width, _ = y.shape
    problem = _kernel_problem(x, taps, stride, groups, c_in, c_out, y.shape)
    if tile is None:
        tile = tuning.choose(problem, lambda tile: _convolve(x, w, y, placed, stride, spec, epilogue, tile))
    bias, residual, activation, slope = epilogue
    shared = dict(
        TAPS=taps, STRIDE_Z=stride[0], STRIDE_Y=stride[1], STRIDE_X=stride[2], R=tile.rows, BM=tile.columns,
        **_sum_dtypes(x, tile), HAS_BIAS=bias is not None, HAS_RES=residual is not None, ACTIVATION=activation,
        SLOPE=slope, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    tensors = (x, w, bias, residual, y)
    num_y, num_x = _num_row_tiles(height, tile, taps, stride[1]), triton.cdiv(width, tile.columns)
    sizes = (*x.shape[1:4], depth, height, width, groups, c_in, c_out, *origin, *y.stride(), num_y, num_x)
    if tiles.is_narrow(groups, c_in, c_out):
        # [groups, rings, c_in, c_out] -> [rings, c_in, groups * c_out]
        w = w.permute(1, 2, 0, 3).contiguous()
        num_n = triton.cdiv(groups * c_out, tile.c_out)
        with _device_of(x):
            ring_conv_grouped_fwd_kernel[(n * depth * num_y * num_x * num_n,)](
                x, w, bias, residual, y, *sizes, num_n, BC=tile.c_out,
                EVEN_C=groups * c_out % tile.c_out == 0, **shared,
            )  # fmt: skip
        return
    num_n = triton.cdiv(c_out, tile.c_out)
    with _device_of(x):
        ring_conv_fwd_kernel[(n * depth * num_y * num_x * num_n, groups)](
            *tensors, *sizes, num_n, NUM_WEIGHTS=rings, BN=tile.c_out, BK=tile.c_in,
            EVEN_K=c_in % tile.c_in == 0, ONE_BLOCK=c_in <= tile.c_in, PRECISION=_precision(x), **shared,
        )  # fmt: skip


def _ring_sum_products(
    x: Tensor, u: Tensor, placed: Placed, stride: tuple[int, int, int], spec: ConvSpec, w: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``sum_p (S_b x)[p, i] u[p, j]``, [groups, rings, c_x, c_u] float32, and ``S w``, [*u's pixels, c_w].

    The ring sums of x live at u's pixels. They are formed and used chunk by chunk, so that they stay in the
    L2 cache and never take more memory than that.
    """
    rings, groups = spec.geometry.num_rings, spec.groups
    c_x, c_u = x.shape[-1] // groups, u.shape[-1] // groups
    pixels = u.shape[:-1].numel()
    product = None if w is None else u.new_empty((*u.shape[:-1], w.shape[-1]))
    plan = tiles.gradient_plan(_kernel_problem(x, placed.taps, stride, groups, c_x, c_u, u.shape))
    grad = x.new_zeros((plan.splits, groups, rings * c_x, c_u), dtype=torch.float32)
    for index, (start, stop, row_tiles) in enumerate(_chunks(u.shape, placed.taps, stride[1], plan)):
        s = _write_ring_sums(x, placed, stride, rings, u.shape, plan.tile, row_tiles, stop - start)
        if product is not None:
            torch.mm(s.flatten(1), w, out=product.view(pixels, -1)[start:stop])
        per_split = triton.cdiv(triton.cdiv(stop - start, plan.splits), plan.bp) * plan.bp
        num_u = triton.cdiv(c_u, plan.bu)
        with _device_of(x):
            ring_conv_bwd_kernel_w[(triton.cdiv(rings * c_x, plan.bs) * num_u, groups, plan.splits)](
                s, u.view(pixels, -1)[start:stop], grad, stop - start, per_split, groups, c_x, c_u, num_u,
                NUM_WEIGHTS=rings, BS=plan.bs, BU=plan.bu, BP=plan.bp, ACCUMULATE=index > 0,
                PRECISION=_precision(x), num_warps=plan.warps, num_stages=plan.stages,
            )  # fmt: skip
    return grad.sum(0).view(groups, rings, c_x, c_u), product


def _write_ring_sums(
    x: Tensor,
    placed: Placed,
    stride: tuple[int, int, int],
    rings: int,
    out_shape: torch.Size,
    tile: Tile,
    row_tiles: range,
    pixels: int,
) -> Tensor:
    """Ring sums of x, [pixels, rings, C], at the output pixels of some tiles of rows."""
    taps, origin = placed
    channels = x.shape[-1]
    # A ring without taps here (a phase of a strided adjoint) has no writer.
    allocate = x.new_empty if len(taps.rings) == rings else x.new_zeros
    s = allocate((pixels, rings, channels))
    num_y = _num_row_tiles(out_shape[2], tile, taps, stride[1])
    num_x = triton.cdiv(out_shape[3], tile.columns)
    num_k = triton.cdiv(channels, tile.c_in)
    with _device_of(x):
        ring_sum_kernel[(len(row_tiles) * num_x * num_k,)](
            x, s, *x.shape[1:4], *out_shape[1:4], channels, *origin, row_tiles.start, num_y, num_x, num_k,
            TAPS=taps, NUM_WEIGHTS=rings, STRIDE_Z=stride[0], STRIDE_Y=stride[1], STRIDE_X=stride[2],
            R=tile.rows, BM=tile.columns, BK=tile.c_in, EVEN_K=channels % tile.c_in == 0,
            **_sum_dtypes(x, tile), num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return s


def two_kernel_forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Ring sums through memory, then one library product: for many channels and large kernels."""
    size = spec.output_size(x.shape[2:])
    y = _empty(x, weight.shape[0], size)
    dense, out = _dense(x), _channels_inner(y)
    rings, stride, placed = spec.geometry.num_rings, (1,) * (3 - spec.ndim) + spec.stride, conv_taps(spec)
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    rows = target.view(-1, weight.shape[0])
    plan = tiles.gradient_plan(_kernel_problem(dense, placed.taps, stride, 1, x.shape[1], weight.shape[0], out.shape))
    w = _forward_weight(weight, spec).flatten(0, 2)
    for start, stop, row_tiles in _chunks(out.shape, placed.taps, stride[1], plan):
        s = _write_ring_sums(dense, placed, stride, rings, out.shape, plan.tile, row_tiles, stop - start).flatten(1)
        if bias is None:
            torch.mm(s, w, out=rows[start:stop])
        else:
            torch.addmm(bias, s, w, out=rows[start:stop])
    if target is not out:
        out.copy_(target)
    return y


def _narrow_weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    """Weight gradient of depthwise and narrow grouped convolutions."""
    groups, rings = spec.groups, spec.geometry.num_rings
    c_in, channels = x.shape[1] // groups, grad_y.shape[1]
    stride = (1,) * (3 - spec.ndim) + spec.stride
    taps, origin = conv_taps(spec)
    dense, g = _dense(x), _dense(grad_y)
    problem = _kernel_problem(dense, taps, stride, groups, c_in, channels // groups, g.shape)
    tile = tiles.narrow_grad_tile(problem)
    num_y, num_x = _num_row_tiles(g.shape[2], tile, taps, stride[1]), triton.cdiv(g.shape[3], tile.columns)
    num_blocks = g.shape[0] * g.shape[1] * num_y * num_x
    num_c = triton.cdiv(channels, tile.c_out)
    splits = tiles.reduction_splits(num_blocks, num_c * c_in, problem.device)
    grad = x.new_empty((splits, rings, c_in, channels), dtype=torch.float32)
    with _device_of(x):
        ring_conv_grouped_bwd_kernel_w[(num_c, c_in, splits)](
            dense, g, grad, *dense.shape[1:4], *g.shape[1:4], groups, c_in, channels // groups, *origin,
            num_blocks, triton.cdiv(num_blocks, splits), num_y, num_x, TAPS=taps, NUM_WEIGHTS=rings,
            STRIDE_Z=stride[0], STRIDE_Y=stride[1], STRIDE_X=stride[2], R=tile.rows, BM=tile.columns,
            BC=tile.c_out, EVEN_C=channels % tile.c_out == 0, **_sum_dtypes(x, tile),
            num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    # [rings, c_in, groups * c_out] -> [groups * c_out, c_in, rings]
    return grad.sum(0).permute(2, 1, 0).to(x.dtype, memory_format=torch.contiguous_format)


# Layouts, weights and launch constants ----------------------------------------------------------------


def _channels_inner(x: Tensor) -> Tensor:
    """View of ``(N, C, *space)`` as [N, D, H, W, C], without copying."""
    x = x.movedim(1, -1)
    while x.dim() < 5:
        x = x.unsqueeze(1)
    return x


def _dense(x: Tensor) -> Tensor:
    """[N, D, H, W, C] with dense memory: converted once here unless the input is channels_last."""
    return _channels_inner(x).contiguous()


def _empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=output_format(like))


def _forward_weight(weight: Tensor, spec: ConvSpec) -> Tensor:
    """(Co, c_in, rings) -> [groups, rings, c_in, c_out]"""
    return weight.unflatten(0, (spec.groups, -1)).permute(0, 3, 2, 1).contiguous()


def _transposed_weight(weight: Tensor, spec: ConvSpec) -> Tensor:
    """(Co, c_in, rings) -> [groups, rings, c_out, c_in]"""
    return weight.unflatten(0, (spec.groups, -1)).permute(0, 3, 1, 2).contiguous()


def _sum_dtypes(x: Tensor, tile: Tile) -> dict[str, tl.dtype]:
    native = _TL_DTYPE[x.dtype]
    return {
        "ROW_DTYPE": tl.float32 if tile.sums == "float32" else native,
        "SUM_DTYPE": native if tile.sums == "packed" else tl.float32,
    }


def _precision(x: Tensor) -> str:
    """What PyTorch's own convolutions would do with float32."""
    if x.dtype != torch.float32:
        return "ieee"
    for switch in (torch.backends.cudnn.conv, torch.backends.cudnn, torch.backends):
        if switch.fp32_precision != "none":
            return "tf32" if switch.fp32_precision == "tf32" else "ieee"
    return "ieee"


@lru_cache(maxsize=256)
def _table(geometry: RingGeometry, device: torch.device) -> Tensor:
    """``M[ring, tap]``, a constant of the geometry shared by all layers that have it."""
    return torch.from_numpy(geometry.weights.copy()).to(device=device, dtype=torch.float32)


def _num_row_tiles(height: int, tile: Tile, taps: Taps, stride: int) -> int:
    """Tiles of rows; with a dilation `row_step` of them interleave and come together."""
    step = row_step(taps, stride)
    return triton.cdiv(height, tile.rows * step) * step


def _chunks(shape: torch.Size, taps: Taps, stride: int, plan: tiles.GradientPlan) -> list[tuple[int, int, range]]:
    """Consecutive (first pixel, last pixel + 1, tiles of rows), each of about ``plan.pixels`` pixels."""
    n, depth, height, width, _ = shape
    step = row_step(taps, stride)
    rows = plan.tile.rows * step
    per_slice = triton.cdiv(height, rows)
    total = n * depth * per_slice

    def first_pixel(band: int) -> int:
        i_slice, i_band = divmod(band, per_slice)
        return (i_slice * height + i_band * rows) * width

    cuts = [*range(0, total, max(1, plan.pixels // (rows * width))), total]
    return [(first_pixel(a), first_pixel(b), range(a * step, b * step)) for a, b in itertools.pairwise(cuts)]


def _problem(x: Tensor, weight: Tensor, spec: ConvSpec, size: Sequence[int]) -> Problem:
    """The forward convolution as the tile heuristics see it."""
    c_out, c_in = weight.shape[0] // spec.groups, weight.shape[1]
    shape = (x.shape[0], *(1,) * (3 - spec.ndim), *size, weight.shape[0])
    stride = (1,) * (3 - spec.ndim) + spec.stride
    return _kernel_problem(x, conv_taps(spec).taps, stride, spec.groups, c_in, c_out, shape)


def _kernel_problem(
    x: Tensor,
    taps: Taps,
    stride: tuple[int, int, int],
    groups: int,
    c_in: int,
    c_out: int,
    out_shape: Sequence[int],
) -> Problem:
    return Problem(
        taps=taps,
        stride=stride,
        dtype=x.dtype,
        groups=groups,
        c_in=c_in,
        c_out=c_out,
        batch=out_shape[0] * out_shape[1],
        height=out_shape[2],
        width=out_shape[3],
        device=tiles.device_limits(x.device),
    )


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Make x's device current: a launch goes to the current device, whatever its arguments say."""
    if x.device.type in ("cpu", "meta"):  # interpreted, or recorded without a device
        return nullcontext()
    return torch.get_device_module(x.device).device(x.device)
