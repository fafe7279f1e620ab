"""Ring weights to a dense kernel and back: one pass of a Triton kernel on a GPU, PyTorch operations elsewhere.

Both take any pair of dtypes, and round once: float32 weights become a bfloat16 kernel without a copy in between.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from sre_triton.geometry.rings import RingGeometry

__all__ = ["collapse", "expand"]


def expand(weight: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Dense kernel ``(o, i, *kernel_size)`` of ring weights ``(o, i, rings)``, in ``dtype`` or theirs."""
    dtype = dtype or weight.dtype
    if kernels := _kernels(weight, dtype):
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


def collapse(dense: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Adjoint of :func:`expand`: weighted sum of a dense kernel's taps over each ring, in ``dtype`` or the kernel's."""
    dtype = dtype or dense.dtype
    if kernels := _kernels(dense, dtype):
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


def _kernels(tensor: Tensor, dtype: torch.dtype) -> ModuleType | None:
    """The Triton launchers, if they can do this on the tensor's device. The interpreter is for explicit requests."""
    if tensor.device.type not in ("cuda", "xpu"):
        return None
    launch = _launchers()
    if launch is None or any(launch.device_refusal(tensor.device.type, kind) for kind in (tensor.dtype, dtype)):
        return None
    return launch


@lru_cache(maxsize=1)
def _launchers() -> ModuleType | None:
    try:
        return import_module("sre_triton.backends.triton.launch")
    except ImportError:
        return None


def _product_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The wider of both dtypes: sums are formed in it and rounded once. CPUs multiply float16 through float32."""
    wider = torch.promote_types(tensor.dtype, dtype)
    return torch.float32 if wider is torch.float16 and tensor.device.type == "cpu" else wider


@lru_cache(maxsize=256)
def _table(geometry: RingGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """``M[ring, tap]`` and its transpose. Constants of the geometry, shared by all layers that have it."""
    with torch.inference_mode(False):  # kept for calls of every mode
        table = torch.from_numpy(geometry.weights.copy()).to(device=device, dtype=dtype)
        return table, table.t().contiguous()
