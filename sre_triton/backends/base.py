"""What every backend offers, and what the planner and backends are told of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from sre_triton.geometry.conv import ConvSpec

__all__ = ["Backend", "Call", "FusedBackend", "Kind", "fuses_epilogue"]

Kind = Literal["forward", "transpose", "weight_grad", "backward"]


class Call(NamedTuple):
    """One pass of one convolution, without its data: all that a plan may depend on."""

    kind: Kind
    spec: ConvSpec
    batch: int
    in_channels: int  # of the convolution, whichever of its passes this is
    out_channels: int
    input_size: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def pixels(self) -> int:
        """Output pixels of the convolution."""
        return self.batch * math.prod(self.spec.output_size(self.input_size))


class Backend(Protocol):
    """The passes of a ring convolution, told apart by what they compute and nothing else.

    A backend is a module (or an object) with these functions. They are called with gradients disabled, or with
    tensors that need none, and with tensors that fit together; they take any strides, and do not write to their
    arguments. An activation comes out as :func:`~sre_triton.backends.memory_format.new_activation` makes it, with
    the strides of the layout of ``x``; a gradient of ring weights is contiguous.
    """

    def refusal(self, call: Call, /) -> str | None:
        """Why this backend cannot run the call, in words; None if it can."""
        ...

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, /) -> Tensor:
        """The ring convolution of x (N, Ci, *space) with weight (Co, Ci / groups, rings) and bias (Co,)."""
        ...

    def transpose(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int], /
    ) -> Tensor:
        """The adjoint of ``forward`` in its input, of x (N, Co, *space), plus bias (Ci,)."""
        ...

    def weight_grad(self, x: Tensor, grad_y: Tensor, spec: ConvSpec, /) -> Tensor:
        """The adjoint of ``forward`` in its weight, (Co, Ci / groups, rings)."""
        ...

    def backward(self, grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec, /) -> tuple[Tensor, Tensor]:
        """Both adjoints, in input and weight, where they can share work."""
        ...


class FusedBackend(Backend, Protocol):
    """A backend that also computes ``activation(forward(x) + residual)`` in one pass."""

    def fused_forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spec: ConvSpec,
        /,
        *,
        activation: str | None,
        negative_slope: float,
        residual: Tensor | None,
    ) -> Tensor: ...


def fuses_epilogue(backend: Backend) -> TypeGuard[FusedBackend]:
    return hasattr(backend, "fused_forward")
