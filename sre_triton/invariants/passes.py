"""Invariants and their gradients without a graph, piece by piece, so that what lies between input and output stays in
the cache and is never kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sre_triton.backends import triton
from sre_triton.backends.memory_format import layout_of, new_activation
from sre_triton.backends.native.library import missing
from sre_triton.invariants.formulas import (
    KINDS,
    Spec,
    accumulate,
    adjoint,
    compute_dtype,
    cotangents,
    derivatives,
    invariants,
    largest,
    pad,
)

__all__ = ["add_backward", "add_forward", "maps_backward", "maps_forward", "way_to_add"]

# Elements of a piece. About twenty tensors of this size are alive at once.
_PIECE = 1 << 16


class _Piece(NamedTuple):
    """Images, channels and rows (along the first spatial axis) that are computed together, and the rows around them
    that these depend on."""

    images: slice
    channels: slice
    rows: slice
    around: slice

    def with_halo(self, tensor: Tensor, number: int = 0, channels: int = 0) -> Tensor:
        """Of a map; or of invariant ``number`` among maps that hold ``channels`` of each."""
        first = number * channels
        return tensor[self.images, first + self.channels.start : first + self.channels.stop, self.around]

    def of(self, tensor: Tensor, number: int = 0, channels: int = 0) -> Tensor:
        """The same without the rows around."""
        return self.inner(self.with_halo(tensor, number, channels))

    def inner(self, part: Tensor) -> Tensor:
        """What was computed with a halo, without it."""
        return part[:, :, self.rows.start - self.around.start : self.rows.stop - self.around.start]


def _pieces(z: Tensor, halo: int) -> Iterator[_Piece]:
    """Cuts between channels first where they lie apart, and never where they lie side by side."""
    if z.numel() == 0:
        return
    images, channels, height = z.shape[:3]
    row = math.prod(z.shape[3:])
    together = channels
    if z.stride(1) != 1:
        together = max(1, min(channels, _PIECE // (height * row)))
    rows = max(8 * halo, min(height, _PIECE // (row * together)))
    for n in range(images):
        for c in range(0, channels, together):
            for r in range(0, height, rows):
                end = min(r + rows, height)
                around = slice(max(0, r - halo), min(height, end + halo))
                yield _Piece(slice(n, n + 1), slice(c, min(c + together, channels)), slice(r, end), around)


def _values(z: Tensor, spec: Spec) -> Iterator[Tensor]:
    """The invariants of a piece, by scale and then by kind."""
    for dilation in spec.dilations:
        yield from invariants(derivatives(pad(z, spec.ndim, dilation), spec, dilation, z.dtype), spec)


def maps_forward(z: Tensor, spec: Spec) -> Tensor:
    """(N, C, *space) to (N, per_channel * C, *space)."""
    if _is_triton(z, spec):
        return triton.invariants_forward(z, *_numbers(spec))
    channels = z.shape[1]
    y = new_activation(z, spec.per_channel * channels, tuple(z.shape[2:]))
    limit = largest(z.dtype)
    for piece in _pieces(z, max(spec.dilations)):
        part = piece.with_halo(z).to(compute_dtype(z.dtype))
        for number, value in enumerate(_values(part, spec)):
            value = piece.inner(value)
            piece.of(y, number, channels).copy_(value.clamp_(-limit, limit) if limit < math.inf else value)
    return y


def _pull_back(
    z: Tensor, spec: Spec, grad_z: Tensor, gradients: Callable[[int, list[Tensor]], Sequence[Tensor]]
) -> None:
    """Adds to ``grad_z`` what the invariants of ``z`` contribute. ``gradients`` gives those of the invariants of a
    scale from the number of the first and their values."""
    for i, dilation in enumerate(spec.dilations):
        padded = pad(z, spec.ndim, dilation)
        d = derivatives(padded, spec, dilation, z.dtype)
        found = gradients(i * len(spec.kinds), invariants(d, spec))
        into = padded.zero_()
        accumulate(into, cotangents(d, spec, found), spec, dilation)
        grad_z.add_(adjoint(into, spec.ndim, dilation))


def maps_backward(grad_y: Tensor, z: Tensor, spec: Spec) -> Tensor:
    """Gradient of :func:`maps_forward`."""
    if _is_triton(z, spec):
        return triton.invariants_backward(grad_y, z, *_numbers(spec))
    channels = z.shape[1]
    grad_z = new_activation(z, channels, tuple(z.shape[2:]))
    dtype, limit = compute_dtype(z.dtype), largest(z.dtype)
    for piece in _pieces(z, 2 * max(spec.dilations)):

        def gradients(start: int, values: list[Tensor], piece: _Piece = piece) -> Iterator[Tensor]:
            for number, value in enumerate(values, start):
                grad = piece.with_halo(grad_y, number, channels).to(dtype)
                yield grad.masked_fill(value.abs() > limit, 0) if limit < math.inf else grad

        part = piece.with_halo(z).to(dtype)
        total = torch.zeros_like(part)
        _pull_back(part, spec, total, lambda start, values: list(gradients(start, values)))
        piece.of(grad_z).copy_(piece.inner(total))
    return grad_z


def add_forward(z: Tensor, project: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """What :func:`sre_triton.invariants.formulas.add` computes."""
    y = new_activation(z, z.shape[1], tuple(z.shape[2:]))
    project, weight = project.flatten(1), weight.flatten(1)
    if _is_native(z, project):
        torch.ops.sre_triton_native.add_invariants(z, project.contiguous(), weight.contiguous(), *_numbers(spec), y)
        return y
    for images in _images(z):
        found = maps_forward(_mixed(z[images], project), spec)
        _add_mixed(y[images], z[images], found, weight)
    return y


def add_backward(
    grad_y: Tensor, z: Tensor, project: Tensor, weight: Tensor, spec: Spec
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`add_forward` for the map and for both matrices."""
    grad_z = new_activation(z, z.shape[1], tuple(z.shape[2:]))
    features_of, channels_of = project.flatten(1), weight.flatten(1)
    if _is_native(z, project):
        matrices = features_of.contiguous(), channels_of.contiguous()
        grads = torch.empty_like(matrices[0]), torch.empty_like(matrices[1])
        torch.ops.sre_triton_native.add_invariants_backward(grad_y, z, *matrices, *_numbers(spec), grad_z, *grads)
        return grad_z, grads[0].view_as(project), grads[1].view_as(weight)
    dtype = compute_dtype(z.dtype)
    grad_project, grad_weight = torch.zeros_like(features_of, dtype=dtype), torch.zeros_like(channels_of, dtype=dtype)
    for images in _images(z):
        part, grad = z[images], grad_y[images]
        features = _mixed(part, features_of)
        grad_weight += _outer(grad, maps_forward(features, spec))
        grad_features = maps_backward(_mixed(grad, channels_of.t()), features, spec)
        grad_project += _outer(grad_features, part)
        _add_mixed(grad_z[images], grad, grad_features, features_of.t())
    return (
        grad_z,
        grad_project.to(project.dtype).view_as(project),
        grad_weight.to(weight.dtype).view_as(weight),
    )


