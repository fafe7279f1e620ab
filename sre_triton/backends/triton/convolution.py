"""Forward and transposed convolutions: what one needs on given tensors, worked out once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sre_triton.backends.triton import routes, tiles, tuning
from sre_triton.backends.triton.fused import ring_conv_fwd_kernel
from sre_triton.backends.triton.grouped import ring_conv_grouped_fwd_kernel
from sre_triton.backends.triton.layout import as_ndhwc, channels_inner, is_dense, new_strides
from sre_triton.backends.triton.prepared import (
    Launch,
    as_started,
    kernel_problem,
    options_of_sums,
    precision,
    row_tiles,
    stride_of,
)
from sre_triton.backends.triton.sums_in_memory import RingSums
from sre_triton.backends.triton.taps import Placed, conv_taps, transpose_taps
from sre_triton.backends.triton.tiles import Problem, Tile
from sre_triton.geometry.conv import ConvSpec

__all__ = ["Convolution", "Epilogue", "TwoKernels", "packed"]


class Epilogue(NamedTuple):
    """What a kernel does with its sums: ``activation(sums + bias + residual)``."""

    activation: str = ""
    slope: float = 0.0


class _Phase(NamedTuple):
    """One launch, whether it takes packed weights, and the part of the output that it writes: shape, strides and
    offset; None for all of it."""

    launch: Launch
    packs: bool
    part: tuple[tuple[int, ...], tuple[int, ...], int] | None


class Convolution:
    """A convolution or its adjoint in the input, fused: one launch, or one for each phase of a stride.

    Called with tensors like those that it was made for: x ``(N, C, *space)``, the ring weights, bias, residual.

    Args:
        x, weight, bias, residual: the first such tensors; a residual has the strides of the output.
        output_padding: of the transposed convolution; None for the convolution itself.
        tile: launch options; None lets :mod:`sre_triton.backends.triton.tiles` choose.
        like: the output has its layout; None for that of x.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spec: ConvSpec,
        *,
        output_padding: Sequence[int] | None = None,
        epilogue: Epilogue | None = None,
        residual: Tensor | None = None,
        tile: Tile | None = None,
        like: Tensor | None = None,
    ) -> None:
        self._transposed = output_padding is not None
        if output_padding is None:
            self.shape = (x.shape[0], weight.shape[0], *spec.output_size(x.shape[2:]))
        else:
            channels = weight.shape[1] * spec.groups
            self.shape = (x.shape[0], channels, *spec.transposed_size(x.shape[2:], output_padding))
        self.strides = new_strides(x if like is None else like, self.shape)
        self._dtype, self._device = x.dtype, x.device
        self._spec, self._epilogue = spec, epilogue or Epilogue()
        self._converts = not is_dense(x)
        self._phases: tuple[_Phase, ...] = ()
        y = torch.empty_strided(self.shape, self.strides, dtype=x.dtype, device=x.device)
        if y.numel():
            self._phases = tuple(self._prepare(x, weight, bias, residual, y, tile))
        self._packs = any(phase.packs for phase in self._phases)

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        y = torch.empty_strided(self.shape, self.strides, dtype=self._dtype, device=self._device)
        if self._converts:
            x = as_ndhwc(x)
        w = packed(weight, self._spec.groups, self._transposed) if self._packs else weight
        for launch, packs, part in self._phases:
            launch(x, w if packs else weight, bias, residual, y if part is None else y.as_strided(*part))
        return y

    def _prepare(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, y: Tensor, tile: Tile | None
    ) -> list[_Phase]:
        spec, stride = self._spec, stride_of(self._spec)
        source, out = as_ndhwc(x), channels_inner(y)
        if not self._transposed:
            return [_Phase(*self._launch(source, weight, bias, residual, out, conv_taps(spec), stride, tile), None)]
        phases = []
        for phase in itertools.product(*map(range, stride)):
            part = out[:, phase[0] :: stride[0], phase[1] :: stride[1], phase[2] :: stride[2]]
            if part.numel():
                placed = transpose_taps(spec, phase)
                launch = self._launch(source, weight, bias, residual, part, placed, (1, 1, 1), tile)
                where = (tuple(part.shape), part.stride(), int(part.storage_offset()))
                phases.append(_Phase(*launch, None if len(stride) == stride.count(1) else where))
        return phases

    def _launch(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        y: Tensor,
        placed: Placed,
        stride: tuple[int, ...],
        tile: Tile | None,
    ) -> tuple[Launch, bool]:
        """The launch that writes y, and whether it takes packed weights; x and y are [N, D, H, W, C], x dense."""
        groups = self._spec.groups
        c_in, c_out = x.shape[-1] // groups, y.shape[-1] // groups
        problem = kernel_problem(x, placed.taps, stride, groups, c_in, c_out, y.shape)

        def launch(tile: Tile) -> tuple[Launch, Tensor]:
            packs = routes.packs_weights(problem, tile)
            w = packed(weight, groups, self._transposed) if packs else weight
            strides = w.stride() if packs else weight_strides(w, groups, self._transposed)
            return _prepared(problem, tile, x, strides, y, placed, bias, residual, self._epilogue), w

        def attempt(tile: Tile, warmup: bool) -> Any:
            made, w = launch(tile)
            return as_started(made, (x, w, bias, residual, y), warmup)

        made, w = launch(tile or tuning.choose("forward", problem, attempt))
        return made, w is not weight


