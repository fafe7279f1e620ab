"""Ring weights to a dense kernel and back, and who does it: PyTorch operations, or a backend's kernels in one pass.

Both take any pair of dtypes, and round once: float32 weights become a bfloat16 kernel without a copy in between.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from sre_triton.geometry.rings import RingGeometry

__all__ = ["ExpansionKernels", "collapse", "expand", "use_kernels"]


class ExpansionKernels(Protocol):
    """Kernels that do the work of :func:`expand` and :func:`collapse`."""

    def device_refusal(self, device_type: str, dtype: torch.dtype, /) -> str | None:
        """Why they cannot take or make tensors of this type, in words; None if they can."""
        ...

    def expand(self, weight: Tensor, geometry: RingGeometry, dtype: torch.dtype | None, /) -> Tensor: ...

    def collapse(self, dense: Tensor, geometry: RingGeometry, dtype: torch.dtype | None, /) -> Tensor: ...


_kernels: ExpansionKernels | None = None


def use_kernels(kernels: ExpansionKernels) -> None:
    """Sets the kernels that expand. :mod:`sre_triton.backends.registry` calls it, as nothing here may import a
    backend."""
    global _kernels
    _kernels = kernels


def _kernels_for(tensor: Tensor, dtype: torch.dtype, requested: bool) -> ExpansionKernels | None:
    """The kernels on a GPU, and on any device that they run on if they were asked for: so the interpreter is reached
    by an explicit request alone."""
    device_type = tensor.device.type
    if _kernels is None or not (requested or device_type in ("cuda", "xpu")):
        return None
    refused = any(_kernels.device_refusal(device_type, kind) for kind in (tensor.dtype, dtype))
    return None if refused else _kernels


def expand(
    weight: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None, *, by_kernels: bool = False
) -> Tensor:
    """Dense kernel ``(o, i, *kernel_size)`` of ring weights ``(o, i, rings)``, in ``dtype`` or theirs."""
    dtype = dtype or weight.dtype
    if kernels := _kernels_for(weight, dtype, by_kernels):
        return kernels.expand(weight, geometry, dtype)
    o, i, rings = weight.shape
    if geometry.num_taps == 1:  # of weight one, whatever the geometry
        return weight.view(o, i, *geometry.kernel_size).to(dtype, copy=True, memory_format=torch.contiguous_format)
    table, _ = _table(geometry, _product_dtype(weight, dtype), weight.device)
    weight = weight.to(table.dtype)
    if weight.device.type == "cpu":
        # A product with a one-hot matrix is exact: every sum has one term that is not zero.
        dense = torch.mm(weight.reshape(o * i, rings), table)
    else:
        # Elsewhere a float32 product may run in TF32 and would round the weights themselves.
        dense = weight.new_zeros(o, i, geometry.num_taps)
        for ring in range(rings):
            dense.addcmul_(weight[:, :, ring, None], table[ring])
    return dense.to(dtype).view(o, i, *geometry.kernel_size)


def collapse(
    dense: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None, *, by_kernels: bool = False
) -> Tensor:
    """Adjoint of :func:`expand`: weighted sum of a dense kernel's taps over each ring, in ``dtype`` or the kernel's."""
    dtype = dtype or dense.dtype
    if kernels := _kernels_for(dense, dtype, by_kernels):
        return kernels.collapse(dense, geometry, dtype)
    o, i = dense.shape[:2]
    if geometry.num_taps == 1:
        return dense.reshape(o, i, 1).to(dtype, copy=True, memory_format=torch.contiguous_format)
    table, transposed = _table(geometry, _product_dtype(dense, dtype), dense.device)
    flat = dense.to(table.dtype).reshape(o * i, geometry.num_taps)
    if dense.device.type == "cpu":
        weight = torch.mm(flat, transposed)
    else:
        weight = torch.stack([(flat * row).sum(-1) for row in table], dim=-1)
    return weight.to(dtype).view(o, i, geometry.num_rings)


def _product_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The wider of both dtypes: sums are formed in it and rounded once. CPUs multiply float16 through float32."""
    wider = torch.promote_types(tensor.dtype, dtype)
    return torch.float32 if wider is torch.float16 and tensor.device.type == "cpu" else wider


@lru_cache(maxsize=256)
def _table(geometry: RingGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """``M[ring, tap]`` and its transpose. Constants of the geometry, shared by all layers that have it."""
    table = torch.from_numpy(geometry.weights.copy()).to(device=device, dtype=dtype)
    return table, table.t().contiguous()
