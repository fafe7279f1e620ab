"""Launchers: layouts, grids and arguments of the Triton kernels.

The four functions that every execution path offers, :func:`forward`, :func:`transpose`, :func:`weight_grad`
and :func:`backward`, plus :func:`fused_forward` with its epilogue and the expansion pair. They neither
synchronise with the device nor look at data, so they may be captured into CUDA graphs.

The kernels see every tensor as ``[N, D, H, W, C]``, channels innermost. Inputs in another layout are converted
once on entry; outputs are written straight into the layout of the input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sre_triton.backends.base import Call
from sre_triton.backends.memory_format import new_activation
from sre_triton.backends.triton import tiles, tuning
from sre_triton.backends.triton.expansion import ring_collapse_kernel, ring_expand_kernel
from sre_triton.backends.triton.fused import ring_conv_fwd_kernel
from sre_triton.backends.triton.gradient import ring_conv_bwd_kernel_w, ring_sum_kernel
from sre_triton.backends.triton.grouped import ring_conv_grouped_bwd_kernel_w, ring_conv_grouped_fwd_kernel
from sre_triton.backends.triton.layout import as_ndhwc, channels_inner, device_of
from sre_triton.backends.triton.taps import Placed, Taps, conv_taps, row_step, transpose_taps
from sre_triton.backends.triton.tiles import Blocks, Problem, Tile
from sre_triton.geometry.conv import ConvSpec
from sre_triton.geometry.rings import RingGeometry

__all__ = [
    "backward",
    "collapse",
    "device_refusal",
    "expand",
    "forward",
    "fused_forward",
    "refusal",
    "transpose",
    "weight_grad",
]

ACTIVATIONS = ("relu", "leaky_relu")

_TL_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_MAX_ROW = 2**31 - 1  # offsets within one row of the image are 32-bit, all others 64-bit


def refusal(call: Call) -> str | None:
    """Why the call cannot run here, in words; None if it can."""
    if reason := device_refusal(call.device.type, call.dtype):
        return reason
    spec, width, channels = call.spec, call.input_size[-1], max(call.in_channels, call.out_channels)
    overhang = 2 * max(spec.reach) + 128 * max(spec.stride)  # of taps and tiles beyond the row
    if (width + overhang) * channels > _MAX_ROW:
        return f"one row of the image holds more than {_MAX_ROW} elements"
    return None


def device_refusal(device_type: str, dtype: torch.dtype) -> str | None:
    """The part of :func:`refusal` that holds for every kernel."""
    if triton.knobs.runtime.interpret:
        if device_type != "cpu":
            return f"TRITON_INTERPRET=1 runs kernels on CPU tensors, got a {device_type} tensor"
        if dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 incorrectly"
    elif device_type not in ("cuda", "xpu"):  # ROCm devices are called cuda
        return f"Triton needs a CUDA, ROCm or XPU device, got a {device_type} tensor"
    if dtype not in _TL_DTYPE:
        return f"the kernels take float32, float16 and bfloat16, got {dtype}"
    return None


# The four functions of an execution path --------------------------------------------------------------


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Ring convolution. x ``(N, Ci, *space)``, weight ``(Co, Ci / groups, rings)``, bias ``(Co,)``."""
    problem = forward_problem(x, weight, spec)
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
        tile: launch options; None lets :mod:`sre_triton.backends.triton.tiles` choose.

    Raises:
        ValueError: unknown activation, or a residual that has not the output's shape, dtype and device.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {ACTIVATIONS}, got {activation!r}")
    y = new_activation(x, weight.shape[0], spec.output_size(x.shape[2:]))
    if residual is not None:
        if (residual.shape, residual.dtype, residual.device) != (y.shape, y.dtype, y.device):
            raise ValueError(
                f"residual must be like the output, {tuple(y.shape)} {y.dtype} on {y.device}; "
                f"got {tuple(residual.shape)} {residual.dtype} on {residual.device}"
            )
        if residual.stride() != y.stride():
            residual = torch.empty_like(y).copy_(residual)
        residual = channels_inner(residual)
    stride = _stride(spec)
    epilogue = (bias, residual, activation or "", negative_slope if activation == "leaky_relu" else 0.0)
    _convolve(
        as_ndhwc(x), _forward_weight(weight, spec), channels_inner(y), conv_taps(spec), stride, spec, epilogue, tile
    )
    return y


