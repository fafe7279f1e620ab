"""The functions that users call, one per dimension and direction, and the one of convolution and activation."""

from __future__ import annotations

import torch
from torch import Tensor

from sre_triton.docstrings import completed_by
from sre_triton.functional.calls import autocast, needs_function, ring_conv, ring_conv_transpose
from sre_triton.operators import operators as _ops
from sre_triton.operators.arguments import Size, conv_args, size_tuple
from sre_triton.operators.autograd import activate
from sre_triton.operators.checks import check_function, check_residual, check_sum
from sre_triton.planning.request import current_backend

__all__ = [
    "sre_conv1d",
    "sre_conv2d",
    "sre_conv3d",
    "sre_conv_act",
    "sre_conv_transpose1d",
    "sre_conv_transpose2d",
    "sre_conv_transpose3d",
]


def sre_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """2-D ring convolution: ``F.conv2d`` with a kernel that is constant on concentric rings.

    Args:
        input: (N, in, H, W) or (in, H, W), any floating dtype and memory format.
        weight: ring weights (out, in / groups, rings), of the input's dtype and device. The number of
            rings is read off it.
        bias: (out,) or None.
        stride: pixels between outputs, an int or one per spatial dimension.
        padding: pixels of zeros on both sides, an int or one per spatial dimension; ``"same"`` keeps the size at
            stride 1, ``"valid"`` is none.
        dilation: pixels between neighbouring taps, an int or one per spatial dimension.
        groups: blocks of channels that are convolved apart.
        kernel_size: odd number of pixels, equal in every dimension; an int or one int per dimension.
        circular: False lets the rings reach the corners of the kernel.
        antialias: weigh taps by the share of their pixel that a ring covers.

    Returns:
        (N, out, H', W') or (out, H', W'), channels_last if the input is, with ``H' = (H + 2 * padding - dilation *
        (kernel_size - 1) - 1) // stride + 1``.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument describes no ring kernel (even or non-cubic ``kernel_size``, more rings than the
            kernel can tell apart).
        RuntimeError: shapes, dtypes or devices do not fit, as from ``F.convNd``; or a requested backend cannot run
            the call.

    Source:
        J. Zhang et al., "Improved Vessel Segmentation with Symmetric Rotation-Equivariant U-Net", ISBI 2025.

    Examples:
        >>> image, weight = torch.randn(2, 3, 16, 16), torch.randn(8, 3, 2)
        >>> y = sre_triton.sre_conv2d(image, weight, padding=1, kernel_size=3)
        >>> kernel = sre_triton.expand_kernel(weight, (3, 3))
        >>> torch.allclose(y, nn.functional.conv2d(image, kernel, padding=1), atol=1e-5)
        True
    """
    args = conv_args(2, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv(input, weight, bias, args)


@completed_by(sre_conv2d)
def sre_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """1-D ring convolution: ``F.conv1d`` with a kernel that is the same read backwards. The arguments are those of
    :func:`sre_conv2d`.

    Args:
        input: (N, in, L) or (in, L), any floating dtype.

    Returns:
        (N, out, L') or (out, L').
    """
    args = conv_args(1, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv(input, weight, bias, args)


@completed_by(sre_conv2d)
def sre_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """3-D ring convolution: ``F.conv3d`` with a kernel that is constant on spherical shells. The arguments are those of
    :func:`sre_conv2d`.

    Args:
        input: (N, in, D, H, W) or (in, D, H, W), any floating dtype and memory format.

    Returns:
        (N, out, D', H', W') or (out, D', H', W'), channels_last_3d if the input is.
    """
    args = conv_args(3, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv(input, weight, bias, args)


@completed_by(sre_conv2d)
def sre_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """2-D transposed ring convolution: the adjoint of :func:`sre_conv2d` in its input, whose arguments it has, in the
    order of ``F.conv_transpose2d``.

    Args:
        input: (N, in, H, W) or (in, H, W).
        weight: ring weights (in, out / groups, rings), of the input's dtype and device.
        stride: pixels of the output between those of the input, an int or one per spatial dimension.
        padding: pixels cut off both sides of the output, an int or one per spatial dimension.
        output_padding: pixels added at the far end, fewer than the stride or dilation.

    Returns:
        (N, out, H', W') or (out, H', W') with ``H' = (H - 1) * stride - 2 * padding + dilation *
        (kernel_size - 1) + output_padding + 1``.

    Examples:
        >>> x, weight = torch.randn(1, 8, 5, 5), torch.randn(8, 4, 2)
        >>> sre_triton.sre_conv_transpose2d(x, weight, stride=2, kernel_size=3).shape
        torch.Size([1, 4, 11, 11])
    """
    padding = size_tuple(padding, 2, "padding")
    args = conv_args(2, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv_transpose(input, weight, bias, size_tuple(output_padding, 2, "output_padding"), args)


@completed_by(sre_conv_transpose2d)
def sre_conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """1-D transposed ring convolution: the adjoint of :func:`sre_conv1d` in its input. The arguments are those of
    :func:`sre_conv_transpose2d`.

    Args:
        input: (N, in, L) or (in, L).

    Returns:
        (N, out, L') or (out, L').
    """
    padding = size_tuple(padding, 1, "padding")
    args = conv_args(1, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv_transpose(input, weight, bias, size_tuple(output_padding, 1, "output_padding"), args)


@completed_by(sre_conv_transpose2d)
def sre_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """3-D transposed ring convolution: the adjoint of :func:`sre_conv3d` in its input. The arguments are those of
    :func:`sre_conv_transpose2d`.

    Args:
        input: (N, in, D, H, W) or (in, D, H, W).

    Returns:
        (N, out, D', H', W') or (out, D', H', W').
    """
    padding = size_tuple(padding, 3, "padding")
    args = conv_args(3, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv_transpose(input, weight, bias, size_tuple(output_padding, 3, "output_padding"), args)


@completed_by(sre_conv2d)
def sre_conv_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
    residual: Tensor | None = None,
    activation: str | None = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """``activation(conv(input) + bias + residual)``, in one kernel where no gradient is needed and the Triton or the
    native backend runs.

    For the graphs of networks that only infer, with batch normalisation folded into weight and bias. Elsewhere the
    same function from separate operations; in 16 bits the one kernel rounds once, they round after each step. The
    arguments up to ``antialias`` are those of :func:`sre_conv2d`.

    Args:
        input: (N, in, *space) in one to three dimensions.
        residual: (N, out, *space') like the output, added before the activation; None for none.
        activation: "relu", "leaky_relu" or None.
        negative_slope: of "leaky_relu".

    Returns:
        (N, out, *space'), channels_last if the input is.

    Raises:
        ValueError: ``activation`` is none of the three, or an argument describes no ring kernel.
        RuntimeError: ``input`` has no batch dimension, ``residual`` is not like the output, or shapes, dtypes or
            devices do not fit.

    Examples:
        >>> x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 2)
        >>> y = sre_triton.sre_conv_act(x, weight, padding=1, kernel_size=3, residual=x)
        >>> torch.allclose(y, (sre_triton.sre_conv2d(x, weight, padding=1, kernel_size=3) + x).relu(), atol=1e-5)
        True
    """
    if activation not in (None, "relu", "leaky_relu"):
        raise ValueError(f"activation must be None, 'relu' or 'leaky_relu', got {activation!r}")
    if not 3 <= input.dim() <= 5:
        raise RuntimeError(f"input must be (N, in, *space) in 1 to 3 dimensions, got shape {tuple(input.shape)}")
    ndim = input.dim() - 2
    args = conv_args(ndim, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    x, weight, bias = autocast(input, weight, bias)
    check_function(x, weight, bias, args)
    if residual is not None:
        residual = residual.to(x.dtype) if x.dtype != input.dtype else residual
    if not needs_function(x, weight, bias, residual):
        if residual is not None and not torch.compiler.is_compiling():  # the operator's fake does it there
            check_residual(residual, x, weight, args)
        return _ops.ring_conv_act(x, weight, bias, residual, activation or "", negative_slope, args)
    y = ring_conv(x, weight, bias, args)
    if residual is not None:
        check_sum(residual, y)
        y = y + residual
    return activate(y, activation or "", negative_slope)
