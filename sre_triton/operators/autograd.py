"""Derivatives: one autograd Function per operator, each differentiated through the others.

The ring convolution ``y = F(x, w)`` is linear in ``x`` and in ``w``. With its adjoints ``X(g, w)`` in the
input and ``W(x, g)`` in the weight the set is closed: the derivatives of F are X and W, those of X are F
and W, those of W are X and F. So every order of derivative runs on the same operators. Only the input
and the ring weight are saved; kernels and ring sums are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from sre_triton.geometry.conv import ConvArgs, output_padding
from sre_triton.operators import operators as _ops
from sre_triton.private_api import apply_function, batches_gradients

__all__ = ["CollapseKernel", "ExpandKernel", "RingConv", "RingConvTranspose", "RingConvWeightGrad", "activate"]


def apply(function: type[_RingFunction], *args: Any) -> Any:
    """``function.apply(*args)``. Where gradients are batched it calls the operator, which has a batching rule, and
    whose own derivative then runs on single ones."""
    if not torch.compiler.is_compiling() and batches_gradients():
        return function.operator.dispatch(*args)
    return apply_function(function, *args)


_BIAS_DIMS = {3: (0, 2), 4: (0, 2, 3), 5: (0, 2, 3, 4)}


def _bias_grad(grad_y: Tensor) -> Tensor:
    return grad_y.sum(_BIAS_DIMS[grad_y.dim()])


def _output_padding(x: Tensor, grad_y: Tensor, args: ConvArgs) -> tuple[int, ...]:
    return output_padding(args, x.shape[2:], grad_y.shape[2:])


class _RingFunction(Function):
    # No jvp either: the compiler refuses Functions that have one. Forward mode raises PyTorch's own error.
    generate_vmap_rule = True
    operator: ClassVar[_ops.Operator]


class RingConv(_RingFunction):
    """F(x, w) + bias."""

    operator = _ops.ring_conv

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs) -> Tensor:
        return _ops.ring_conv(x, weight, bias, args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.args = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        args: ConvArgs = ctx.args
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if torch.is_grad_enabled():
            if need_x:
                grad_x = apply(RingConvTranspose, grad_y, weight, None, _output_padding(x, grad_y, args), args)
            if need_weight:
                grad_weight = apply(RingConvWeightGrad, x, grad_y, weight.shape[2], args)
        elif need_x and need_weight:
            grad_x, grad_weight = _ops.ring_conv_backward(x, grad_y, weight, args)
        elif need_x:
            grad_x = _ops.ring_conv_transpose(grad_y, weight, None, _output_padding(x, grad_y, args), args)
        elif need_weight:
            grad_weight = _ops.ring_conv_weight_grad(x, grad_y, weight.shape[2], args)
        return grad_x, grad_weight, _bias_grad(grad_y) if need_bias else None, None


class RingConvTranspose(_RingFunction):
    """X(x, w) + bias, where x is as coarse as the convolution's output."""

    operator = _ops.ring_conv_transpose

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: tuple[int, ...], args: ConvArgs
    ) -> Tensor:
        return _ops.ring_conv_transpose(x, weight, bias, output_padding, args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, _, ctx.args = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _, _ = ctx.needs_input_grad
        grad_x = apply(RingConv, grad_y, weight, None, ctx.args) if need_x else None
        grad_weight = apply(RingConvWeightGrad, grad_y, x, weight.shape[2], ctx.args) if need_weight else None
        return grad_x, grad_weight, _bias_grad(grad_y) if need_bias else None, None, None


class RingConvWeightGrad(_RingFunction):
    """W(x, g)."""

    operator = _ops.ring_conv_weight_grad

    @staticmethod
    def forward(x: Tensor, grad_y: Tensor, num_rings: int, args: ConvArgs) -> Tensor:
        return _ops.ring_conv_weight_grad(x, grad_y, num_rings, args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, grad_y, _, ctx.args = inputs
        ctx.save_for_backward(x, grad_y)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        x, grad_y = ctx.saved_tensors
        args: ConvArgs = ctx.args
        need_x, need_grad_y, _, _ = ctx.needs_input_grad
        grad_x = None
        if need_x:
            grad_x = apply(RingConvTranspose, grad_y, direction, None, _output_padding(x, grad_y, args), args)
        return grad_x, apply(RingConv, x, direction, None, args) if need_grad_y else None, None, None


class ExpandKernel(_RingFunction):
    """Dense kernel of ring weights; linear, so its derivative is its adjoint."""

    operator = _ops.expand_kernel

    @staticmethod
    def forward(
        weight: Tensor, kernel_size: tuple[int, ...], circular: bool, antialias: bool, dtype: torch.dtype | None
    ) -> Tensor:
        return _ops.expand_kernel(weight, kernel_size, circular, antialias, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, ctx.kernel_size, ctx.circular, ctx.antialias, _ = inputs
        ctx.num_rings, ctx.dtype = weight.shape[2], weight.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = apply(CollapseKernel, grad, ctx.num_rings, ctx.circular, ctx.antialias, ctx.dtype)
        return weight, None, None, None, None


class CollapseKernel(_RingFunction):
    """Sum of a dense kernel over its rings, the adjoint of :class:`ExpandKernel`."""

    operator = _ops.collapse_kernel

    @staticmethod
    def forward(
        kernel: Tensor, num_rings: int, circular: bool, antialias: bool, dtype: torch.dtype | None
    ) -> Tensor:  # fmt: skip
        return _ops.collapse_kernel(kernel, num_rings, circular, antialias, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        kernel, _, ctx.circular, ctx.antialias, _ = inputs
        ctx.kernel_size, ctx.dtype = tuple(kernel.shape[2:]), kernel.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel = apply(ExpandKernel, grad, ctx.kernel_size, ctx.circular, ctx.antialias, ctx.dtype)
        return kernel, None, None, None, None


# The operators' own derivatives: an exported or traced graph calls operators, and trains.


def _conv_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, slope: float,
    args: ConvArgs,
) -> Tensor:  # fmt: skip
    y = apply_function(RingConv, x, weight, bias, args)
    return activate(y if residual is None else y + residual, activation, slope)


def activate(y: Tensor, activation: str, slope: float) -> Tensor:
    """``activation`` is "relu", "leaky_relu" or empty."""
    if activation == "relu":
        return F.relu(y)
    return F.leaky_relu(y, slope) if activation == "leaky_relu" else y


def _backward(x: Tensor, grad_y: Tensor, weight: Tensor, args: ConvArgs) -> tuple[Tensor, Tensor]:
    grad_x = apply_function(RingConvTranspose, grad_y, weight, None, _output_padding(x, grad_y, args), args)
    return grad_x, apply_function(RingConvWeightGrad, x, grad_y, weight.shape[2], args)


def _kernel(function: type[_RingFunction]) -> Callable[..., Tensor]:
    def derived(tensor: Tensor, size: Any, circular: bool, antialias: bool, dtype: torch.dtype | None = None) -> Tensor:
        return apply_function(function, tensor, size, circular, antialias, dtype)

    return derived


_ops.ring_conv.derive(partial(apply_function, RingConv))
_ops.ring_conv_act.derive(_conv_act)
_ops.ring_conv_transpose.derive(partial(apply_function, RingConvTranspose))
_ops.ring_conv_weight_grad.derive(partial(apply_function, RingConvWeightGrad))
_ops.ring_conv_backward.derive(_backward)
_ops.expand_kernel.derive(_kernel(ExpandKernel))
_ops.collapse_kernel.derive(_kernel(CollapseKernel))
