"""Convolutions without input or output channels: nothing to multiply, whichever backend was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sre_triton.backends.base import Call
from sre_triton.backends.memory_format import new_activation
from sre_triton.geometry.conv import ConvSpec

__all__ = ["backward", "forward", "refusal", "transpose", "weight_grad"]


def refusal(call: Call) -> str | None:
    return None if call.in_channels == 0 or call.out_channels == 0 else "it has channels"


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    return _biased(new_activation(x, weight.shape[0], spec.output_size(x.shape[2:])), bias)


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    size = spec.transposed_size(x.shape[2:], output_padding)
    return _biased(new_activation(x, weight.shape[1] * spec.groups, size), bias)


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    return x.new_zeros((grad_y.shape[1], x.shape[1] // spec.groups, spec.geometry.num_rings))


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    return new_activation(x, x.shape[1], x.shape[2:]).zero_(), weight_grad(x, grad_y, spec)


def _biased(y: Tensor, bias: Tensor | None) -> Tensor:
    return y.zero_() if bias is None else y.copy_(bias.view(-1, *[1] * (y.dim() - 2)))
