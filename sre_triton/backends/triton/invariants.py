"""Launches of the kernels of differential invariants."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from sre_triton.backends.memory_format import layout_of, new_activation
from sre_triton.backends.triton import devices
from sre_triton.backends.triton.prepared import Launch
from sre_triton.backends.triton.stencils import (
    invariants_adjoint_kernel,
    invariants_cotangents_kernel,
    invariants_kernel,
)

__all__ = ["Invariants", "InvariantsBackward", "fits"]

_BLOCK = 128  # elements of a program: one for each thread
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
_MAX_IMAGE = 2**31 - 1 - _BLOCK  # offsets within an image are 32-bit


def fits(shape: tuple[int, ...], kinds: int, dilations: int) -> bool:
    """Whether the kernels can address the maps of such an image (N, C, *space), and what they keep of them."""
    return math.prod(shape[1:]) * dilations * max(kinds, _planes(len(shape) - 2)) <= _MAX_IMAGE


def _planes(ndim: int) -> int:
    """Derivatives of a map: first, second and mixed ones."""
    return 2 * ndim + math.comb(ndim, 2)


class _Stencil:
    """What the launches on maps like ``z`` share."""

    def __init__(self, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float) -> None:
        self.maps = len(kinds) * len(dilations)
        size = tuple(z.shape[2:])
        self._size, self._elements = (z.shape[1], *(1,) * (3 - len(size)), *size), math.prod(z.shape[1:])
        self._device = z.device
        self._adjoint = {
            "DILATIONS": dilations, "NDIM": len(size), "CENTER": any(kind > 1 for kind in kinds),
            "INNER": layout_of(z) != torch.contiguous_format, "BLOCK": _BLOCK,
        }  # fmt: skip
        largest = None if z.dtype == torch.float32 else torch.finfo(z.dtype).max
        self._constants = {"KINDS": kinds, "EPS": eps, "LARGEST": largest, **self._adjoint}

    def launch(self, kernel: Any, images: int, is_adjoint: bool = False) -> Launch:
        """A kernel on so many images."""
        grid = (images * triton.cdiv(self._elements, _BLOCK),)
        return Launch(
            kernel, self._device, grid, self._size, (self._adjoint if is_adjoint else self._constants) | _OPTIONS
        )


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=layout_of(x))


class Invariants(_Stencil):
    """The invariants of maps like ``z``, (N, C, *space) to (N, dilations * kinds * C, *space).

    Args:
        z: float32, float16 or bfloat16 in any layout.
        kinds, dilations, eps: as in :class:`sre_triton.invariants.formulas.Spec`, kinds by number.
    """

    def __init__(self, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float) -> None:
        super().__init__(z, kinds, dilations, eps)
        self._launch = self.launch(invariants_kernel, len(z))

    def __call__(self, z: Tensor) -> Tensor:
        y = new_activation(z, self.maps * z.shape[1], tuple(z.shape[2:]))
        self._launch(_dense(z), y)
        return y


class InvariantsBackward(_Stencil):
    """The gradient of :class:`Invariants`: what reaches each derivative, in memory, and from there each element.

    So many images are done at a time as the cache holds. Adds in a fixed order: the same bits in every run.
    """

    def __init__(self, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float) -> None:
        super().__init__(z, kinds, dilations, eps)
        self._planes = len(dilations) * _planes(z.dim() - 2)
        bytes_of_image = self._elements * self._planes * torch.float32.itemsize
        self._together = min(len(z), max(1, devices.device_limits(z.device).l2_bytes // (2 * bytes_of_image)))
        self._launches = {
            images: (
                self.launch(invariants_cotangents_kernel, images),
                self.launch(invariants_adjoint_kernel, images, is_adjoint=True),
            )
            for images in {self._together, len(z) % self._together} - {0}
        }

    def __call__(self, grad_y: Tensor, z: Tensor) -> Tensor:
        layout = layout_of(z)
        z, grad_y = _dense(z), grad_y.contiguous(memory_format=layout)
        grad_z = new_activation(z, z.shape[1], tuple(z.shape[2:]))
        shape = (self._together, self._planes * z.shape[1], *z.shape[2:])
        room = torch.empty(shape, dtype=torch.float32, device=z.device, memory_format=layout)
        for first in range(0, len(z), self._together):
            images = slice(first, first + self._together)
            cotangents, adjoint = self._launches[len(z[images])]
            cotangents(z[images], grad_y[images], room)
            adjoint(room, grad_z[images])
        return grad_z
