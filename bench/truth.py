"""The truth that a benchmarked layer is held against: the dense convolution in float64.

A slice of the result is compared, a few channels of it, so that the check stays cheaper than the race.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import sre_triton
from bench.cases import Case
from sre_triton.layers import RingConvNd

__all__ = ["worst_error"]

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_FEW = 4


def worst_error(layer: RingConvNd, case: Case, k: int, x: Tensor, *, train: bool) -> float:
    """Largest error of the layer's result, and of its gradients if it trains, over the largest true value."""
    few_in, few_out = slice(min(_FEW, case.in_channels // case.groups)), slice(_FEW)
    group_in, group_out = slice(case.in_channels // case.groups), slice(case.out_channels // case.groups)
    few_out = slice(min(_FEW, case.out_channels // case.groups))
    if not train:
        with torch.no_grad():
            y = layer(x)
        return _error(y[:1, few_out], _dense(case, k, x[:1, group_in], layer.weight[few_out]))

    x = x.detach().requires_grad_()
    y = layer(x)
    grad_y = torch.randn_like(y)
    grad_x, grad_weight = torch.autograd.grad(y, (x, layer.weight), grad_y)
    true_y = _dense(case, k, x[:1, group_in], layer.weight[few_out])
    of_image = _dense(case, k, seen := x[:1, few_in], layer.weight[group_out, few_in])
    (true_grad_x,) = torch.autograd.grad(of_image, seen, grad_y[:1, group_out].to(of_image.dtype))
    of_weight = _dense(case, k, x[:, few_in], used := layer.weight[few_out, few_in])
    (true_grad_weight,) = torch.autograd.grad(of_weight, used, grad_y[:, few_out].to(of_weight.dtype))
    return max(
        _error(y[:1, few_out], true_y),
        _error(grad_x[:1, few_in], true_grad_x),
        _error(grad_weight[few_out, few_in], true_grad_weight),
    )


def _dense(case: Case, k: int, x: Tensor, weight: Tensor) -> Tensor:
    kernel = sre_triton.expand_kernel(weight.double(), (k,) * case.ndim)
    return _CONV[case.ndim - 1](x.double(), kernel, None, case.stride, k // 2)


def _error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()
