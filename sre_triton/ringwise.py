"""The ring-wise path: sum each ring first, then mix channels with one small product per ring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.spec import ConvSpec

__all__ = ["backward", "forward", "transpose", "weight_grad"]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    n, groups = x.shape[0], spec.groups
    size = spec.output_size(x.shape[2:])
    y = None
    for ring, sums in enumerate(_ring_sums(x, spec)):
        s = sums.reshape(n, groups, x.shape[1] // groups, -1)
        w = weight[:, :, ring].reshape(groups, -1, weight.shape[1])
        term = torch.matmul(w, s)
        y = term if y is None else y + term
    out = y.reshape(n, weight.shape[0], *size)
    return out if bias is None else out + bias.view(-1, *[1] * spec.ndim)


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    n, groups = x.shape[0], spec.groups
    size = spec.transposed_size(x.shape[2:], output_padding)
    channels = weight.shape[1] * groups
    padded = [m + 2 * p for m, p in zip(size, spec.padding, strict=True)]
    need = [(m - 1) * s + r + 1 for m, s, r in zip(x.shape[2:], spec.stride, spec.reach, strict=True)]
    out = x.new_zeros(n, channels, *[max(a, b) for a, b in zip(padded, need, strict=True)])
    flat = x.reshape(n, groups, x.shape[1] // groups, -1)
    for ring in range(weight.shape[2]):
        w = weight[:, :, ring].reshape(groups, -1, weight.shape[1])
        mixed = torch.matmul(w.transpose(1, 2), flat).reshape(n, channels, *x.shape[2:])
        for index, share in _taps(spec, ring, x.shape[2:]):
            out[index] += mixed if share == 1 else share * mixed
    out = out[(..., *[slice(p, p + m) for p, m in zip(spec.padding, size, strict=True)])].contiguous()
    return out if bias is None else out + bias.view(-1, *[1] * spec.ndim)


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    n, groups = x.shape[0], spec.groups
    g = grad_y.reshape(n, groups, grad_y.shape[1] // groups, -1)
    grads = []
    for sums in _ring_sums(x, spec):
        s = sums.reshape(n, groups, x.shape[1] // groups, -1)
        grads.append(torch.einsum("ngop,ngip->goi", g, s).reshape(grad_y.shape[1], -1))
    return torch.stack(grads, dim=-1)


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    padding = spec.output_padding(x.shape[2:], grad_y.shape[2:])
    return transpose(grad_y, weight, None, spec, padding), weight_grad(x, grad_y, spec)


def _ring_sums(x: Tensor, spec: ConvSpec) -> Iterator[Tensor]:
    size = spec.output_size(x.shape[2:])
    padded = F.pad(x, [p for p in reversed(spec.padding) for _ in range(2)])
    for ring in range(spec.geometry.num_rings):
        total = x.new_zeros(*x.shape[:2], *size)
        for index, share in _taps(spec, ring, size):
            total += padded[index] if share == 1 else share * padded[index]
        yield total


def _taps(spec: ConvSpec, ring: int, size: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], float]]:
    radius = spec.geometry.kernel_size[0] // 2
    for offset, share in zip(spec.geometry.offsets, spec.geometry.weights[ring], strict=True):
        if share:
            starts = [d * (o + radius) for d, o in zip(spec.dilation, offset, strict=True)]
            yield (
                (..., *[slice(a, a + (m - 1) * s + 1, s) for a, m, s in zip(starts, size, spec.stride, strict=True)]),
                float(share),
            )