def two_kernel_forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Ring sums through memory, then one library product: for many channels and large kernels."""
    y = new_activation(x, weight.shape[0], spec.output_size(x.shape[2:]))
    out = channels_inner(y)
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    w = _forward_weight(weight, spec).flatten(0, 2)
    sums = _RingSums(as_ndhwc(x), conv_taps(spec), _stride(spec), spec, out)
    for pixels, s in sums.chunks():
        rows = target.flatten(0, 3)[pixels]
        if bias is None:
            torch.mm(s.flatten(1), w, out=rows)
        else:
            torch.addmm(bias, s.flatten(1), w, out=rows)
    if target is not out:
        out.copy_(target)
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
    y = new_activation(x, weight.shape[1] * spec.groups, spec.transposed_size(x.shape[2:], output_padding))
    source, w, out = as_ndhwc(x), _transposed_weight(weight, spec), channels_inner(y)
    stride = _stride(spec)
    for phase in itertools.product(*map(range, stride)):
        part = out[:, phase[0] :: stride[0], phase[1] :: stride[1], phase[2] :: stride[2]]
        placed = transpose_taps(spec, phase)
        _convolve(source, w, part, placed, (1, 1, 1), spec, (bias, None, "", 0.0), tile)
    return y


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    """Adjoint of :func:`forward` in its weight, ``(Co, Ci / groups, rings)`` in the dtype of x.

    Deterministic: partial sums in float32, added in a fixed order.
    """
    c_in, c_out = x.shape[1] // spec.groups, grad_y.shape[1] // spec.groups
    if tiles.is_narrow(spec.groups, c_in, c_out):
        return _narrow_weight_grad(x, grad_y, spec)
    stride = _stride(spec)
    factor, placed = as_ndhwc(grad_y), conv_taps(spec)
    sums = _RingSums(as_ndhwc(x), placed, stride, spec, factor)
    for pixels, s in sums.chunks():
        sums.add_product(s, factor.flatten(0, 3)[pixels])
    # [groups, rings, c_in, c_out] -> [groups * c_out, c_in, rings]
    grad = sums.product().permute(0, 3, 2, 1).reshape(-1, c_in, spec.geometry.num_rings)
    return grad.to(x.dtype, memory_format=torch.contiguous_format)


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    """Gradients in input and weight.

    At stride 1 both follow from the ring sums of ``grad_y``, formed once, where two products are cheaper than
    a second pass of ring sums.
    """
    problem = forward_problem(x, weight, spec)
    if not tiles.shares_ring_sums(problem) or torch.are_deterministic_algorithms_enabled():
        padding = spec.output_padding(x.shape[2:], grad_y.shape[2:])
        return transpose(grad_y, weight, None, spec, padding), weight_grad(x, grad_y, spec)
    grad_x = new_activation(x, x.shape[1], x.shape[2:])
    factor, out = as_ndhwc(x), channels_inner(grad_x)
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    # [1, rings, c_out, c_in] -> [rings * c_out, c_in]
    w = _transposed_weight(weight, spec).flatten(0, 2)
    sums = _RingSums(as_ndhwc(grad_y), transpose_taps(spec, (0, 0, 0)), (1, 1, 1), spec, factor)
    for pixels, s in sums.chunks():
        torch.mm(s.flatten(1), w, out=target.flatten(0, 3)[pixels])
        sums.add_product(s, factor.flatten(0, 3)[pixels])
    if target is not out:
        out.copy_(target)
    # [1, rings, c_out, c_in] -> [c_out, c_in, rings]
    return grad_x, sums.product()[0].permute(1, 2, 0).to(x.dtype, memory_format=torch.contiguous_format)


def expand(weight: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Dense kernel ``(o, i, *kernel_size)`` of ring weights ``(o, i, rings)``, in ``dtype`` or theirs."""
    o, i, rings = weight.shape
    weight = weight.contiguous()
    dense = weight.new_empty((o, i, *geometry.kernel_size), dtype=dtype or weight.dtype)
    if dense.numel():
        bo, bt = tiles.expansion_blocks(geometry.num_taps)
        grid = (triton.cdiv(o * i, bo), triton.cdiv(geometry.num_taps, bt))
        table = _table(geometry, weight.device)
        _launch(ring_expand_kernel, grid, weight, table, dense, o * i, geometry.num_taps, NUM_RINGS=rings, BO=bo, BT=bt)
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
        _launch(
            ring_collapse_kernel, grid, dense, table, weight, o * i, geometry.num_taps, NUM_RINGS=geometry.num_rings,
            BO=bo, BT=bt,
        )  # fmt: skip
    return weight


