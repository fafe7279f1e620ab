"""Differences of a map and the invariants made of them: values, derivatives and adjoints, in 2-D and 3-D alike.

README.md beside this file has the derivation. Sums are written so that a flip or a quarter turn exchanges the terms of
one commutative addition, or its sign: in 2-D the invariants then turn with the map bit by bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "KINDS",
    "Derivatives",
    "Spec",
    "accumulate",
    "add",
    "adjoint",
    "compute_dtype",
    "cotangents",
    "derivatives",
    "invariants",
    "largest",
    "maps",
    "pad",
    "products",
]

KINDS = ("gradient", "anisotropy", "isophote", "flow")
"""What is computed of one channel alone."""

_SMOOTHING = 1 / 6  # makes the length of the gradient independent of its direction up to the fourth order


_POINTWISE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}


class Spec(NamedTuple):
    """Which invariants of a map with ``ndim`` spatial dimensions, and at which scales; ``eps`` rounds off the roots."""

    ndim: int
    kinds: tuple[str, ...]
    dilations: tuple[int, ...]
    eps: float

    @property
    def per_channel(self) -> int:
        """Invariants per channel."""
        return len(self.kinds) * len(self.dilations)

    @property
    def needs_first(self) -> bool:
        """Whether a kind reads first derivatives."""
        return self.kinds != ("anisotropy",)

    @property
    def needs_second(self) -> bool:
        """Whether a kind reads second derivatives."""
        return any(kind != "gradient" for kind in self.kinds)

    @property
    def needs_center(self) -> bool:
        """Whether second derivatives are needed one by one, and not only their differences."""
        return any(kind in ("isophote", "flow") for kind in self.kinds)

    @property
    def additions(self) -> int:
        """Of the differences, per position and feature, for all scales."""
        axes, corners = self.ndim, len(pairs(self.ndim))
        first = (axes + 6 * corners) * self.needs_first
        second = (axes * (2 if self.needs_center else 1) + 3 * corners) * self.needs_second
        return len(self.dilations) * (first + second)


class Derivatives(NamedTuple):
    """First derivatives by axis, second ones by axis, mixed ones by pair of axes; or what is added up for each.

    Without ``needs_center`` each second derivative lacks the same multiple of the centre.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    mixed: tuple[Tensor, ...]


def pairs(ndim: int) -> list[tuple[int, int]]:
    """Pairs of axes, in the order of mixed derivatives."""
    return list(itertools.combinations(range(ndim), 2))


def pad(z: Tensor, ndim: int, by: int) -> Tensor:
    """(N, C, *space), its outermost pixels repeated ``by`` times."""
    if not torch.compiler.is_compiling():
        return F.pad(z, [by] * 2 * ndim, mode="replicate")
    # Its backward pass returns other strides than PyTorch promises the compiler, which then fails (2.13).
    for axis in range(-ndim, 0):
        first, last = (z.narrow(axis, place, 1) for place in (0, z.shape[axis] - 1))
        z = torch.cat([*[first] * by, z, *[last] * by], axis)
    return z


def bound(dtype: torch.dtype) -> float:
    """Derivatives are cut off here, so that no product of three overflows."""
    return 2.0**300 if dtype == torch.float64 else 2.0**40


class _Taps:
    """Views of a padded map, as large as the map, moved by a dilation along some axes."""

    def __init__(self, padded: Tensor, ndim: int, dilation: int) -> None:
        self.padded, self.ndim, self.dilation = padded, ndim, dilation
        self.size = [padded.shape[axis - ndim] - 2 * dilation for axis in range(ndim)]

    def __call__(self, *moves: tuple[int, int]) -> Tensor:
        steps = dict(moves)
        view = self.padded
        for axis, size in enumerate(self.size):
            view = view.narrow(axis - self.ndim, self.dilation * (1 + steps.get(axis, 0)), size)
        return view


def derivatives(padded: Tensor, spec: Spec, dilation: int, dtype: torch.dtype) -> Derivatives:
    """Of a map of some dtype that was padded by ``dilation``, per step of ``dilation`` pixels."""
    ndim = spec.ndim
    tap = _Taps(padded, ndim, dilation)
    limit = bound(dtype)
    lengthwise = 0.5 * (1 - 2 * _SMOOTHING * (ndim - 1))
    first, second, mixed = [], [], []
    for axis in range(ndim):
        ahead, behind = tap((axis, 1)), tap((axis, -1))
        if spec.needs_first:
            first.append((ahead - behind) * lengthwise)
        if spec.needs_second:
            second.append(ahead + behind - 2 * tap() if spec.needs_center else ahead + behind)
    for a, b in pairs(ndim):
        corners = [tap((a, i), (b, j)) for i, j in ((1, 1), (-1, -1), (1, -1), (-1, 1))]
        if spec.needs_first:
            u, v = (corners[0] - corners[1]) * (_SMOOTHING / 2), (corners[2] - corners[3]) * (_SMOOTHING / 2)
            first[a] = first[a] + (u + v)
            first[b] = first[b] + (u - v)
        if spec.needs_second:
            mixed.append(((corners[0] + corners[1]) - (corners[2] + corners[3])) * 0.25)
    return Derivatives(*(tuple(d.clamp(-limit, limit) for d in group) for group in (first, second, mixed)))


