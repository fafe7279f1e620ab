"""Ring sums in memory, a chunk of output pixels at a time, and the product that makes a weight gradient of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sre_triton.backends.triton import tiles, tuning
from sre_triton.backends.triton.gradient import ring_conv_bwd_kernel_w, ring_sum_kernel
from sre_triton.backends.triton.prepared import (
    Launch,
    as_started,
    kernel_problem,
    options_of_sums,
    precision,
    row_tiles,
)
from sre_triton.backends.triton.taps import Placed, row_step
from sre_triton.backends.triton.tiles import Blocks, Tile
from sre_triton.geometry.conv import ConvSpec

__all__ = ["Chunk", "Product", "RingSums"]


class Chunk(NamedTuple):
    """Output pixels from ``first`` to before ``last``, and the launch that writes their ring sums."""

    first: int
    last: int
    write: Launch


class RingSums:
    """Ring sums, a chunk of output pixels at a time.

    A chunk stays in the L2 cache between the kernel that writes it and those that read it, and no more of the
    ring sums ever exists.

    Args:
        x: [N, D, H, W, C] dense, what is summed.
        placed, stride: which of its pixels each output pixel sums.
        shape: [n, d, h, w, c] of the output, or of the other factor of a product with the sums.
    """

    def __init__(
        self, x: Tensor, placed: Placed, stride: tuple[int, ...], spec: ConvSpec, shape: tuple[int, ...]
    ) -> None:  # fmt: skip
        self._placed, self._stride, self._shape = placed, stride, shape
        self.rings, self._channels = spec.geometry.num_rings, x.shape[-1]
        c_x, c_u = x.shape[-1] // spec.groups, shape[-1] // spec.groups
        self.problem = kernel_problem(x, placed.taps, stride, spec.groups, c_x, c_u, shape)
        self._chunks: list[Chunk] = []
        if math.prod(shape[:-1]):
            tile = tuning.choose("writer", self.problem, lambda tile, warmup: self._try(x, tile, warmup))
            self._chunks = [self._chunk(x, tile, *cuts) for cuts in itertools.pairwise(self._cuts(tile))]
        self._most = max((chunk.last - chunk.first for chunk in self._chunks), default=0)

    def __len__(self) -> int:
        return len(self._chunks)

    def chunks(self, x: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
        """Every chunk and its ring sums [pixels, rings, C], which the next one overwrites."""
        if not self._chunks:
            return
        room = torch.empty((self._most, self.rings, self._channels), dtype=x.dtype, device=x.device)
        for chunk in self._chunks:
            s = room if chunk.last - chunk.first == self._most else room[: chunk.last - chunk.first]
            chunk.write(x, s)
            yield chunk, s

    def any_sums(self, x: Tensor) -> tuple[Chunk, Tensor]:
        """The first chunk, and memory for its sums that holds anything: to try a product on."""
        shape = (self._chunks[0].last, self.rings, self._channels)
        return self._chunks[0], torch.empty(shape, dtype=x.dtype, device=x.device)

    def sizes(self) -> list[int]:
        """Pixels of every chunk."""
        return [chunk.last - chunk.first for chunk in self._chunks]

    def _try(self, x: Tensor, tile: Tile, warmup: bool) -> Any:
        """Write the first chunk with a tile that is being tried."""
        chunk = self._chunk(x, tile, *self._cuts(tile)[:2])
        s = torch.empty((chunk.last, self.rings, self._channels), dtype=x.dtype, device=x.device)
        return as_started(chunk.write, (x, s), warmup)

    def _cuts(self, tile: Tile) -> list[int]:
        """Where chunks begin and end, in bands: tiles of rows that interleave."""
        n, depth, height, width, _ = self._shape
        rows = self._band_rows(tile)
        bands = n * depth * triton.cdiv(height, rows)
        return [*range(0, bands, max(1, tiles.chunk_pixels(self.problem) // (rows * width))), bands]

    def _band_rows(self, tile: Tile) -> int:
        return tile.rows * row_step(self._placed.taps, self._stride[1])

    def _first_pixel(self, tile: Tile, band: int) -> int:
        height, width = self._shape[2:4]
        image, index = divmod(band, triton.cdiv(height, self._band_rows(tile)))
        return (image * height + index * self._band_rows(tile)) * width

    def _chunk(self, x: Tensor, tile: Tile, first: int, last: int) -> Chunk:
        """The chunk between two cuts."""
        (taps, origin), shape, channels = self._placed, self._shape, self._channels
        step = row_step(taps, self._stride[1])
        num_y, num_x = row_tiles(shape[2], tile, taps, self._stride[1]), triton.cdiv(shape[3], tile.columns)
        num_k = triton.cdiv(channels, tile.c_in)
        sizes = (*x.shape[1:4], *shape[1:4], channels, *origin, first * step, num_y, num_x, num_k)
        options = options_of_sums(
            taps, self._stride, tile, x.dtype, NUM_WEIGHTS=self.rings, BK=tile.c_in, EVEN_K=channels % tile.c_in == 0
        )
        grid = ((last - first) * step * num_x * num_k,)
        launch = Launch(ring_sum_kernel, x.device, grid, sizes, options)
        return Chunk(self._first_pixel(tile, first), self._first_pixel(tile, last), launch)


class Product:
    """``sum_p s[p, b, i] u[p, j]`` over the chunks of ring sums, in the layout of a weight gradient.

    Args:
        sums: where s comes from.
        x, u: what is ring-summed and the other factor, dense.
        strides: of the gradient per split: (group, channel of s, channel of u); its rings are dense.
        numel: of the gradient.
    """

    def __init__(self, sums: RingSums, x: Tensor, u: Tensor, strides: tuple[int, int, int], numel: int) -> None:
        self._sums, self._strides, self._numel, self._device = sums, strides, numel, x.device
        self._channels = u.shape[-1]  # u comes as [n, d, h, w, c] here
        problem = self._problem = sums.problem
        self.splits = 0
        self._launches: list[Launch] = []
        if not len(sums):
            return

        def multiply(blocks: Blocks, warmup: bool) -> Any:
            chunk, s = sums.any_sums(x)
            room = torch.empty((tiles.product_splits(problem, blocks), numel), dtype=torch.float32, device=x.device)
            launch = self._launch(blocks, len(room), chunk.last, is_later=False)
            return as_started(launch, (s, _rows(u, self._channels)[: chunk.last], room), warmup)

        blocks = tuning.choose("product", problem, multiply)
        self.splits = tiles.product_splits(problem, blocks)
        self._launches = [
            self._launch(blocks, self.splits, pixels, is_later=i > 0) for i, pixels in enumerate(sums.sizes())
        ]

    def partial_sums(self, x: Tensor, u: Tensor, visit: Any = None) -> Tensor:
        """[splits, numel] float32, to be added over the splits; ``visit`` sees every chunk and its ring sums."""
        grad = torch.empty((self.splits, self._numel), dtype=torch.float32, device=self._device)
        rows = _rows(u, self._channels)
        for launch, (chunk, s) in zip(self._launches, self._sums.chunks(x), strict=True):
            if visit is not None:
                visit(chunk, s)
            launch(s, rows[chunk.first : chunk.last], grad)
        return grad

    def _launch(self, blocks: Blocks, splits: int, pixels: int, is_later: bool) -> Launch:
        problem = self._problem
        per_split = triton.cdiv(triton.cdiv(pixels, splits), blocks.pixels) * blocks.pixels
        num_u = triton.cdiv(problem.c_out, blocks.channels)
        num_s = triton.cdiv(problem.rings * problem.c_in, blocks.rings)
        sizes = (
            pixels, per_split, int(is_later), problem.groups, problem.c_in, problem.c_out, self._numel, *self._strides,
            num_u,
        )  # fmt: skip
        options = {
            "NUM_WEIGHTS": self._sums.rings, "BS": blocks.rings, "BU": blocks.channels, "BP": blocks.pixels,
            "PRECISION": precision(problem.dtype), "num_warps": blocks.warps, "num_stages": blocks.stages,
        }  # fmt: skip
        grid = (num_s * num_u, problem.groups, splits)
        return Launch(ring_conv_bwd_kernel_w, self._device, grid, sizes, options)


def _rows(u: Tensor, channels: int) -> Tensor:
    """[pixels, channels] of memory that is [n, d, h, w, channels], however ``u`` sees it."""
    return u.as_strided((u.numel() // channels, channels), (channels, 1), u.storage_offset())
