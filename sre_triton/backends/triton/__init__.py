"""The Triton backend: kernels, their launchers and the choice of tiles.

Importing this package imports no Triton; the first call of one of its functions does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from sre_triton.backends.base import Call, FusedBackend
from sre_triton.backends.expansion import ExpansionKernels
from sre_triton.backends.memory_format import contiguous, laid_out_like
from sre_triton.geometry.conv import ConvSpec
from sre_triton.geometry.rings import RingGeometry

__all__ = [
    "backward",
    "collapse",
    "device_refusal",
    "expand",
    "forward",
    "fused_forward",
    "invariants_backward",
    "invariants_forward",
    "invariants_refusal",
    "refusal",
    "transpose",
    "weight_grad",
]


class _Launchers(FusedBackend, ExpansionKernels, Protocol):
    """What :mod:`sre_triton.backends.triton.launch` offers."""

    def invariants_refusal(self, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...]) -> str | None: ...

    def invariants_forward(
        self, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float
    ) -> Tensor: ...

    def invariants_backward(
        self, grad_y: Tensor, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float
    ) -> Tensor: ...


@lru_cache(maxsize=1)
def _launchers() -> _Launchers:
    from sre_triton.backends.triton import launch

    return launch


def refusal(call: Call) -> str | None:
    try:
        return _launchers().refusal(call)
    except ImportError as error:
        return f"Triton cannot be imported ({error})"


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    return _launchers().forward(x, weight, bias, spec)


def fused_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    *,
    activation: str | None,
    negative_slope: float,
    residual: Tensor | None,
) -> Tensor:
    return _launchers().fused_forward(
        x, weight, bias, spec, activation=activation, negative_slope=negative_slope, residual=residual
    )


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    return _launchers().transpose(x, weight, bias, spec, output_padding)


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    return contiguous(_launchers().weight_grad(x, grad_y, spec))


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = _launchers().backward(grad_y, x, weight, spec)
    return laid_out_like(x, grad_x), contiguous(grad_weight)


def device_refusal(device_type: str, dtype: torch.dtype) -> str | None:
    try:
        return _launchers().device_refusal(device_type, dtype)
    except ImportError as error:
        return f"Triton cannot be imported ({error})"


def expand(weight: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    return _launchers().expand(weight, geometry, dtype)


def collapse(dense: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    return _launchers().collapse(dense, geometry, dtype)


def invariants_refusal(z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...]) -> str | None:
    try:
        return _launchers().invariants_refusal(z, kinds, dilations)
    except ImportError as error:
        return f"Triton cannot be imported ({error})"


def invariants_forward(z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float) -> Tensor:
    return _launchers().invariants_forward(z, kinds, dilations, eps)


def invariants_backward(
    grad_y: Tensor, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float
) -> Tensor:
    return _launchers().invariants_backward(grad_y, z, kinds, dilations, eps)
