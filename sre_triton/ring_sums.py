"""Ring sums in PyTorch operations, one block of positions at a time.

The ring sum of ring ``b`` is ``(S_b x)[p] = sum_tap M[b, tap] x[stride * p + dilation * tap - padding]``.
It is computed by the additions of a :mod:`schedule <sre_triton.schedule>`.

Whole-tensor temporaries would cost more than the additions: they miss the cache, and their pages go
back to the system on every free. The schedule therefore runs on one block of output positions at a
time, in scratch memory that is allocated once per call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from sre_triton.schedule import Offset, Operand, Schedule

__all__ = ["Block", "Window", "ring_sums", "sum_dtype"]


@dataclass(frozen=True)
class Window:
    """Where the taps of an output position lie in the input.

    Tap ``t`` of output position ``p`` reads position ``stride * p + dilation * (half + t) + origin`` of
    the input, after ``upsampling - 1`` zeros have been put between its neighbours. What lies outside is 0.
    """

    rings: tuple[int, ...]
    schedule: Schedule
    half: Offset
    origin: Offset
    stride: Offset
    dilation: Offset
    upsampling: Offset
    output_size: Offset

    def padded_size(self, output_size: Sequence[int]) -> tuple[int, ...]:
        """Size of the part of the padded input that a block of outputs reads."""
        return tuple(
            (n - 1) * s + 2 * d * h + 1
            for n, s, d, h in zip(output_size, self.stride, self.dilation, self.half, strict=True)
        )


@dataclass(frozen=True)
class Block:
    """A box of output positions: images and positions within them."""

    corner: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, positions: Tensor) -> Tensor:
        """The block's view of an activation ``(N, *space, ...)``."""
        return _box(positions, self.corner, self.shape)


def _box(tensor: Tensor, corner: Sequence[int], shape: Sequence[int], steps: Sequence[int] | None = None) -> Tensor:
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


