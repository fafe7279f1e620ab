"""The dense backend: expand the rings to an ordinary kernel and let PyTorch convolve with it.

It runs on every device and dtype that ``F.convNd`` runs on, and in float64 it is the truth that the
other backends are held against. The expanded kernel lives for one call and is never saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.backends import subpixel
from sre_triton.backends.base import Call
from sre_triton.backends.expansion import collapse, expand
from sre_triton.backends.memory_format import contiguous, laid_out_like
from sre_triton.geometry.conv import ConvSpec

__all__ = ["backward", "collapse", "expand", "forward", "refusal", "transpose", "weight_grad"]

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def refusal(call: Call) -> str | None:
    return None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    kernel = expand(weight, spec.geometry)
    convolve = _CONV[spec.ndim - 1]
    return laid_out_like(x, convolve(x, kernel, bias, spec.stride, spec.padding, spec.dilation, spec.groups))


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    kernel = expand(weight, spec.geometry)
    size = spec.transposed_size(x.shape[2:], output_padding)
    if subpixel.is_worthwhile(x, kernel.shape[1], spec, size):
        return subpixel.transpose(x, kernel, bias, spec, size)
    convolve = _CONV_TRANSPOSE[spec.ndim - 1]
    y = convolve(x, kernel, bias, spec.stride, spec.padding, output_padding, spec.groups, spec.dilation)
    return laid_out_like(x, y)


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    kernel = x.new_empty(()).expand(grad_y.shape[1], x.shape[1] // spec.groups, *spec.geometry.kernel_size)
    return contiguous(collapse(_kernel_grad(grad_y, x, kernel, spec), spec.geometry))


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    kernel = expand(weight, spec.geometry)
    size = tuple(x.shape[2:])
    if subpixel.is_worthwhile(grad_y, kernel.shape[1], spec, size):
        grad_x = subpixel.transpose(grad_y, kernel, None, spec, size)
        grad_kernel = _kernel_grad(grad_y, x, kernel, spec)
    elif _reads_garbage(x, spec) or _is_slow(x, spec):
        grad_x, _ = _convolution_backward(grad_y, x, kernel, spec, spec.padding, (True, False))
        grad_kernel = _kernel_grad(grad_y, x, kernel, spec)
    else:
        grad_x, grad_kernel = _convolution_backward(grad_y, x, kernel, spec, spec.padding, (True, True))
    return laid_out_like(x, grad_x), contiguous(collapse(grad_kernel, spec.geometry))


def _kernel_grad(grad_y: Tensor, x: Tensor, kernel: Tensor, spec: ConvSpec) -> Tensor:
    dtype, padding = x.dtype, spec.padding
    if _reads_garbage(x, spec):
        grad_y, x, kernel = grad_y.float(), x.float(), kernel.float()
    if _is_slow(x, spec):
        padding = tuple(min(p, r // 2) for p, r in zip(padding, spec.reach, strict=True))
        by_hand = [p - q for p, q in zip(spec.padding, padding, strict=True)]
        x = F.pad(x, [extra for extra in reversed(by_hand) for _ in range(2)])
    return _convolution_backward(grad_y, x, kernel, spec, padding, (False, True))[1].to(dtype)


def _convolution_backward(
    grad_y: Tensor, x: Tensor, kernel: Tensor, spec: ConvSpec, padding: tuple[int, ...], mask: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    grads = torch.ops.aten.convolution_backward.default(
        grad_y,
        x,
        kernel,
        None,
        spec.stride,
        padding,
        spec.dilation,
        False,
        [0] * spec.ndim,
        spec.groups,
        [*mask, False],
    )
    return grads[0], grads[1]


# What is wrong with the weight gradients of oneDNN, as of PyTorch 2.13.


def _reads_garbage(x: Tensor, spec: ConvSpec) -> bool:
    """Where bfloat16 ones are sums over uninitialised memory: in 3-D with dilation or an image smaller than the
    kernel, in 2-D with dilation and groups."""
    if x.dtype is not torch.bfloat16 or x.device.type != "cpu":
        return False
    if spec.ndim == 3 and any(n < k for n, k in zip(x.shape[2:], spec.geometry.kernel_size, strict=True)):
        return True
    return spec.is_dilated and (spec.ndim == 3 or (spec.ndim == 2 and spec.groups > 1))


def _is_slow(x: Tensor, spec: ConvSpec) -> bool:
    """Where padding above half the kernel leads to an algorithm that takes two to ten times as long (once, 750)."""
    if x.device.type != "cpu" or not spec.pads_beyond_half or spec.groups == x.shape[1]:
        return False
    if spec.ndim == 3:
        return x.dtype in (torch.float32, torch.bfloat16) and not spec.is_dilated
    return spec.ndim == 2 and x.dtype is torch.bfloat16
