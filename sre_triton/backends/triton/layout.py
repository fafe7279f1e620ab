"""What the kernels see of a tensor, and the device they are launched on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sre_triton.backends.memory_format import layout_of

__all__ = ["as_ndhwc", "channels_inner", "device_of", "is_dense", "new_strides"]


def channels_inner(x: Tensor) -> Tensor:
    """View of ``(N, C, *space)`` as [N, D, H, W, C], without copying."""
    x = x.movedim(1, -1)
    while x.dim() < 5:
        x = x.unsqueeze(1)
    return x


def as_ndhwc(x: Tensor) -> Tensor:
    """[N, D, H, W, C] with dense memory: converted once here unless the input is channels_last."""
    return channels_inner(x).contiguous()


def device_of(device: torch.device) -> AbstractContextManager[object]:
    """Make a device current: a launch goes to the current device, whatever its arguments say."""
    if device.type in ("cpu", "meta"):  # interpreted, or recorded without a device
        return nullcontext()
    return torch.get_device_module(device).device(device)


def is_dense(x: Tensor) -> bool:
    """Whether the memory of ``x`` is that of [N, D, H, W, C] already."""
    return channels_inner(x).is_contiguous()


def new_strides(like: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a new tensor of this shape in the layout of ``like``."""
    return torch.empty(shape, device="meta", memory_format=layout_of(like)).stride()
