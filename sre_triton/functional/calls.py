"""From checked arguments to the operators: autocast, images without a batch, gradients, and ``torch.jit.trace``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.geometry.conv import ConvArgs
from sre_triton.operators import operators as _ops
from sre_triton.operators.arguments import Size
from sre_triton.operators.autograd import RingConv, RingConvTranspose
from sre_triton.operators.checks import check_function, refuse_onnx
from sre_triton.planning.plan import plans_are_recorded
from sre_triton.planning.request import current_backend
from sre_triton.private_api import apply_function as apply
from sre_triton.private_api import autocast_is_enabled, derivative_may_hide, has_autocast

__all__ = ["autocast", "needs_function", "pointwise_conv", "ring_conv", "ring_conv_transpose", "traced_by_jit"]


def ring_conv(x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs) -> Tensor:
    """Ring convolution of any dimension, for layers that have checked their arguments once.

    Args:
        x: (N, in, *space) or (in, *space), of as many spatial dimensions as ``args.stride`` has.
        weight: ring weights (out, in / groups, rings), of the dtype and device of ``x``.
        bias: (out,) or None.
        args: stride, padding, dilation, groups, kernel and requested backend.

    Returns:
        (N, out, *size) or (out, *size).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; or a requested backend cannot run the call.
    """
    if torch.compiler.is_compiling() or autocast_is_enabled():
        x, weight, bias = autocast(x, weight, bias)
    is_traced = _layers_traced_by_jit and torch.jit.is_tracing()
    if not is_traced:
        check_function(x, weight, bias, args)
    if x.dim() == len(args.stride) + 1:
        return ring_conv(x.unsqueeze(0), weight, bias, args).squeeze(0)
    if is_traced:
        return _ops.ring_conv.dispatch(x, weight, bias, args)
    if needs_function(x, weight, bias):
        return apply(RingConv, x, weight, bias, args)
    return _ops.ring_conv(x, weight, bias, args)


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def pointwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size | str, dilation: Size, groups: int,
    ndim: int,
) -> Tensor | None:  # fmt: skip
    """The convolution by a kernel of one tap: PyTorch's own with the same weight, derivatives included, and nothing
    else, as there is nothing to plan and nothing to save.

    None where it takes the way of all others: to a backend that is requested, under the eyes of a recorder, on GPUs, by
    padding or dilation, for which the dense backend has detours, and where PyTorch refuses it: so errors, and sizes of
    zero, are those of every kernel size.
    """
    if (
        current_backend() != "auto"
        or padding not in _NO_PADDING
        or dilation not in _NO_DILATION
        or type(x) is not Tensor
        or not x.is_cpu
        or weight.dim() != 3
        or weight.shape[2] != 1
        or plans_are_recorded()
    ):
        return None
    kernel = weight if ndim == 1 else weight.unsqueeze(2) if ndim == 2 else weight[..., None, None]
    try:
        return _CONV[ndim](x, kernel, bias, stride, 0, 1, groups)
    except (RuntimeError, TypeError):
        return None


_NO_PADDING = (0, "valid", *((0,) * n for n in _CONV))
_NO_DILATION = (1, *((1,) * n for n in _CONV))


def ring_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: tuple[int, ...], args: ConvArgs
) -> Tensor:
    """Transposed ring convolution of any dimension, for layers that have checked their arguments once.

    Args:
        x: (N, in, *space) or (in, *space), of as many spatial dimensions as ``args.stride`` has.
        weight: ring weights (in, out / groups, rings), of the dtype and device of ``x``.
        bias: (out,) or None.
        output_padding: pixels added at the far end, one int per spatial dimension.
        args: stride, padding, dilation, groups, kernel and requested backend.

    Returns:
        (N, out, *size) or (out, *size).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; or a requested backend cannot run the call.
    """
    if torch.compiler.is_compiling() or autocast_is_enabled():
        x, weight, bias = autocast(x, weight, bias)
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
    if needs_function(x, weight, bias):
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


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast does to a convolution: every float tensor but float64 becomes its dtype."""
    kind = x.device.type
    if not (has_autocast(kind) and torch.is_autocast_enabled(kind)):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    return cast(x), cast(weight), None if bias is None else cast(bias)


def needs_function(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for: the bare operator has none, and costs less. In forward mode the Functions
    refuse with an error."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return not torch.compiler.is_compiling() and derivative_may_hide()
