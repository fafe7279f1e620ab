"""Ring sums by the additions of a :mod:`schedule <sre_triton.geometry.schedule>`, one PyTorch call for each.

The ring sum of ring ``b`` is ``(S_b x)[p] = sum_tap M[b, tap] x[stride * p + dilation * tap - padding]``. They are made
for one block of positions at a time, in every dimension, dtype and memory layout and on every device. The operands of
a block lie side by side in scratch memory that is allocated once per call and stays in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from sre_triton.backends.ringwise.blocks import Block, PaddedBlock, block_shape, blocks, box
from sre_triton.geometry.schedule import Operand
from sre_triton.geometry.windows import Window

__all__ = ["ring_sums", "sum_dtype"]

# Scratch elements per thread: blocks large enough to hide the cost of a PyTorch call, small enough for
# the buffers that are live together to stay in the cache. Accelerators need no cache, only few calls.
_CPU_SCRATCH = 3 << 18
_OTHER_SCRATCH = 1 << 26
# Rows of the last dimension shorter than this are too short for vector loops: channels are the inner dimension then.
_SHORT_ROW = 16


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which ring sums are added up: half precision types would lose digits at every tap."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def ring_sums(
    source: Tensor, window: Window, groups: int, dtype: torch.dtype
) -> Iterator[tuple[Block, Sequence[Tensor]]]:
    """Ring sums of ``source (N, C, *space)``, block by block.

    Yields:
        A block of ``(N, *output_size)`` and the sums of the window's rings at its ``P`` positions: one matrix
        ``(P, rings * C / groups)`` of type ``dtype`` per group, with channels as the inner dimension of memory or the
        outer one. The matrices are overwritten by the next block.
    """
    if not (source.numel() and all(window.output_size)):
        return
    channels_inside = source.stride(1) == 1 or window.output_size[-1] < _SHORT_ROW
    channels = (groups, source.shape[1] // groups)
    positions = source.movedim(1, -1).unflatten(-1, channels)  # type: ignore[no-untyped-call]
    grid = (source.shape[0], *window.output_size)
    scratch_size = _CPU_SCRATCH * torch.get_num_threads() if source.device.type == "cpu" else _OTHER_SCRATCH
    per_position = source.shape[1] * (len(window.schedule.levels) + window.schedule.num_rings)
    shape = block_shape(grid, scratch_size // per_position)
    largest = _layout(window, shape, channels, channels_inside)
    scratch = source.new_empty((largest.scratch_size,), dtype=sum_dtype(source.dtype))
    matrix = source.new_empty((largest.matrix_size,), dtype=dtype)
    workspaces: dict[tuple[int, ...], _Workspace] = {}
    previous = None
    for block in blocks(grid, shape):
        if block.shape not in workspaces:
            layout = _layout(window, block.shape, channels, channels_inside)
            workspaces[block.shape] = _Workspace(window, layout, scratch, matrix)
        workspace = workspaces[block.shape]
        workspace.padded.fill(positions, block, clean=workspace is previous)
        for step in workspace.steps:
            step()
        yield block, workspace.matrices
        previous = workspace


View = tuple[tuple[int, ...], tuple[int, ...], int]  # size, stride and offset, as as_strided takes them


@dataclass(frozen=True)
class _Layout:
    """Where the operands of a schedule lie in scratch memory, for blocks of one shape.

    All views have the dimensions ``(N, *space, groups, channels)``, whichever way they lie in memory.
    This is data that depends on shapes alone: to make it takes longer than many a small layer.
    """

    padded: View
    matrices: tuple[View, ...]
    steps: tuple[tuple[View, View | None, View, float, View | None], ...]  # out, left, right, factor, ring
    scratch_size: int
    matrix_size: int


@lru_cache(maxsize=512)
def _layout(window: Window, shape: tuple[int, ...], channels: tuple[int, int], channels_inside: bool) -> _Layout:
    """Lays buffers out one after the other, with channels as the innermost or the outermost dimensions."""
    schedule = window.schedule
    extents = [(*shape[: level + 1], *window.padded_size(shape[1:])[level:]) for level in schedule.levels]
    sizes = [-(-math.prod((*extent, *channels)) // 16) * 16 for extent in extents]
    matrix_size = math.prod((*shape, *channels)) * schedule.num_rings

    # Views of tensors without memory say where the same views of the real ones lie.
    parts = torch.split(torch.empty(sum(sizes), device="meta"), sizes)
    matrix = torch.empty(matrix_size, device="meta")
    (groups, width), rings = channels, schedule.num_rings

    def buffer(part: Tensor, extent: tuple[int, ...]) -> Tensor:
        part = part[: math.prod((*extent, groups, width))]
        if channels_inside:
            return part.view(*extent, groups, width)
        return part.view(groups, width, *extent).movedim((0, 1), (-2, -1))

    buffers = [buffer(part, extent) for part, extent in zip(parts, extents, strict=True)]
    if channels_inside:
        matrix = matrix.view(*shape, groups, rings, width)
        matrices = matrix.view(-1, groups, rings * width).unbind(1)
        ring_views = matrix.unbind(-2)
    else:
        matrix = matrix.view(groups, rings, width, *shape)
        matrices = matrix.view(groups, rings * width, -1).transpose(1, 2).unbind(0)
        ring_views = matrix.movedim((0, 2), (-2, -1)).unbind(0)

    def seen(operand: Operand, level: int) -> View:
        """A buffer as it is seen from a sum of a higher level."""
        whole = buffers[operand.buffer]
        corner, size, stride = [0] * len(shape), list(whole.shape[: len(shape)]), [1] * len(shape)
        for d in range(schedule.levels[operand.buffer], level):
            corner[d + 1] = window.dilation[d] * (window.half[d] + operand.offset[d])
            size[d + 1], stride[d + 1] = shape[d + 1], window.stride[d]
        return _view_of(box(whole, corner, size, stride))

    steps = []
    for step in schedule.steps:
        level = schedule.levels[step.out]
        ring = None if step.completes is None else _view_of(ring_views[step.completes])
        left = None if step.left is None else seen(step.left, level)
        steps.append((_view_of(buffers[step.out]), left, seen(step.right, level), step.factor, ring))
    return _Layout(_view_of(buffers[0]), tuple(map(_view_of, matrices)), tuple(steps), sum(sizes), matrix_size)


def _view_of(tensor: Tensor) -> View:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


class _Workspace:
    """A layout in real memory: fill ``padded``, run the ``steps``, read the ``matrices``."""

    def __init__(self, window: Window, layout: _Layout, scratch: Tensor, matrix: Tensor) -> None:
        self.padded = PaddedBlock(window, scratch.as_strided(*layout.padded))
        self.matrices = [matrix.as_strided(*view) for view in layout.matrices]
        self.steps: list[Callable[[], object]] = []
        known: dict[View, Tensor] = {}

        def tensor(view: View) -> Tensor:
            if view not in known:
                known[view] = scratch.as_strided(*view)
            return known[view]

        for out_view, left_view, right_view, factor, ring_view in layout.steps:
            out, rounded = tensor(out_view), None
            if ring_view is not None:
                ring = matrix.as_strided(*ring_view)
                out, rounded = (ring, None) if ring.dtype == out.dtype else (out, ring)
            left = None if left_view is None else tensor(left_view)
            self.steps.append(_operation(out, left, tensor(right_view), factor))
            if rounded is not None:
                self.steps.append(partial(rounded.copy_, out))


def _operation(out: Tensor, left: Tensor | None, right: Tensor, factor: float) -> Callable[[], object]:
    """``out = left + factor * right`` as the PyTorch call that does it fastest."""
    if left is None:
        return partial(out.copy_, right) if factor == 1.0 else partial(torch.mul, right, factor, out=out)
    if factor != 1.0:
        return partial(torch.add, left, right, alpha=factor, out=out)
    return partial(out.add_, right) if left.is_set_to(out) else partial(torch.add, left, right, out=out)
