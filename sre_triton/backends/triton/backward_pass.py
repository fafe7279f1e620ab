"""Gradients: what a backward pass needs on given tensors, worked out once."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from sre_triton.backends.triton import routes, tiles, tuning
from sre_triton.backends.triton.convolution import Convolution, packed
from sre_triton.backends.triton.gradient import add_splits_kernel, ring_conv_fused_bwd_kernel_w
from sre_triton.backends.triton.grouped import ring_conv_grouped_bwd_kernel_w
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
from sre_triton.backends.triton.sums_in_memory import Chunk, Product, RingSums
from sre_triton.backends.triton.taps import conv_taps, transpose_taps
from sre_triton.backends.triton.tiles import Problem, Tile
from sre_triton.geometry.conv import ConvSpec

__all__ = ["Apart", "Shared", "WeightGrad"]

_BLOCK, _SPLITS = 64, 32  # elements and splits that one program adds at a time


class _Sum:
    """The sum over splits, rounded once: splits [splits, *shape] float32 to ``shape`` in ``dtype``."""

    def __init__(self, splits: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        numel = math.prod(shape)
        grid = (triton.cdiv(numel, _BLOCK),)
        options = {"BLOCK": _BLOCK, "SPLITS": min(_SPLITS, triton.next_power_of_2(splits)), "num_warps": 4}
        self._launch = Launch(add_splits_kernel, device, grid, (splits, numel), options)

    def __call__(self, partial_sums: Tensor) -> Tensor:
        grad = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        self._launch(partial_sums, grad)
        return grad


class WeightGrad:
    """The gradient in the ring weights, ``(Co, Ci / groups, rings)`` in the dtype of x.

    Deterministic: partial sums in float32, added in a fixed order. Called with tensors like those that it was made
    for.

    Args:
        x, grad_y: the first such tensors.
    """

    def __init__(self, x: Tensor, grad_y: Tensor, spec: ConvSpec) -> None:
        groups = spec.groups
        c_in, c_out = x.shape[1] // groups, grad_y.shape[1] // groups
        self._shape = (grad_y.shape[1], c_in, spec.geometry.num_rings)
        self._dtype, self._device = x.dtype, x.device
        self._spec, self._splits = spec, 0
        self._converts_x, self._converts_g = not is_dense(x), not is_dense(grad_y)
        source, factor = as_ndhwc(x), as_ndhwc(grad_y)
        self._launch: Launch | None = None
        self._product: Product | None = None
        if not math.prod(self._shape) or not factor.numel():
            return
        taps = conv_taps(spec).taps
        self._problem = kernel_problem(source, taps, stride_of(spec), groups, c_in, c_out, factor.shape)
        if tiles.is_narrow(groups, c_in, c_out):
            self._choose("narrow_grad", source, factor, self._narrow)
        elif routes.fused_grad_tile(self._problem) is not None:
            self._choose("fused_grad", source, factor, self._fused)
        else:
            sums = RingSums(source, conv_taps(spec), stride_of(spec), spec, tuple(factor.shape))
            strides = (c_out * c_in * self._shape[2], self._shape[2], c_in * self._shape[2])
            self._product = Product(sums, source, factor, strides, math.prod(self._shape))
            self._splits = self._product.splits
        if self._product is not None or self._splits > 1:
            self._sum = _Sum(self._splits, self._shape, self._dtype, self._device)

    def __call__(self, x: Tensor, grad_y: Tensor) -> Tensor:
        if self._converts_x:
            x = as_ndhwc(x)
        if self._converts_g:
            grad_y = as_ndhwc(grad_y)
        if self._product is not None:
            return self._sum(self._product.partial_sums(x, grad_y))
        if self._launch is None:  # no pixel
            return torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        grad = self._room(self._splits)
        self._launch(x, grad_y, grad)
        return grad if self._splits == 1 else self._sum(grad)

    def _room(self, splits: int) -> Tensor:
        """The gradient itself, or one in float32 for each split."""
        if splits == 1:
            return torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return torch.empty((splits, *self._shape), dtype=torch.float32, device=self._device)

    def _choose(self, kind: str, x: Tensor, g: Tensor, prepare: Any) -> None:
        def attempt(tile: Tile, warmup: bool) -> Any:
            launch, splits = prepare(x, g, tile)
            return as_started(launch, (x, g, self._room(splits)), warmup)

        self._launch, self._splits = prepare(x, g, tuning.choose(kind, self._problem, attempt))

    def _strides(self, splits: int) -> tuple[int, int, int]:
        """Of a split, an input and an output channel."""
        c_out, c_in, rings = self._shape
        return (0 if splits == 1 else c_out * c_in * rings, rings, c_in * rings)

    def _narrow(self, x: Tensor, g: Tensor, tile: Tile) -> tuple[Launch, int]:
        (taps, origin), problem, channels = conv_taps(self._spec), self._problem, g.shape[-1]
        num_y, num_x = row_tiles(g.shape[2], tile, taps, problem.stride[1]), triton.cdiv(g.shape[3], tile.columns)
        num_blocks, num_c = g.shape[0] * g.shape[1] * num_y * num_x, triton.cdiv(channels, tile.c_out)
        splits = tiles.reduction_splits(num_blocks, num_c * problem.c_in, problem.device)
        sizes = (
            *x.shape[1:4], *g.shape[1:4], problem.groups, problem.c_in, problem.c_out, *origin, *self._strides(splits),
            num_blocks, triton.cdiv(num_blocks, splits), num_y, num_x,
        )  # fmt: skip
        options = options_of_sums(
            taps, problem.stride, tile, x.dtype, BC=tile.c_out, EVEN_C=channels % tile.c_out == 0
        )  # fmt: skip
        grid = (num_c, problem.c_in, splits)
        return Launch(ring_conv_grouped_bwd_kernel_w, x.device, grid, sizes, options), splits

    def _fused(self, x: Tensor, g: Tensor, tile: Tile) -> tuple[Launch, int]:
        (taps, origin), problem = conv_taps(self._spec), self._problem
        num_y, num_x = row_tiles(g.shape[2], tile, taps, problem.stride[1]), triton.cdiv(g.shape[3], tile.columns)
        num_blocks = g.shape[0] * g.shape[1] * num_y * num_x
        num_n, num_k = triton.cdiv(problem.c_out, tile.c_out), triton.cdiv(problem.c_in, tile.c_in)
        splits = routes.fused_grad_splits(problem, tile)
        sizes = (
            *x.shape[1:4], *g.shape[1:4], problem.groups, problem.c_in, problem.c_out, *origin, *self._strides(splits),
            num_blocks, triton.cdiv(num_blocks, splits), num_y, num_x, num_n,
        )  # fmt: skip
        options = options_of_sums(
            taps, problem.stride, tile, x.dtype, BN=tile.c_out, BK=tile.c_in,
            EVEN_K=problem.c_in % tile.c_in == 0, PRECISION=precision(x.dtype),
        )  # fmt: skip
        grid = (num_k * num_n, problem.groups, splits)
        return Launch(ring_conv_fused_bwd_kernel_w, x.device, grid, sizes, options), splits


class Apart:
    """Both gradients, each by kernels of its own: ``(grad_x, grad_weight)``."""

    def __init__(self, grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> None:
        self._converts_g, self._converts_x = not is_dense(grad_y), not is_dense(x)
        padding = spec.output_padding(x.shape[2:], grad_y.shape[2:])
        g = _dense(grad_y) if self._converts_g else grad_y
        self._grad_x = Convolution(g, weight, None, spec, output_padding=padding, like=x)
        self._grad_weight = WeightGrad(_dense(x) if self._converts_x else x, g, spec)

    def __call__(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self._converts_g:
            grad_y = _dense(grad_y)
        if self._converts_x:
            x = _dense(x)
        return self._grad_x(grad_y, weight), self._grad_weight(x, grad_y)


def _dense(x: Tensor) -> Tensor:
    """``(N, C, *space)`` with the memory of [N, D, H, W, C]."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class Shared:
    """Both gradients at stride 1 from the ring sums of ``grad_y``, formed once: ``(grad_x, grad_weight)``."""

    def __init__(self, grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> None:
        self._shape, self._strides = x.shape, new_strides(x, x.shape)
        self._weight_shape = tuple(weight.shape)
        self._dtype, self._device = x.dtype, x.device
        self._converts_g, self._converts_x = not is_dense(grad_y), not is_dense(x)
        g, factor = as_ndhwc(grad_y), as_ndhwc(x)
        out = channels_inner(torch.empty_strided(self._shape, self._strides, device="meta"))
        self._is_dense = out.is_contiguous()
        placed = transpose_taps(spec, (0, 0, 0))
        self._sums = RingSums(g, placed, (1, 1, 1), spec, tuple(factor.shape))
        c_in, rings = weight.shape[1], weight.shape[2]
        self._product = Product(self._sums, g, factor, (0, c_in * rings, rings), weight.numel())
        self._sum = _Sum(max(1, self._product.splits), self._weight_shape, weight.dtype, self._device)

    def __call__(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        grad_x = torch.empty_strided(self._shape, self._strides, dtype=self._dtype, device=self._device)
        if not self._product.splits:  # no pixel
            return grad_x, torch.zeros(self._weight_shape, dtype=self._dtype, device=self._device)
        g = as_ndhwc(grad_y) if self._converts_g else channels_inner(grad_y)
        factor = as_ndhwc(x) if self._converts_x else channels_inner(x)
        out = channels_inner(grad_x)
        target = out if self._is_dense else torch.empty_like(out, memory_format=torch.contiguous_format)
        rows = target.flatten(0, 3)
        # [1, rings, c_out, c_in] -> [rings * c_out, c_in]
        w = packed(weight, 1, transposed=True).flatten(0, 2)

        def multiply(chunk: Chunk, s: Tensor) -> None:
            torch.mm(s.flatten(1), w, out=rows[chunk.first : chunk.last])

        grad = self._sum(self._product.partial_sums(g, factor, multiply))
        if target is not out:
            out.copy_(target)
        return grad_x, grad


def shares(problem: Problem) -> bool:
    """Whether both gradients should use one set of ring sums, which go through memory (``problem`` is the forward
    one): not where the weight gradient needs no sums in memory, which takes three launches in all."""
    return tiles.shares_ring_sums(problem) and routes.fused_grad_tile(problem) is None
