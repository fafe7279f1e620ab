"""The dense path: expand the rings to an ordinary kernel and let PyTorch convolve with it.

It runs on every device and dtype that ``F.convNd`` runs on, and in float64 it is the truth that the
other paths are held against. The expanded kernel lives for one call and is never saved.

Like every execution path it offers four functions, told apart by what they compute and nothing else:
:func:`forward`, :func:`transpose` (its adjoint in the input), :func:`weight_grad` (its adjoint in the
ring weight) and :func:`backward` (both adjoints, where they can share work).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.backends.expansion import collapse, expand
from sre_triton.geometry.conv import ConvSpec

__all__ = ["backward", "collapse", "expand", "forward", "transpose", "weight_grad"]

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    kernel = expand(weight, spec.geometry)
    return _CONV[spec.ndim - 1](x, kernel, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    kernel = expand(weight, spec.geometry)
    return _CONV_TRANSPOSE[spec.ndim - 1](
        x, kernel, bias, spec.stride, spec.padding, output_padding, spec.groups, spec.dilation
    )


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    kernel = x.new_empty(()).expand(grad_y.shape[1], x.shape[1] // spec.groups, *spec.geometry.kernel_size)
    return collapse(_convolution_backward(grad_y, x, kernel, spec, (False, True))[1], spec.geometry)


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    kernel = expand(weight, spec.geometry)
    grad_x, grad_kernel = _convolution_backward(grad_y, x, kernel, spec, (True, True))
    return grad_x, collapse(grad_kernel, spec.geometry)


def _convolution_backward(
    grad_y: Tensor, x: Tensor, kernel: Tensor, spec: ConvSpec, mask: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    if x.dtype is torch.bfloat16 and mask[1] and _reads_garbage(x, spec):
        grads = _convolution_backward(grad_y.float(), x.float(), kernel.float(), spec, mask)
        return grads[0].to(x.dtype) if mask[0] else grads[0], grads[1].to(x.dtype)
    grads = torch.ops.aten.convolution_backward.default(
        grad_y,
        x,
        kernel,
        None,
        spec.stride,
        spec.padding,
        spec.dilation,
        False,
        [0] * spec.ndim,
        spec.groups,
        [*mask, False],
    )
    return grads[0], grads[1]


def _reads_garbage(x: Tensor, spec: ConvSpec) -> bool:
    """Where PyTorch's own weight gradient is wrong in bfloat16.

    In 3-D oneDNN (as of PyTorch 2.13) takes uninitialised memory for the planes beyond an image that is smaller
    than the kernel.
    """
    return (
        x.device.type == "cpu"
        and x.dim() == 5
        and any(n < k for n, k in zip(x.shape[2:], spec.geometry.kernel_size, strict=True))
    )