def way_to_add(z: Tensor, spec: Spec) -> str:
    """What computes :func:`add_forward` and :func:`add_backward` of such a map, in words."""
    if z.device.type != "cpu":
        refusal = triton.invariants_refusal(z, *_numbers(spec)[:2])
        return "triton" if refusal is None else f"PyTorch operations, piece by piece ({refusal})"
    reason = missing()
    return "native (one pass over the map)" if reason is None else f"PyTorch operations, piece by piece ({reason})"


def _is_native(z: Tensor, project: Tensor) -> bool:
    """Whether the native kernel is there and takes these tensors."""
    return z.device.type == "cpu" and z.numel() > 0 and project.shape[0] > 0 and missing() is None


def _is_triton(z: Tensor, spec: Spec) -> bool:
    """Whether the kernels of a GPU take this map."""
    return z.device.type != "cpu" and z.numel() > 0 and triton.invariants_refusal(z, *_numbers(spec)[:2]) is None


def _numbers(spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """What the kernels read of it."""
    return tuple(KINDS.index(kind) for kind in spec.kinds), spec.dilations, spec.eps


def _images(z: Tensor) -> Iterator[slice]:
    """Images that are computed together: so many that a call is worth it."""
    elements = _PIECE * 4 if z.device.type == "cpu" else _PIECE * 1024
    together = max(1, elements // max(1, math.prod(z.shape[1:])))
    for start in range(0, z.shape[0] if z.numel() else 0, together):
        yield slice(start, min(start + together, z.shape[0]))


def _rows(x: Tensor) -> Tensor | None:
    """(positions, channels) of a map whose channels lie side by side, as a view; else None."""
    moved = x.movedim(1, -1)
    return moved.view(-1, x.shape[1]) if layout_of(x) != torch.contiguous_format else None


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """Other channels, each a sum of those of ``x``."""
    y = new_activation(x, matrix.shape[0], tuple(x.shape[2:]))
    if (rows := _rows(x)) is not None:
        torch.mm(rows, matrix.t(), out=y.movedim(1, -1).view(-1, matrix.shape[0]))
    else:
        y.flatten(2).copy_(matrix @ x.flatten(2))
    return y


def _add_mixed(y: Tensor, x: Tensor, other: Tensor, matrix: Tensor) -> None:
    """``y`` becomes ``x`` plus mixed channels of ``other``."""
    y.copy_(x).add_(_mixed(other, matrix))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over positions of products of channels."""
    if (rows := _rows(left)) is not None and (others := _rows(right)) is not None:
        return (rows.t() @ others).to(compute_dtype(left.dtype))
    return (left.flatten(2) @ right.flatten(2).mT).to(compute_dtype(left.dtype)).sum(0)