# Scratch elements per thread: blocks large enough to hide the cost of a PyTorch call, small enough for
# the buffers that are live together to stay in the cache. Accelerators need no cache, only few calls.
_CPU_SCRATCH = 3 << 18
_OTHER_SCRATCH = 1 << 26
# Rows of the last dimension shorter than this are too short for vector loops.
_SHORT_ROW = 16


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which ring sums are added up: half precision types would lose digits at every tap."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def ring_sums(
    source: Tensor, window: Window, groups: int, dtype: torch.dtype
) -> Iterator[tuple[Block, Sequence[Tensor]]]:
    """Ring sums of ``source (N, C, *space)``, block by block.

    Yields:
        A block of ``(N, *output_size)`` and the ring sums at its ``P`` positions: one matrix ``(P, rings *
        C / groups)`` of type ``dtype`` per group. The matrices are overwritten by the next block.
    """
    channels = (groups, source.shape[1] // groups)
    positions = source.movedim(1, -1).unflatten(-1, channels)  # type: ignore[no-untyped-call]
    channels_inside = source.stride(1) == 1 or window.output_size[-1] < _SHORT_ROW
    grid = (source.shape[0], *window.output_size)
    block = _block_shape(grid, window, source)
    if not (all(block) and source.shape[1]):
        return
    memory = _Memory(positions, window, block, dtype, channels_inside)
    workspaces: dict[tuple[int, ...], _Workspace] = {}
    for corner in itertools.product(*(range(0, n, b) for n, b in zip(grid, block, strict=True))):
        shape = tuple(min(b, n - c) for b, n, c in zip(block, grid, corner, strict=True))
        if shape not in workspaces:
            workspaces[shape] = _Workspace(memory, window, shape)
        workspaces[shape].fill(positions, corner)
        for step in workspaces[shape].steps:
            step()
        yield Block(corner, shape), workspaces[shape].matrices


def _block_shape(grid: Sequence[int], window: Window, source: Tensor) -> tuple[int, ...]:
    """Images and positions per image that are worked on together."""
    block = list(grid)
    scratch = _CPU_SCRATCH * torch.get_num_threads() if source.device.type == "cpu" else _OTHER_SCRATCH
    per_position = source.shape[1] * (len(window.schedule.levels) + window.schedule.num_rings)
    budget = max(1, scratch // max(1, per_position))
    # Splitting an image makes neighbours read the same halo; splitting its rows also shortens vector loops.
    reluctance = [1] * (len(block) - 1) + [32]
    while math.prod(block) > budget:
        if block[0] > 1:
            split = 0
        else:
            split = max(range(1, len(block)), key=lambda d: (block[d] > 1) * block[d] / reluctance[d])
        block[split] = -(-block[split] // 2)
    return tuple(block)


class _Memory:
    """One scratch allocation for all blocks of a call, large enough for blocks of shape ``block``."""

    def __init__(
        self, positions: Tensor, window: Window, block: tuple[int, ...], dtype: torch.dtype, channels_inside: bool
    ) -> None:
        self.channels = tuple(positions.shape[-2:])
        self.channels_inside = channels_inside
        sizes = [math.prod(_extent(window, block, level)) for level in window.schedule.levels]
        self.sizes = [-(-n * math.prod(self.channels) // 16) * 16 for n in sizes]
        self.scratch = positions.new_empty(sum(self.sizes), dtype=sum_dtype(positions.dtype))
        matrix_size = math.prod(block) * window.schedule.num_rings * math.prod(self.channels)
        self.matrix = positions.new_empty(matrix_size, dtype=dtype)
        self.filled: tuple[tuple[int, ...], ...] = ()  # target and size of the last fill, and its buffer's shape


class _Workspace:
    """A schedule's steps, bound to the scratch memory for blocks of one shape.

    All views have the dimensions ``(N, *space, groups, channels)``, whichever way they lie in memory.
    """

    def __init__(self, memory: _Memory, window: Window, shape: tuple[int, ...]) -> None:
        self._memory = memory
        self._window = window
        groups, channels = memory.channels
        rings = window.schedule.num_rings
        size = math.prod(shape) * groups * rings * channels
        if memory.channels_inside:
            matrix = memory.matrix[:size].view(*shape, groups, rings, channels)
            self.matrices = matrix.view(-1, groups, rings * channels).unbind(1)
            ring_views = matrix.unbind(-2)
        else:
            matrix = memory.matrix[:size].view(groups, rings, channels, *shape)
            self.matrices = matrix.view(groups, rings * channels, -1).transpose(1, 2).unbind(0)
            ring_views = matrix.movedim((0, 2), (-2, -1)).unbind(0)
        buffers = [
            self._carve(part, _extent(window, shape, level))
            for part, level in zip(torch.split(memory.scratch, memory.sizes), window.schedule.levels, strict=True)
        ]
        self._padded = buffers[0]
        self.steps: list[Callable[[], object]] = []

        @cache
        def view(operand: Operand, level: int) -> Tensor:
            """A buffer as it is seen from a sum of a higher level."""
            seen, own = buffers[operand.buffer], window.schedule.levels[operand.buffer]
            corner, size, stride = [0] * len(shape), list(seen.shape[: len(shape)]), [1] * len(shape)
            for d in range(own, level):
                corner[d + 1] = window.dilation[d] * (window.half[d] + operand.offset[d])
                size[d + 1], stride[d + 1] = shape[d + 1], window.stride[d]
            return _box(seen, corner, size, stride)

        for step in window.schedule.steps:
            level = window.schedule.levels[step.out]
            out = buffers[step.out]
            rounded = None
            if step.completes is not None:
                ring = ring_views[step.completes]
                out, rounded = (ring, None) if ring.dtype == out.dtype else (out, ring)
            left = None if step.left is None else view(step.left, level)
            self.steps.append(_operation(out, left, view(step.right, level), step.factor))
            if rounded is not None:
                self.steps.append(partial(rounded.copy_, out))

    def _carve(self, part: Tensor, extent: tuple[int, ...]) -> Tensor:
        channels = self._memory.channels
        part = part[: math.prod(extent) * math.prod(channels)]
        if self._memory.channels_inside:
            return part.view(*extent, *channels)
        return part.view(*channels, *extent).movedim((0, 1), (-2, -1))

    def fill(self, positions: Tensor, corner: tuple[int, ...]) -> None:
        """Copy the input that the block at ``corner`` reads into the padded buffer."""
        window = self._window
        images, *space = self._padded.shape[:-2]
        source, target, size = [corner[0]], [0], [images]
        for d, extent in enumerate(space):
            begin = corner[d + 1] * window.stride[d] + window.origin[d]
            step = window.upsampling[d]
            first = max(-(-begin // step), 0)
            last = min((begin + extent - 1) // step, positions.shape[d + 1] - 1)
            source.append(first)
            target.append(first * step - begin)
            size.append(last - first + 1)
        filled = (tuple(target), tuple(size), tuple(self._padded.shape))
        if min(size) <= 0:
            self._padded.zero_()
            self._memory.filled = ()
            return
        if filled != self._memory.filled:
            self._padded.zero_()
            self._memory.filled = filled
            self._inside = _box(self._padded, target, size, (1, *window.upsampling))
        self._inside.copy_(_box(positions, source, size))


def _extent(window: Window, shape: tuple[int, ...], level: int) -> tuple[int, ...]:
    """Images and positions of a sum of this level over a block of this shape."""
    return (*shape[: level + 1], *window.padded_size(shape[1:])[level:])


def _operation(out: Tensor, left: Tensor | None, right: Tensor, factor: float) -> Callable[[], object]:
    """``out = left + factor * right`` as the PyTorch call that does it fastest."""
    if left is None:
        return partial(out.copy_, right) if factor == 1.0 else partial(torch.mul, right, factor, out=out)
    if factor != 1.0:
        return partial(torch.add, left, right, alpha=factor, out=out)
    return partial(out.add_, right) if left.is_set_to(out) else partial(torch.add, left, right, out=out)
