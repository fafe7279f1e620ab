"""The adjoint of a strided convolution as one ordinary convolution, whose channels are the pixels between two strides.

Pixels of the result whose places have the same remainder by the stride are made with the same taps. A convolution of
the coarse map makes all of these sets side by side as channels, and they are then laid out between one another. Where
results have few channels that fills the vectors that PyTorch's own adjoint leaves empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.backends.memory_format import new_activation
from sre_triton.geometry.conv import ConvSpec

__all__ = ["is_worthwhile", "transpose"]

_CONV = (F.conv1d, F.conv2d, F.conv3d)
# Measured with oneDNN: fewer elements of the coarse map are done before as many operations are started, and results of
# more channels fill vectors by themselves.
_LEAST_ELEMENTS = 1 << 16
_MOST_CHANNELS = 3


def is_worthwhile(x: Tensor, channels: int, spec: ConvSpec, size: tuple[int, ...]) -> bool:
    """Whether :func:`transpose` of x to this spatial size and so many channels is there, and faster than PyTorch's."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or x.numel() < _LEAST_ELEMENTS:
        return False
    if channels > _MOST_CHANNELS or spec.groups > 1 or spec.is_dilated or spec.ndim != 2 or spec.stride != (2, 2):
        return False
    # What is larger has pixels that no tap reaches.
    return all(n <= p for n, p in zip(spec.output_padding(size, x.shape[2:]), spec.padding, strict=True))


def transpose(x: Tensor, kernel: Tensor, bias: Tensor | None, spec: ConvSpec, size: tuple[int, ...]) -> Tensor:
    """``F.conv_transposeNd(x, kernel, bias)`` of this spatial size, in the layout of x."""
    strides, channels = spec.stride, kernel.shape[1]
    reach = [-(-k // s) for k, s in zip(kernel.shape[2:], strides, strict=True)]  # taps per remainder
    bias = None if bias is None else bias.repeat(math.prod(strides))
    kernels = _by_remainder(kernel, reach, strides)
    parts = _CONV[spec.ndim - 1](x, kernels, bias, padding=[r - 1 for r in reach]).unflatten(1, (-1, channels))
    y = new_activation(x, channels, size)
    for number, remainders in enumerate(product(*map(range, strides))):
        fine, coarse = zip(*_places(remainders, spec, size), strict=True)
        y[(..., *fine)] = parts[(slice(None), number, slice(None), *coarse)]
    return y


def _by_remainder(kernel: Tensor, reach: list[int], strides: tuple[int, ...]) -> Tensor:
    """A kernel (remainders * in, out, *reach): tap ``remainder + stride * j`` in each dimension, the last j first."""
    channels, ndim = kernel.shape[:2], len(reach)
    missing = [r * s - k for r, s, k in zip(reach, strides, kernel.shape[2:], strict=True)]
    padded = F.pad(kernel, [n for m in reversed(missing) for n in (0, m)])
    split = padded.view(*channels, *(n for pair in zip(reach, strides, strict=True) for n in pair))
    taps, remainders = range(2, 2 + 2 * ndim, 2), range(3, 3 + 2 * ndim, 2)
    return split.flip(*taps).permute(*remainders, 1, 0, *taps).reshape(-1, channels[0], *reach)


def _places(remainders: tuple[int, ...], spec: ConvSpec, size: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """In each dimension: the pixels that have this remainder, padding counted, and where their sums are."""
    for remainder, stride, padding, n in zip(remainders, spec.stride, spec.padding, size, strict=True):
        skipped = max(0, -(-(padding - remainder) // stride))
        first = skipped * stride + remainder - padding
        yield slice(first, n, stride), slice(skipped, skipped + len(range(first, n, stride)))