def _spread(spec: Spec) -> float:
    """Factor of the squared norm of the traceless Hessian: in 2-D the square of the difference of the eigenvalues."""
    return 2.0 if spec.ndim == 2 else 1.0


def _root(square: Tensor, eps: float) -> Tensor:
    return (square + eps * eps).sqrt()


def _square_of_gradient(d: Derivatives) -> Tensor:
    total = d.first[0] * d.first[0]
    for f in d.first[1:]:
        total = total + f * f
    return total


def _square_of_anisotropy(d: Derivatives, spec: Spec) -> Tensor:
    scale = _spread(spec)
    parts = []
    for (a, b), m in zip(pairs(spec.ndim), d.mixed, strict=True):
        unlike = d.second[a] - d.second[b]
        parts.append(unlike * unlike * (scale / spec.ndim) + m * m * (2 * scale))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _along_gradient(d: Derivatives, spec: Spec) -> Tensor:
    total = d.first[0] * d.first[0] * d.second[0]
    for f, s in zip(d.first[1:], d.second[1:], strict=True):
        total = total + f * f * s
    for (a, b), m in zip(pairs(spec.ndim), d.mixed, strict=True):
        total = total + 2 * (d.first[a] * d.first[b]) * m
    return total


def _trace(d: Derivatives) -> Tensor:
    total = d.second[0]
    for s in d.second[1:]:
        total = total + s
    return total


def invariants(d: Derivatives, spec: Spec) -> list[Tensor]:
    """One tensor per kind."""
    values = []
    for kind in spec.kinds:
        if kind == "gradient":
            values.append(_root(_square_of_gradient(d), spec.eps) - spec.eps)
        elif kind == "anisotropy":
            values.append(_root(_square_of_anisotropy(d, spec), spec.eps) - spec.eps)
        elif kind == "flow":
            values.append(_along_gradient(d, spec))
        else:
            values.append(_square_of_gradient(d) * _trace(d) - _along_gradient(d, spec))
    return values


def cotangents(d: Derivatives, spec: Spec, grads: Sequence[Tensor]) -> Derivatives:
    """Gradients of the derivatives from gradients of the invariants, one per kind."""
    first: list[Tensor | None] = [None] * len(d.first)
    second: list[Tensor | None] = [None] * len(d.second)
    mixed: list[Tensor | None] = [None] * len(d.mixed)

    def add(to: list[Tensor | None], i: int, value: Tensor) -> None:
        to[i] = value if to[i] is None else to[i] + value  # type: ignore[operator]

    for kind, grad in zip(spec.kinds, grads, strict=True):
        if kind == "gradient":
            share = grad / _root(_square_of_gradient(d), spec.eps)
            for a, f in enumerate(d.first):
                add(first, a, share * f)
        elif kind == "anisotropy":
            share = grad / _root(_square_of_anisotropy(d, spec), spec.eps) * _spread(spec)
            for i, (a, b) in enumerate(pairs(spec.ndim)):
                unlike = share * (d.second[a] - d.second[b]) * (1 / spec.ndim)
                add(second, a, unlike)
                add(second, b, -unlike)
                add(mixed, i, share * d.mixed[i] * 2)
        else:
            sign = 1 if kind == "flow" else -1
            signed = 2 * sign * grad
            for a, f in enumerate(d.first):
                bent = f * d.second[a]
                for i, pair in enumerate(pairs(spec.ndim)):
                    if a in pair:
                        bent = bent + d.first[sum(pair) - a] * d.mixed[i]
                add(first, a, signed * bent)
                add(second, a, sign * grad * f * f)
            for i, (a, b) in enumerate(pairs(spec.ndim)):
                add(mixed, i, signed * d.first[a] * d.first[b])
            if kind == "isophote":
                square, trace = _square_of_gradient(d), _trace(d)
                for a, f in enumerate(d.first):
                    add(first, a, 2 * grad * f * trace)
                    add(second, a, grad * square)
    limit = bound(grads[0].dtype)
    # Where a derivative was cut off it does not depend on the map.
    return Derivatives(
        *(
            tuple(
                torch.zeros_like(grads[0]) if c is None else c.masked_fill_(value.abs() >= limit, 0)
                for c, value in zip(found, values, strict=True)
            )
            for found, values in zip((first, second, mixed), d, strict=True)
        )
    )


