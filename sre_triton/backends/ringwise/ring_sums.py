"""Ring sums in PyTorch operations, one block of positions at a time.

The ring sum of ring ``b`` is ``(S_b x)[p] = sum_tap M[b, tap] x[stride * p + dilation * tap - padding]``.
There are two ways to it: :mod:`~sre_triton.backends.ringwise.depthwise` convolutions where those are fast, and
:mod:`~sre_triton.backends.ringwise.additions` anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sre_triton.backends.ringwise.additions import ring_sums_by_addition, sum_dtype
from sre_triton.backends.ringwise.blocks import Block
from sre_triton.backends.ringwise.depthwise import has_depthwise, ring_sums_by_depthwise
from sre_triton.geometry.windows import Window

__all__ = ["Part", "ring_sums"]

# Rows of the last dimension shorter than this are too short for vector loops.
_SHORT_ROW = 16


class Part(NamedTuple):
    """Rings ``start`` to ``stop`` of ``total``."""

    start: int
    stop: int
    total: int

    def columns(self, width: int) -> slice:
        """Their columns in a matrix whose ``width`` columns are those of all rings."""
        return slice(width * self.start // self.total, width * self.stop // self.total)


# A product per ring saves the copies that lie side by side, but reads and writes the output for every ring.
# Narrow ring sums are cheaper to copy. Products of half type are rounded, so all rings must be in one.
_NARROW = 16


def ring_sums(
    source: Tensor, window: Window, groups: int, dtype: torch.dtype
) -> Iterator[tuple[Block, Part, Sequence[Tensor]]]:
    """Ring sums of ``source (N, C, *space)``, block by block and some rings at a time.

    Yields:
        A block of ``(N, *output_size)``, which of the window's rings these are, and their sums at the ``P``
        positions of the block: one matrix ``(P, rings * C / groups)`` of type ``dtype`` per group. All rings
        of a block come before the next block. The matrices are overwritten by those that follow.
    """
    if not (source.numel() and all(window.output_size)):
        return
    positions = source.movedim(1, -1)
    channels_inside = source.stride(1) == 1 or window.output_size[-1] < _SHORT_ROW
    rings = len(window.rings)
    if channels_inside and has_depthwise(source, window):
        parts = ring_sums_by_depthwise(positions, window)
        if dtype == sum_dtype(dtype) and source.shape[1] // groups > _NARROW:
            for block, ring, sums in parts:
                matrix = sums.reshape(-1, source.shape[1])
                yield block, Part(ring, ring + 1, rings), matrix.chunk(groups, dim=1) if groups > 1 else (matrix,)
        else:
            yield from _joined(parts, rings, groups)
    else:
        grouped = positions.unflatten(-1, (groups, source.shape[1] // groups))  # type: ignore[no-untyped-call]
        for block, matrices in ring_sums_by_addition(grouped, window, dtype, channels_inside=channels_inside):
            yield block, Part(0, rings, rings), matrices


def _joined(
    parts: Iterator[tuple[Block, int, Tensor]], rings: int, groups: int
) -> Iterator[tuple[Block, Part, Sequence[Tensor]]]:
    """The sums of all rings side by side in one matrix per group."""
    matrix: Tensor | None = None
    for block, ring, sums in parts:
        width = sums.shape[-1] // groups
        if matrix is None:  # the first block is the largest
            matrix = sums.new_empty(math.prod(block.shape) * rings * groups * width)
        rows = matrix[: math.prod(block.shape) * rings * groups * width].view(*block.shape, groups, rings, width)
        rows[..., ring, :] = sums.unflatten(-1, (groups, width))  # type: ignore[no-untyped-call]
        if ring == rings - 1:
            yield block, Part(0, rings, rings), rows.view(-1, groups, rings * width).unbind(1)
