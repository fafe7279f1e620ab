"""Ring convolutions as functions, with the arguments and errors of ``torch.nn.functional.convNd``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.geometry.conv import ConvArgs
from sre_triton.geometry.rings import default_num_rings
from sre_triton.operators import operators as _ops
from sre_triton.operators.arguments import Size, conv_args, size_tuple
from sre_triton.operators.autograd import CollapseKernel, ExpandKernel, RingConv, RingConvTranspose, activate
from sre_triton.operators.checks import (
    check_function,
    check_residual,
    check_strided,
    check_sum,
    refuse_onnx,
)
from sre_triton.operators.flops import register_formulas
from sre_triton.planning.request import current_backend
from sre_triton.private_api import apply_function as apply
from sre_triton.private_api import autocast_is_enabled, derivative_may_hide, has_autocast

__all__ = [
    "expand_kernel",
    "project_kernel",
    "ring_conv",
    "ring_conv_transpose",
    "sre_conv1d",
    "sre_conv2d",
    "sre_conv3d",
    "sre_conv_act",
    "sre_conv_transpose1d",
    "sre_conv_transpose2d",
    "sre_conv_transpose3d",
]

register_formulas()


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
    """1-D ring convolution; see :func:`sre_conv2d`. ``input`` is (N, in, L) or (in, L)."""
    args = conv_args(1, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv(input, weight, bias, args)


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
        stride, padding, dilation: an int, or one int per spatial dimension. Padding is with zeros, in
            pixels on both sides; ``"same"`` keeps the size at stride 1, ``"valid"`` is none.
        groups: as in ``F.conv2d``.
        kernel_size: odd and equal in every dimension; an int or one int per dimension.
        circular: False lets the rings reach the corners of the kernel.
        antialias: weigh taps by the share of their pixel that a ring covers.

    Returns:
        (N, out, H', W') or (out, H', W'), channels_last if the input is.

    Raises:
        TypeError, ValueError: an argument describes no ring kernel (even or non-cubic ``kernel_size``,
            more rings than the kernel can tell apart).
        RuntimeError: shapes, dtypes or devices do not fit, as from ``F.conv2d``.
    """
    args = conv_args(2, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv(input, weight, bias, args)


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
    """3-D ring convolution; see :func:`sre_conv2d`. ``input`` is (N, in, D, H, W) or (in, D, H, W)."""
    args = conv_args(3, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv(input, weight, bias, args)


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
    """1-D transposed ring convolution; see :func:`sre_conv_transpose2d`."""
    padding = size_tuple(padding, 1, "padding")
    args = conv_args(1, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv_transpose(input, weight, bias, size_tuple(output_padding, 1, "output_padding"), args)


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
    """2-D transposed ring convolution: the adjoint of :func:`sre_conv2d` in its input.

    Args:
        input: (N, in, H, W) or (in, H, W).
        weight: ring weights (in, out / groups, rings).
        output_padding: rows and columns added at the far end, fewer than the stride or dilation.
        others: as in :func:`sre_conv2d`, in the argument order of ``F.conv_transpose2d``.

    Returns:
        (N, out, H', W') or (out, H', W') with ``H' = (H - 1) * stride - 2 * padding + dilation *
        (kernel_size - 1) + output_padding + 1``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`sre_conv2d`.
    """
    padding = size_tuple(padding, 2, "padding")
    args = conv_args(2, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv_transpose(input, weight, bias, size_tuple(output_padding, 2, "output_padding"), args)


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
    """3-D transposed ring convolution; see :func:`sre_conv_transpose2d`."""
    padding = size_tuple(padding, 3, "padding")
    args = conv_args(3, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    return ring_conv_transpose(input, weight, bias, size_tuple(output_padding, 3, "output_padding"), args)


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
    same function from separate operations; in 16 bits the one kernel rounds once, they round after each step.

    Args:
        input: (N, in, *space) in one to three dimensions.
        residual: (N, out, *space') like the output, added before the activation; None for none.
        activation: "relu", "leaky_relu" or None.
        negative_slope: of "leaky_relu".
        others: as in :func:`sre_conv2d`.

    Returns:
        (N, out, *space'), channels_last if the input is.

    Raises:
        ValueError: ``activation`` is none of the three; others as :func:`sre_conv2d`.
        RuntimeError: ``input`` has no batch dimension, or ``residual`` is not like the output.
    """
    if activation not in (None, "relu", "leaky_relu"):
        raise ValueError(f"activation must be None, 'relu' or 'leaky_relu', got {activation!r}")
    if not 3 <= input.dim() <= 5:
        raise RuntimeError(f"input must be (N, in, *space) in 1 to 3 dimensions, got shape {tuple(input.shape)}")
    ndim = input.dim() - 2
    args = conv_args(ndim, stride, padding, dilation, groups, kernel_size, circular, antialias, current_backend())
    x, weight, bias = _autocast(input, weight, bias)
    check_function(x, weight, bias, args)
    if residual is not None:
        residual = residual.to(x.dtype) if x.dtype != input.dtype else residual
    if not _needs_function(x, weight, bias, residual):
        if residual is not None and not torch.compiler.is_compiling():  # the operator's fake does it there
            check_residual(residual, x, weight, args)
        return _ops.ring_conv_act(x, weight, bias, residual, activation or "", negative_slope, args)
    y = ring_conv(x, weight, bias, args)
    if residual is not None:
        check_sum(residual, y)
        y = y + residual
    return activate(y, activation or "", negative_slope)


def expand_kernel(
    weight: Tensor,
    kernel_size: Sequence[int],
    circular: bool = True,
    antialias: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Dense kernel of ring weights, differentiable.

    Args:
        weight: (out, in / groups, rings).
        kernel_size: one odd size per spatial dimension, all equal. A tuple: an int would not tell how
            many dimensions the kernel has.
        dtype: a floating dtype of the kernel, None for that of ``weight``. The conversion rounds once and is
            part of the same pass.

    Returns:
        (out, in / groups, *kernel_size) in ``dtype``.

    Raises:
        TypeError, ValueError: no such geometry; see :func:`sre_triton.geometry.rings.ring_geometry`.
    """
    if isinstance(kernel_size, int):
        raise TypeError(f"kernel_size must be a tuple with one entry per spatial dimension, got the int {kernel_size}")
    check_strided("weight", weight)
    if weight.dim() != 3:
        raise ValueError(f"weight must be (out, in / groups, rings), got shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be of a floating dtype, got {weight.dtype}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype or None, got {dtype}")
    size = size_tuple(kernel_size, len(kernel_size), "kernel_size")
    if _needs_function(weight):
        return apply(ExpandKernel, weight, size, circular, antialias, dtype)
    return _ops.expand_kernel(weight, size, circular, antialias, dtype)


def project_kernel(
    dense: Tensor, num_rings: int | None = None, circular: bool = True, antialias: bool = False
) -> Tensor:
    """Ring weights whose kernel is nearest to a dense one in least squares; inverts :func:`expand_kernel`.

    For hard rings this is the mean over each ring. Differentiable.

    Args:
        dense: (out, in / groups, *kernel_size).
        num_rings: number of rings, None for the default of this kernel size.

    Returns:
        (out, in / groups, rings), in the dtype of ``dense``.

    Raises:
        TypeError, ValueError: no such geometry; see :func:`sre_triton.geometry.rings.ring_geometry`.
    """
    check_strided("dense", dense)
    if not 3 <= dense.dim() <= 5:
        raise ValueError(
            f"dense must be (out, in / groups, *kernel_size) in 1 to 3 dimensions, got {tuple(dense.shape)}"
        )
    if not dense.is_floating_point():
        raise TypeError(f"dense must be of a floating dtype, got {dense.dtype}")
    size = tuple(dense.shape[2:])
    rings = default_num_rings(size[0], circular, len(size)) if num_rings is None else num_rings
    # The normal equations, in float64: a mean of many taps should be as exact as its dtype can hold.
    wide = dense.to(torch.float64)
    sums = _collapse(wide, rings, circular, antialias)
    basis = torch.eye(rings, dtype=torch.float64, device=dense.device).unsqueeze(1)
    gram = _collapse(expand_kernel(basis, size, circular, antialias), rings, circular, antialias).squeeze(1)
    return torch.linalg.solve(gram, sums.flatten(0, 1).t()).t().reshape(sums.shape).to(dense.dtype)


def _collapse(dense: Tensor, num_rings: int, circular: bool, antialias: bool) -> Tensor:
    if _needs_function(dense):
        return apply(CollapseKernel, dense, num_rings, circular, antialias, None)
    return _ops.collapse_kernel(dense, num_rings, circular, antialias, None)


def ring_conv(x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs) -> Tensor:
    """Ring convolution of as many dimensions as ``args.stride`` has; the tensors are checked here."""
    if torch.compiler.is_compiling() or autocast_is_enabled():
        x, weight, bias = _autocast(x, weight, bias)
    is_traced = _layers_traced_by_jit and torch.jit.is_tracing()
    if not is_traced:
        check_function(x, weight, bias, args)
    if x.dim() == len(args.stride) + 1:
        return ring_conv(x.unsqueeze(0), weight, bias, args).squeeze(0)
    if is_traced:
        return _ops.ring_conv.dispatch(x, weight, bias, args)
    if _needs_function(x, weight, bias):
        return apply(RingConv, x, weight, bias, args)
    return _ops.ring_conv(x, weight, bias, args)


def ring_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: tuple[int, ...], args: ConvArgs
) -> Tensor:
    """Transposed ring convolution of any dimension; the tensors are checked here."""
    if torch.compiler.is_compiling() or autocast_is_enabled():
        x, weight, bias = _autocast(x, weight, bias)
    is_traced = _layers_traced_by_jit and torch.jit.is_tracing()
    if not is_traced:
        check_function(x, weight, bias, args, output_padding)
    if x.dim() == len(args.stride) + 1:
        return ring_conv_transpose(x.unsqueeze(0), weight, bias, output_padding, args).squeeze(0)
    if any(extra >= stride > 0 for extra, stride in zip(output_padding, args.stride, strict=True)):
        # A stride or more of output padding is rows of zeros in the input. Without them the convolution of
        # the output would be larger than the input, and not its gradient.
        steps = [divmod(extra, stride) for extra, stride in zip(output_padding, args.stride, strict=True)]
        x = F.pad(x, [side for rows, _ in reversed(steps) for side in (0, rows)])
        output_padding = tuple(rest for _, rest in steps)
    if is_traced:
        return _ops.ring_conv_transpose.dispatch(x, weight, bias, output_padding, args)
    if _needs_function(x, weight, bias):
        return apply(RingConvTranspose, x, weight, bias, output_padding, args)
    return _ops.ring_conv_transpose(x, weight, bias, output_padding, args)


# How many layers run under torch.jit.trace now. PyTorch tells modules, and to ask it at every call would cost more.
_layers_traced_by_jit = 0


@contextmanager
def traced_by_jit() -> Iterator[None]:
    """A context for layers under ``torch.jit.trace``, to which sizes are tensors: calls go to the operators, which
    check and plan where the recorded script runs them."""
    global _layers_traced_by_jit
    refuse_onnx()
    _layers_traced_by_jit += 1
    try:
        yield
    finally:
        _layers_traced_by_jit -= 1


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast does to a convolution: every float tensor but float64 becomes its dtype."""
    kind = x.device.type
    if not (has_autocast(kind) and torch.is_autocast_enabled(kind)):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    return cast(x), cast(weight), None if bias is None else cast(bias)


def _needs_function(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for: the bare operator has none, and costs less. In forward mode the Functions
    refuse with an error."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return not torch.compiler.is_compiling() and derivative_may_hide()