def _prepared(
    problem: Problem,
    tile: Tile,
    x: Tensor,
    w_strides: tuple[int, ...],
    y: Tensor,
    placed: Placed,
    bias: Tensor | None,
    residual: Tensor | None,
    epilogue: Epilogue,
) -> Launch:
    groups, c_in, c_out = problem.groups, problem.c_in, problem.c_out
    n, depth, height, width, _ = y.shape
    narrow = tiles.is_narrow(groups, c_in, c_out)
    num_y, num_x = row_tiles(height, tile, placed.taps, problem.stride[1]), triton.cdiv(width, tile.columns)
    num_n = triton.cdiv(groups * c_out if narrow else c_out, tile.c_out)
    sizes = (
        *x.shape[1:4], depth, height, width, groups, c_in, c_out, *placed.origin, *y.stride(), *w_strides, num_y, num_x,
        num_n,
    )  # fmt: skip
    options = options_of_sums(
        placed.taps, problem.stride, tile, x.dtype, HAS_BIAS=bias is not None, HAS_RES=residual is not None,
        ACTIVATION=epilogue.activation, SLOPE=epilogue.slope,
    )  # fmt: skip
    if narrow:
        options |= {"BC": tile.c_out, "EVEN_C": groups * c_out % tile.c_out == 0}
        grid: tuple[int, ...] = (n * depth * num_y * num_x * num_n,)
        return Launch(ring_conv_grouped_fwd_kernel, x.device, grid, sizes, options)
    options |= {
        "BN": tile.c_out, "BK": tile.c_in, "EVEN_K": c_in % tile.c_in == 0, "ONE_BLOCK": c_in <= tile.c_in,
        "PRECISION": precision(x.dtype),
    }  # fmt: skip
    return Launch(ring_conv_fwd_kernel, x.device, (n * depth * num_y * num_x * num_n, groups), sizes, options)


# Ring weights as kernels read them: [groups, rings, c_in, c_out] ---------------------------------------


def weight_strides(weight: Tensor, groups: int, transposed: bool) -> tuple[int, ...]:
    """Strides of ``(Co, Ci / groups, rings)`` weights seen so; the adjoint exchanges input and output channels."""
    outer, inner, ring = weight.stride()
    group = weight.shape[0] // groups * outer
    return (group, ring, outer, inner) if transposed else (group, ring, inner, outer)


def packed(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """A copy of the weights in that order."""
    shape = (groups, weight.shape[2], weight.shape[0] // groups, weight.shape[1])
    if not transposed:
        shape = (shape[0], shape[1], shape[3], shape[2])
    seen = weight.as_strided(shape, weight_strides(weight, groups, transposed), weight.storage_offset())
    return torch.empty(shape, dtype=weight.dtype, device=weight.device).copy_(seen)


class TwoKernels:
    """A convolution by ring sums in memory and library products: for many channels and large kernels."""

    def __init__(self, x: Tensor, weight: Tensor, spec: ConvSpec) -> None:
        self.shape = (x.shape[0], weight.shape[0], *spec.output_size(x.shape[2:]))
        self.strides = new_strides(x, self.shape)
        self._dtype, self._device, self._converts = x.dtype, x.device, not is_dense(x)
        y = channels_inner(torch.empty_strided(self.shape, self.strides, device="meta"))
        self._is_dense = y.is_contiguous()
        self._sums = RingSums(as_ndhwc(x), conv_taps(spec), stride_of(spec), spec, tuple(y.shape))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.empty_strided(self.shape, self.strides, dtype=self._dtype, device=self._device)
        out = channels_inner(y)
        target = out if self._is_dense else torch.empty_like(out, memory_format=torch.contiguous_format)
        rows = target.flatten(0, 3)
        w = packed(weight, 1, transposed=False).flatten(0, 2)
        for chunk, s in self._sums.chunks(as_ndhwc(x) if self._converts else x):
            part = rows[chunk.first : chunk.last]
            if bias is None:
                torch.mm(s.flatten(1), w, out=part)
            else:
                torch.addmm(bias, s.flatten(1), w, out=part)
        if target is not out:
            out.copy_(target)
        return y
