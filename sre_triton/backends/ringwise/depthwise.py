"""Ring sums by one depthwise convolution per ring, for the CPUs and types whose library has a fast one.

oneDNN's depthwise kernel keeps the sum of all taps in a register and knows padding, stride and dilation.
A tap costs it a third of what it costs an addition in memory, so the taps of weight 0 between those of a
ring are affordable, and a ring is one call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sre_triton.backends.ringwise.blocks import Block, PaddedBlock, block_shape, blocks, box
from sre_triton.geometry.rings import RingGeometry
from sre_triton.geometry.windows import Window

__all__ = ["RingMask", "has_depthwise", "ring_masks", "ring_sums_by_depthwise", "suits_depthwise"]

# Size of one ring sum per thread: few calls, yet what a block reads and writes stays in the cache.
_BLOCK_BYTES = 1 << 20


# To start a depthwise convolution takes as long as its kernel saves over additions on this many elements.
_LEAST_ELEMENTS = 1 << 15


def has_depthwise(source: Tensor, window: Window) -> bool:
    """Whether depthwise convolutions are the fast way to these ring sums: of images, on a CPU, with oneDNN."""
    elements = math.prod((source.shape[0], source.shape[1], *window.output_size))
    return (
        source.device.type == "cpu"
        and suits_depthwise(window.upsampling, elements, len(window.rings), source.dtype)
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and (source.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


def suits_depthwise(upsampling: Sequence[int], elements: int, rings: int, dtype: torch.dtype) -> bool:
    """Whether so many elements in each of so many ring sums are worth convolutions, on a machine that has them."""
    return (
        len(upsampling) == 2
        and all(step == 1 for step in upsampling)
        and dtype in (torch.float32, torch.bfloat16)
        and elements >= rings * _LEAST_ELEMENTS
    )


def ring_sums_by_depthwise(positions: Tensor, window: Window) -> Iterator[tuple[Block, int, Tensor]]:
    """Ring sums of ``positions (N, *space, C)``, block by block and ring by ring.

    Yields:
        A block of ``(N, *output_size)``, the number of the ring among those of the window, and its sums at
        the block's positions, ``(*block, C)``. They may be a view of ``positions``.
    """
    rings = [_Ring(window, mask, positions) for mask in ring_masks(window.geometry, window.half)]
    grid = (positions.shape[0], *window.output_size)
    budget = _BLOCK_BYTES * torch.get_num_threads() // (positions.shape[-1] * positions.element_size())
    for block in blocks(grid, block_shape(grid, budget)):
        images = positions[block.corner[0] : block.corner[0] + block.shape[0]]
        images = images if images.stride(-1) == 1 else images.contiguous()
        padded: Tensor | None = None
        for number, ring in enumerate(rings):
            sums = ring.sums(images, block.shape, ring.begin(block))
            if sums is None:
                if padded is None:
                    padded = _padded(positions, window, block)
                sums = ring.sums(padded, block.shape, ring.begin_padded())
                assert sums is not None
            yield block, number, sums


@dataclass(frozen=True, eq=False)
class RingMask:
    """The taps of one ring that are within reach, cut to the box that holds them."""

    half: tuple[int, ...]
    shares: npt.NDArray[np.float32]


@lru_cache(maxsize=1024)
def ring_masks(geometry: RingGeometry, half: tuple[int, ...]) -> tuple[RingMask, ...]:
    """The rings that have a tap within ``half`` taps of the centre, each as a kernel."""
    shape = [geometry.num_rings, *geometry.kernel_size]
    within = tuple(slice(k // 2 - h, k // 2 + h + 1) for k, h in zip(geometry.kernel_size, half, strict=True))
    masks = []
    for weights in geometry.weights.reshape(shape):
        shares = weights[within]
        if shares.any():
            reach = [int(np.abs(taps - h).max()) for taps, h in zip(shares.nonzero(), half, strict=True)]
            inner = tuple(slice(h - r, h + r + 1) for h, r in zip(half, reach, strict=True))
            masks.append(RingMask(tuple(reach), np.ascontiguousarray(shares[inner], dtype=np.float32)))
    return tuple(masks)


class _Ring:
    """One ring as a depthwise convolution."""

    def __init__(self, window: Window, mask: RingMask, positions: Tensor) -> None:
        self._window = window
        self._half = mask.half
        self._is_identity = mask.shares.size == 1 and mask.shares.item() == 1.0
        kernel = torch.from_numpy(mask.shares).to(positions.dtype)
        self._kernel = kernel.expand(positions.shape[-1], 1, *kernel.shape).contiguous()

    def begin(self, block: Block) -> list[int]:
        """The first position of the input that a block reads."""
        corner = [c * s + o for c, s, o in zip(block.corner[1:], self._window.stride, self._window.origin, strict=True)]
        return [c + b for c, b in zip(corner, self.begin_padded(), strict=True)]

    def begin_padded(self) -> list[int]:
        """The same in the padded copy of what all rings of the block read."""
        return [d * (h - r) for d, h, r in zip(self._window.dilation, self._window.half, self._half, strict=True)]

    def sums(self, images: Tensor, shape: tuple[int, ...], begin: Sequence[int]) -> Tensor | None:
        """The sums of a block of this shape that reads ``images (N, *space, C)`` from ``begin`` on.

        A convolution pads both sides alike and so may come with a surplus, which is cut off. None where the
        stride does not allow it.
        """
        corner, size, padding, surplus = [0], [len(images)], [], [0]
        for b, n, m, r, s, d in zip(
            begin, shape[1:], images.shape[1:], self._half, self._window.stride, self._window.dilation, strict=False
        ):
            extent = (n - 1) * s + 2 * d * r + 1
            before, after = max(0, -b), max(0, b + extent - m)
            padding.append(max(before, after))
            corner.append(b + before)
            size.append(extent - before - after)
            surplus.append((padding[-1] - before) // s)
            if size[-1] < 1 or (padding[-1] - before) % s:
                return None
        source = box(images, corner, size)
        if self._is_identity and not any(padding):
            return box(source, [0] * len(shape), shape, (1, *self._window.stride))
        x, channels = source.movedim(-1, 1), source.shape[-1]
        sums = F.conv2d(x, self._kernel, None, self._window.stride, padding, self._window.dilation, channels)
        return box(sums.movedim(1, -1), surplus, shape)


def _padded(positions: Tensor, window: Window, block: Block) -> Tensor:
    """A copy, between zeros, of what a block reads."""
    memory = positions.new_empty((block.shape[0], *window.padded_size(block.shape[1:]), positions.shape[-1]))
    padded = PaddedBlock(window, memory)
    padded.fill(positions, block, clean=False)
    return padded.memory