# One launch each --------------------------------------------------------------------------------------

Epilogue = tuple[Tensor | None, Tensor | None, str, float]


def _launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *args: Any, warmup: bool = False, **options: Any) -> Any:
    """Start a kernel on the device of x, its first argument, or only compile it. Returns what was compiled, None in
    the interpreter."""
    with device_of(x):
        return kernel.run(x, *args, grid=grid, warmup=warmup, **options)


def _convolve(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    placed: Placed,
    stride: tuple[int, ...],
    spec: ConvSpec,
    epilogue: Epilogue,
    tile: Tile | None,
    warmup: bool = False,
) -> Any:
    """y = act(sum_b W_b (S_b x) + bias + residual) on [N, D, H, W, C] tensors.

    w is ``[groups, rings, c_in, c_out]``; y and the residual may have any strides.
    """
    if y.numel() == 0:
        return None
    groups, rings, c_in, c_out = w.shape
    taps, origin = placed
    n, depth, height, width, _ = y.shape
    problem = _kernel_problem(x, taps, stride, groups, c_in, c_out, y.shape)
    if tile is None:
        tile = tuning.choose("forward", problem, partial(_convolve, x, w, y, placed, stride, spec, epilogue))
    bias, residual, activation, slope = epilogue
    shared = dict(
        TAPS=taps, STRIDE_Z=stride[0], STRIDE_Y=stride[1], STRIDE_X=stride[2], R=tile.rows, BM=tile.columns,
        **_sum_dtypes(x, tile), HAS_BIAS=bias is not None, HAS_RES=residual is not None, ACTIVATION=activation,
        SLOPE=slope, num_warps=tile.warps, num_stages=tile.stages, warmup=warmup,
    )  # fmt: skip
    num_y, num_x = _num_row_tiles(height, tile, taps, stride[1]), triton.cdiv(width, tile.columns)
    sizes = (*x.shape[1:4], depth, height, width, groups, c_in, c_out, *origin, *y.stride(), num_y, num_x)
    if tiles.is_narrow(groups, c_in, c_out):
        # [groups, rings, c_in, c_out] -> [rings, c_in, groups * c_out]
        w = w.permute(1, 2, 0, 3).contiguous()
        num_n = triton.cdiv(groups * c_out, tile.c_out)
        return _launch(
            ring_conv_grouped_fwd_kernel, (n * depth * num_y * num_x * num_n,), x, w, bias, residual, y, *sizes, num_n,
            BC=tile.c_out, EVEN_C=groups * c_out % tile.c_out == 0, **shared,
        )  # fmt: skip
    num_n = triton.cdiv(c_out, tile.c_out)
    return _launch(
        ring_conv_fwd_kernel, (n * depth * num_y * num_x * num_n, groups), x, w, bias, residual, y, *sizes, num_n,
        NUM_WEIGHTS=rings, BN=tile.c_out, BK=tile.c_in, EVEN_K=c_in % tile.c_in == 0, ONE_BLOCK=c_in <= tile.c_in,
        PRECISION=_precision(x), **shared,
    )  # fmt: skip