def accumulate(padded_grad: Tensor, c: Derivatives, spec: Spec, dilation: int) -> None:
    """Adds to the gradient of a padded map what the gradients of its derivatives contribute, the adjoint of
    :func:`derivatives`."""
    ndim = spec.ndim
    tap = _Taps(padded_grad, ndim, dilation)
    lengthwise = 0.5 * (1 - 2 * _SMOOTHING * (ndim - 1))
    for axis in range(ndim):
        ahead, behind = tap((axis, 1)), tap((axis, -1))
        if spec.needs_first:
            ahead.add_(c.first[axis], alpha=lengthwise)
            behind.sub_(c.first[axis], alpha=lengthwise)
        if spec.needs_second:
            ahead.add_(c.second[axis])
            behind.add_(c.second[axis])
            if spec.needs_center:
                tap().sub_(c.second[axis], alpha=2)
    for i, (a, b) in enumerate(pairs(ndim)):
        corners = [tap((a, p), (b, q)) for p, q in ((1, 1), (-1, -1), (1, -1), (-1, 1))]
        if spec.needs_first:
            u, v = c.first[a] + c.first[b], c.first[a] - c.first[b]
            for corner, grad, sign in zip(corners, (u, u, v, v), (1, -1, 1, -1), strict=True):
                corner.add_(grad, alpha=sign * _SMOOTHING / 2)
        if spec.needs_second:
            for corner, sign in zip(corners, (1, 1, -1, -1), strict=True):
                corner.add_(c.mixed[i], alpha=sign * 0.25)


def adjoint(padded_grad: Tensor, ndim: int, by: int) -> Tensor:
    """The gradient of a map from that of :func:`pad` of it; a view of ``padded_grad``, which is changed."""
    for axis in range(-ndim, 0):
        size = padded_grad.shape[axis] - 2 * by
        for border, edge in ((0, 0), (by + size, size - 1)):
            inner = padded_grad.narrow(axis, by + edge, 1)
            inner.add_(padded_grad.narrow(axis, border, by).sum(axis, keepdim=True))
        padded_grad = padded_grad.narrow(axis, by, size)
    return padded_grad


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: single precision for the half types, which are too coarse for differences."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def largest(dtype: torch.dtype) -> float:
    """What an output is cut off at, so that it is finite in this type."""
    return math.inf if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).max


def _exact(z: Tensor, dtype: torch.dtype) -> Tensor:
    return z if compute_dtype(dtype) == dtype else z.to(compute_dtype(dtype))


def _finite(value: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
    limit = largest(dtype)
    return value if limit == math.inf else value.clamp(-limit, limit).type_as(z)


def maps(z: Tensor, spec: Spec, dtype: torch.dtype) -> Tensor:
    """The invariants of (N, C, *space) by scale, kind and channel, (N, per_channel * C, *space), in operations that
    can be differentiated, traced and transformed. ``dtype`` is that of ``z``, which a tracer does not tell."""
    exact = _exact(z, dtype)
    values: list[Tensor] = []
    for dilation in spec.dilations:
        values += invariants(derivatives(pad(exact, spec.ndim, dilation), spec, dilation, dtype), spec)
    return torch.cat([_finite(value, z, dtype) for value in values], 1)


def add(z: Tensor, project: Tensor, weight: Tensor, spec: Spec, dtype: torch.dtype) -> Tensor:
    """(N, C, *space) plus, mixed by ``weight`` (C, invariants * features, 1, ...), the invariants of features that
    ``project`` (features, C, 1, ...) mixes of its channels; in operations as those of :func:`maps`."""
    mix = _POINTWISE[spec.ndim]
    return z + mix(maps(mix(z, project), spec, dtype), weight)


def products(z: Tensor, partner: Tensor, spec: Spec, dtype: torch.dtype) -> Tensor:
    """Scalar products of the gradients of two maps of the same shape, (N, scales * C, *space)."""
    exact, other = _exact(z, dtype), _exact(partner, dtype)
    values = []
    for dilation in spec.dilations:
        ours, theirs = (derivatives(pad(x, spec.ndim, dilation), spec, dilation, dtype).first for x in (exact, other))
        total = ours[0] * theirs[0]
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            total = total + a * b
        values.append(_finite(total, z, dtype))
    return torch.cat(values, 1)
