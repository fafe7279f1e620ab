"""Layers for the tests, and what a result is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sre_triton.backends import dense
from sre_triton.geometry.conv import ConvSpec, conv_spec
from sre_triton.geometry.rings import default_num_rings

FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Layer:
    """One convolution with awkward sizes by default."""

    kernel_size: int = 3
    size: tuple[int, ...] = (7, 11)
    batch: int = 2
    c_in: int = 5
    c_out: int = 7
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    groups: int = 1
    antialias: bool = False
    circular: bool = True
    rings: int | None = None
    channels_last: bool = True
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        fields = self.__dataclass_fields__.items()
        changed = {name: getattr(self, name) for name, f in fields if getattr(self, name) != f.default}
        return ",".join(f"{name}={value}" for name, value in changed.items()).replace(" ", "") or "plain"

    @property
    def spec(self) -> ConvSpec:
        n, k = len(self.size), self.kernel_size
        padding = self.dilation * (k // 2) if self.padding is None else self.padding
        rings = self.rings or default_num_rings(k, self.circular)
        strides, paddings, dilations = (self.stride,) * n, (padding,) * n, (self.dilation,) * n
        return conv_spec(n, k, rings, self.circular, self.antialias, strides, paddings, dilations, self.groups)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, weight, bias and grad_y."""
        generator = torch.Generator().manual_seed(len(str(self)))
        spec = self.spec

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, self.dtype)

        x = draw(self.batch, self.c_in, *self.size)
        if self.channels_last:
            x = x.to(memory_format=FORMATS[len(self.size)])
        weight = draw(self.c_out, self.c_in // self.groups, spec.geometry.num_rings)
        return x, weight, draw(self.c_out), draw(self.batch, self.c_out, *spec.output_size(self.size))


def assert_accurate(result: Tensor, truth: Tensor, rounded: Tensor) -> None:
    """float32: relative error below 2e-5. Else: at most twice the error of a dense convolution in that dtype.

    Args:
        truth: the float64 result on the same inputs.
        rounded: the dense result with float32 accumulation, rounded to the dtype once.
    """
    assert result.shape == truth.shape
    assert result.isfinite().all(), "an element was not written"
    error = (result.double() - truth).abs()
    if result.dtype == torch.float32:
        assert error.max() <= 2e-5 * truth.abs().max()
        return
    reference = (rounded.double() - truth).abs()
    assert error.square().mean().sqrt() <= 2 * reference.square().mean().sqrt()
    assert error.max() <= 3 * reference.max()


def dense_forward(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(truth, rounded) for :func:`assert_accurate`."""
    bias64, bias32 = (None, None) if bias is None else (bias.double(), bias.float())
    truth = dense.forward(x.double(), weight.double(), bias64, layer.spec)
    return truth, dense.forward(x.float(), weight.float(), bias32, layer.spec).to(layer.dtype)


def dense_backward(layer: Layer, grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """((truth, rounded) of grad_x, (truth, rounded) of grad_weight)."""
    truth = dense.backward(grad_y.double(), x.double(), weight.double(), layer.spec)
    rounded = dense.backward(grad_y.float(), x.float(), weight.float(), layer.spec)
    return tuple((t, r.to(layer.dtype)) for t, r in zip(truth, rounded, strict=True))