class _RingSums:
    """Ring sums in memory, a chunk of output pixels at a time, and a product with another factor.

    A chunk stays in the L2 cache between the kernel that writes it and those that read it, and no more of the
    ring sums ever exists.

    Args:
        x: [N, D, H, W, C], what is summed.
        placed, stride: which of its pixels each output pixel sums.
        factor: [n, d, h, w, c]: its pixels are the output pixels, its channels the other side of the product.
    """

    def __init__(self, x: Tensor, placed: Placed, stride: tuple[int, ...], spec: ConvSpec, factor: Tensor) -> None:
        self._x, self._placed, self._stride = x, placed, stride
        self._shape = factor.shape
        self._groups, self._rings = spec.groups, spec.geometry.num_rings
        self._c_x, self._c_u = x.shape[-1] // spec.groups, factor.shape[-1] // spec.groups
        self._problem = _kernel_problem(x, placed.taps, stride, spec.groups, self._c_x, self._c_u, factor.shape)
        self._partial: Tensor | None = None

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """(output pixels, their ring sums [pixels, rings, C])."""
        if math.prod(self._shape[:-1]) == 0:
            return
        tile = tuning.choose("writer", self._problem, self._write_first)
        cuts = self._cuts(tile)
        for first, last in itertools.pairwise(cuts):
            pixels = slice(*(self._first_pixel(tile, cut) for cut in (first, last)))
            s = self._x.new_empty((pixels.stop - pixels.start, self._rings, self._x.shape[-1]))
            self._write(s, tile, first, last)
            yield pixels, s

    def _cuts(self, tile: Tile) -> list[int]:
        """Where chunks begin and end, in bands: tiles of rows that interleave."""
        n, depth, height, width, _ = self._shape
        rows = self._band_rows(tile)
        bands = n * depth * triton.cdiv(height, rows)
        return [*range(0, bands, max(1, tiles.chunk_pixels(self._problem) // (rows * width))), bands]

    def _band_rows(self, tile: Tile) -> int:
        return tile.rows * row_step(self._placed.taps, self._stride[1])

    def _first_pixel(self, tile: Tile, band: int) -> int:
        height, width = self._shape[2:4]
        image, index = divmod(band, triton.cdiv(height, self._band_rows(tile)))
        return (image * height + index * self._band_rows(tile)) * width

    def _write(self, s: Tensor, tile: Tile, first: int, last: int, warmup: bool = False) -> Any:
        x, (taps, origin), shape = self._x, self._placed, self._shape
        channels, step = x.shape[-1], row_step(taps, self._stride[1])
        num_y, num_x = _num_row_tiles(shape[2], tile, taps, self._stride[1]), triton.cdiv(shape[3], tile.columns)
        num_k = triton.cdiv(channels, tile.c_in)
        return _launch(
            ring_sum_kernel, ((last - first) * step * num_x * num_k,), x, s, *x.shape[1:4], *shape[1:4], channels,
            *origin, first * step, num_y, num_x, num_k, TAPS=taps, NUM_WEIGHTS=self._rings, STRIDE_Z=self._stride[0],
            STRIDE_Y=self._stride[1], STRIDE_X=self._stride[2], R=tile.rows, BM=tile.columns, BK=tile.c_in,
            EVEN_K=channels % tile.c_in == 0, **_sum_dtypes(x, tile), num_warps=tile.warps, num_stages=tile.stages,
            warmup=warmup,
        )  # fmt: skip

    def _write_first(self, tile: Tile, warmup: bool) -> Any:
        """Write the first chunk with a tile that is being tried."""
        first, last = self._cuts(tile)[:2]
        s = self._x.new_empty((self._first_pixel(tile, last), self._rings, self._x.shape[-1]))
        return self._write(s, tile, first, last, warmup)

    def add_product(self, s: Tensor, u: Tensor) -> None:
        """Add ``sum_p s[p, b, i] u[p, j]`` of one chunk, u [pixels, c], to the product."""

        def multiply(blocks: Blocks, warmup: bool) -> Any:
            return self._multiply(self._workspace(blocks), s, u, blocks, warmup)

        blocks = tuning.choose("product", self._problem, multiply)
        if self._partial is None:
            self._partial = self._workspace(blocks)
        self._multiply(self._partial, s, u, blocks)

    def _workspace(self, blocks: Blocks) -> Tensor:
        shape = (tiles.product_splits(self._problem, blocks), self._groups, self._rings * self._c_x, self._c_u)
        return self._x.new_zeros(shape, dtype=torch.float32)

    def _multiply(self, partial_sums: Tensor, s: Tensor, u: Tensor, blocks: Blocks, warmup: bool = False) -> Any:
        splits = len(partial_sums)
        per_split = triton.cdiv(triton.cdiv(len(u), splits), blocks.pixels) * blocks.pixels
        num_u = triton.cdiv(self._c_u, blocks.channels)
        num_s = triton.cdiv(self._rings * self._c_x, blocks.rings)
        return _launch(
            ring_conv_bwd_kernel_w, (num_s * num_u, self._groups, splits), s, u, partial_sums, len(u), per_split,
            self._groups, self._c_x, self._c_u, num_u, NUM_WEIGHTS=self._rings, BS=blocks.rings, BU=blocks.channels,
            BP=blocks.pixels, PRECISION=_precision(s), num_warps=blocks.warps, num_stages=blocks.stages, warmup=warmup,
        )  # fmt: skip

    def product(self) -> Tensor:
        """[groups, rings, c_x, c] float32; zero if there was no pixel."""
        shape = (self._groups, self._rings, self._c_x, self._c_u)
        if self._partial is None:
            return self._x.new_zeros(shape, dtype=torch.float32)
        return self._partial.sum(0).view(shape)


def _narrow_weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    """Weight gradient of depthwise and narrow grouped convolutions."""
    groups, rings = spec.groups, spec.geometry.num_rings
    c_in, channels = x.shape[1] // groups, grad_y.shape[1]
    stride = _stride(spec)
    taps, origin = conv_taps(spec)
    source, g = as_ndhwc(x), as_ndhwc(grad_y)
    problem = _kernel_problem(source, taps, stride, groups, c_in, channels // groups, g.shape)

    def partial_sums(tile: Tile, warmup: bool = False) -> tuple[Tensor, Any]:
        num_y, num_x = _num_row_tiles(g.shape[2], tile, taps, stride[1]), triton.cdiv(g.shape[3], tile.columns)
        num_blocks = g.shape[0] * g.shape[1] * num_y * num_x
        num_c = triton.cdiv(channels, tile.c_out)
        splits = tiles.reduction_splits(num_blocks, num_c * c_in, problem.device)
        grad = x.new_empty((splits, rings, c_in, channels), dtype=torch.float32)
        return grad, _launch(
            ring_conv_grouped_bwd_kernel_w, (num_c, c_in, splits), source, g, grad, *source.shape[1:4], *g.shape[1:4],
            groups, c_in, channels // groups, *origin, num_blocks, triton.cdiv(num_blocks, splits), num_y, num_x,
            TAPS=taps, NUM_WEIGHTS=rings, STRIDE_Z=stride[0], STRIDE_Y=stride[1], STRIDE_X=stride[2], R=tile.rows,
            BM=tile.columns, BC=tile.c_out, EVEN_C=channels % tile.c_out == 0, **_sum_dtypes(x, tile),
            num_warps=tile.warps, num_stages=tile.stages, warmup=warmup,
        )  # fmt: skip

    tile = tuning.choose("narrow_grad", problem, lambda tile, warmup: partial_sums(tile, warmup)[1])
    grad, _ = partial_sums(tile)
    # [rings, c_in, groups * c_out] -> [groups * c_out, c_in, rings]
    return grad.sum(0).permute(2, 1, 0).to(x.dtype, memory_format=torch.contiguous_format)


# Layouts, weights and launch constants ----------------------------------------------------------------


def _forward_weight(weight: Tensor, spec: ConvSpec) -> Tensor:
    """(Co, c_in, rings) -> [groups, rings, c_in, c_out]"""
    return weight.reshape(spec.groups, -1, *weight.shape[1:]).permute(0, 3, 2, 1).contiguous()


def _transposed_weight(weight: Tensor, spec: ConvSpec) -> Tensor:
    """(Co, c_in, rings) -> [groups, rings, c_out, c_in]"""
    return weight.reshape(spec.groups, -1, *weight.shape[1:]).permute(0, 3, 1, 2).contiguous()


def _stride(spec: ConvSpec) -> tuple[int, ...]:
    """Along depth, height and width."""
    return (1,) * (3 - spec.ndim) + spec.stride


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
    for switch in (torch.backends.cudnn.conv, torch.backends.cudnn, torch.backends):  # type: ignore[attr-defined]
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


def forward_problem(x: Tensor, weight: Tensor, spec: ConvSpec) -> Problem:
    """The forward convolution as the tile heuristics see it."""
    c_out, c_in = weight.shape[0] // spec.groups, weight.shape[1]
    shape = (x.shape[0], *(1,) * (3 - spec.ndim), *spec.output_size(x.shape[2:]), weight.shape[0])
    return _kernel_problem(x, conv_taps(spec).taps, _stride(spec), spec.groups, c_in, c_out, shape)


def _kernel_problem(
    x: Tensor,
    taps: Taps,
    stride: tuple[int, ...],
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
