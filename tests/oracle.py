"""One convolution as data: its tensors, its ring convolution, and an independent dense one to hold it against.

The dense side measures hard rings itself and convolves with PyTorch, so it shares no arithmetic with the package.
(Covered shares of anti-aliased rings are taken from the geometry; their values have tests of their own.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import sre_triton
from sre_triton import functional as S
from sre_triton.backends import native
from sre_triton.geometry.rings import ring_geometry

# `make test` builds the native kernel first, wherever there is a compiler.
BACKENDS = ("dense", "ringwise") if native.missing() else ("dense", "ringwise", "native")

_DENSE = {
    False: {1: F.conv1d, 2: F.conv2d, 3: F.conv3d},
    True: {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d},
}
_RING = {
    False: {1: S.sre_conv1d, 2: S.sre_conv2d, 3: S.sre_conv3d},
    True: {1: S.sre_conv_transpose1d, 2: S.sre_conv_transpose2d, 3: S.sre_conv_transpose3d},
}
_LAYERS = {
    False: {1: sre_triton.SREConv1d, 2: sre_triton.SREConv2d, 3: sre_triton.SREConv3d},
    True: {1: sre_triton.SREConvTranspose1d, 2: sre_triton.SREConvTranspose2d, 3: sre_triton.SREConvTranspose3d},
}
_SIZE = {1: (9,), 2: (7, 6), 3: (5, 4, 4)}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def ring_table(kernel_size: int, ndim: int, rings: int, circular: bool, antialias: bool) -> np.ndarray:
    """``M[ring, tap]``: hard rings by the distance of each tap from the centre."""
    if antialias:
        return ring_geometry((kernel_size,) * ndim, rings, circular, antialias).weights.copy()
    radius = kernel_size // 2
    offsets = np.indices((kernel_size,) * ndim).reshape(ndim, -1) - radius
    distance = np.sqrt((offsets**2).sum(axis=0))
    if circular:
        ring = np.searchsorted(np.linspace(0, radius + 0.5, rings + 1), distance, side="right") - 1
    else:
        edges = np.linspace(0, math.sqrt(ndim * radius**2), rings)
        ring = np.searchsorted(edges, distance, side="right") - 1
        ring[distance > edges[-1]] = rings  # one ring has one edge, 0, and is the centre tap
    return (ring == np.arange(rings)[:, None]).astype(np.float64)


def expand(weight: Tensor, table: np.ndarray, kernel_size: int, ndim: int) -> Tensor:
    """Dense kernel of ring weights, differentiable."""
    kernel = torch.einsum("oir,rt->oit", weight, torch.from_numpy(table).to(weight.dtype))
    return kernel.unflatten(2, (kernel_size,) * ndim)


def per_dimension(value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, int) else value


@dataclass(frozen=True)
class Case:
    """A convolution. ``in_channels`` and ``size`` are those of its input, transposed or not."""

    ndim: int = 2
    batch: int = 2
    in_channels: int = 4
    out_channels: int = 6
    size: tuple[int, ...] = ()
    kernel_size: int = 3
    num_rings: int | None = None
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    circular: bool = True
    antialias: bool = False
    transposed: bool = False
    output_padding: int | tuple[int, ...] = 0

    def __str__(self) -> str:
        given = [f"{k}{v}" for k, v in self.__dict__.items() if v != type(self).__dataclass_fields__[k].default]
        return "-".join(given).replace(" ", "") or "default"

    @property
    def rings(self) -> int:
        if self.num_rings is not None:
            return self.num_rings
        return ring_geometry((self.kernel_size,) * self.ndim, None, self.circular, self.antialias).num_rings

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *(self.size or _SIZE[self.ndim]))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, self.rings)

    @property
    def operator_args(self) -> tuple[Any, ...]:
        """What the operators take after their tensors, up to the name of the backend."""
        tuples = [per_dimension(v, self.ndim) for v in (self.stride, self.padding, self.dilation)]
        return (*tuples, self.groups, self.kernel_size, self.circular, self.antialias)

    def tensors(self, dtype: torch.dtype = torch.float64, channels_last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The same random input, weight and bias at every call."""
        generator = torch.Generator().manual_seed(0)
        shapes = (self.input_shape, self.weight_shape, (self.out_channels,))
        x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
        return self.channels_last(x) if channels_last else x, weight, bias

    def channels_last(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=_CHANNELS_LAST[self.ndim])

    def leaves(self, dtype: torch.dtype = torch.float64, channels_last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`tensors` that require grad."""
        x, weight, bias = (t.requires_grad_() for t in self.tensors(dtype, channels_last))
        return x, weight, bias

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The truth, by PyTorch's own convolution."""
        table = ring_table(self.kernel_size, self.ndim, self.rings, self.circular, self.antialias)
        kernel = expand(weight, table, self.kernel_size, self.ndim)
        more = {"output_padding": self.output_padding} if self.transposed else {}
        return _DENSE[self.transposed][self.ndim](
            x,
            kernel,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            **more,
        )

    def ring(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The function under test."""
        more = {"output_padding": self.output_padding} if self.transposed else {}
        return _RING[self.transposed][self.ndim](
            x, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
            kernel_size=self.kernel_size, circular=self.circular, antialias=self.antialias, **more,
        )  # fmt: skip

    def layer(self, **kwargs: Any) -> torch.nn.Module:
        """The layer of this convolution, with weights of its own."""
        more = {"output_padding": self.output_padding} if self.transposed else {}
        return _LAYERS[self.transposed][self.ndim](
            self.in_channels, self.out_channels, self.kernel_size, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups, num_rings=self.num_rings, circular=self.circular,
            antialias=self.antialias, **more, **kwargs,
        )  # fmt: skip


# One of each thing that can differ; small enough for derivatives by finite differences.
CASES = (
    Case(ndim=1, padding=1),
    Case(ndim=1, kernel_size=5, stride=2, dilation=2, padding=5, groups=2),
    Case(ndim=1, kernel_size=5, padding=1, transposed=True, stride=3, output_padding=2),
    Case(padding=1),
    Case(kernel_size=5, padding=2, antialias=True),
    Case(kernel_size=5, circular=False, num_rings=3, padding=(3, 0), size=(4, 7)),
    Case(stride=(2, 3), padding=(1, 4), dilation=(2, 1), groups=2),
    Case(in_channels=4, out_channels=4, groups=4, padding=1),
    Case(transposed=True, padding=1),
    Case(
        transposed=True, stride=(2, 3), output_padding=(1, 2), padding=(0, 2), dilation=(1, 2), groups=2, antialias=True
    ),
    Case(ndim=3, in_channels=2, out_channels=2, padding=1),
    Case(
        ndim=3, in_channels=2, out_channels=4, groups=2, stride=(1, 2, 1), dilation=(1, 1, 2), padding=1, antialias=True
    ),
    Case(ndim=3, in_channels=2, out_channels=2, size=(3, 2, 3), transposed=True, stride=2, output_padding=(1, 0, 1)),
)  # fmt: skip
