"""Blocks of output positions, and the part of the input that each of them reads.

Ring sums are made for one block at a time: as whole tensors they would miss the cache, and their pages
would go back to the system on every free.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from sre_triton.geometry.windows import Window

__all__ = ["Block", "PaddedBlock", "block_shape", "blocks", "box"]


@dataclass(frozen=True)
class Block:
    """A box of output positions: images and positions within them."""

    corner: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, positions: Tensor) -> Tensor:
        """The block's view of an activation ``(N, *space, ...)``."""
        return box(positions, self.corner, self.shape)


def box(tensor: Tensor, corner: Sequence[int], shape: Sequence[int], steps: Sequence[int] | None = None) -> Tensor:
    """``tensor[corner[0] :: steps[0], corner[1] :: steps[1], ...]`` cut to ``shape`` in the leading dimensions.

    One call instead of one per dimension: views are made for every block, and indexing would cost more
    than some of the additions.
    """
    n = len(shape)
    strides = tensor.stride()
    offset = tensor.storage_offset() + sum(c * s for c, s in zip(corner, strides[:n], strict=True))
    if steps is not None:
        strides = tuple(s * step for s, step in zip(strides[:n], steps, strict=True)) + strides[n:]
    return tensor.as_strided((*shape, *tensor.shape[n:]), strides, offset)


def block_shape(grid: Sequence[int], budget: int) -> tuple[int, ...]:
    """Images and positions per image that are worked on together: at most ``budget`` positions."""
    block = list(grid)
    # Splitting an image makes neighbours read the same halo; splitting its rows also shortens vector loops.
    reluctance = [1] * (len(block) - 1) + [32]
    while math.prod(block) > max(1, budget):
        if block[0] > 1:
            split = 0
        else:
            split = max(range(1, len(block)), key=lambda d: (block[d] > 1) * block[d] / reluctance[d])
        block[split] = -(-block[split] // 2)
    return tuple(block)


def blocks(grid: Sequence[int], shape: Sequence[int]) -> Iterator[Block]:
    """The grid of output positions, cut into blocks of this shape."""
    for corner in itertools.product(*(range(0, n, b) for n, b in zip(grid, shape, strict=True))):
        yield Block(corner, tuple(min(b, n - c) for b, n, c in zip(shape, grid, corner, strict=True)))


class PaddedBlock:
    """What a block reads, copied between zeros into memory ``(N, *padded size, ...)`` that is given."""

    def __init__(self, window: Window, memory: Tensor) -> None:
        self.memory = memory
        self._window = window
        self._filled: tuple[list[int], list[int]] | None = None
        self._inside: Tensor | None = None

    def fill(self, positions: Tensor, block: Block, *, clean: bool) -> None:
        """Copies what ``block`` reads of ``positions``.

        Margins that are still zero from the block before are left alone, unless they are not ``clean``.
        """
        window = self._window
        images, *space = self.memory.shape[: len(block.shape)]
        source, target, size = [block.corner[0]], [0], [images]
        for d, extent in enumerate(space):
            begin = block.corner[d + 1] * window.stride[d] + window.origin[d]
            step = window.upsampling[d]
            first = max(-(-begin // step), 0)
            last = min((begin + extent - 1) // step, positions.shape[d + 1] - 1)
            source.append(first)
            target.append(first * step - begin)
            size.append(max(last - first + 1, 0))
        if not clean or self._filled != (target, size):
            self.memory.zero_()
            self._filled = (target, size)
            self._inside = box(self.memory, target, size, (1, *window.upsampling)) if all(size) else None
        if self._inside is not None:
            self._inside.copy_(box(positions, source, size))
