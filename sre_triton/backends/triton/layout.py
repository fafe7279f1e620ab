"""What the kernels see of a tensor, and the device they are launched on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["as_ndhwc", "channels_inner", "device_of"]


def channels_inner(x: Tensor) -> Tensor:
    """View of ``(N, C, *space)`` as [N, D, H, W, C], without copying."""
    x = x.movedim(1, -1)
    while x.dim() < 5:
        x = x.unsqueeze(1)
    return x


def as_ndhwc(x: Tensor) -> Tensor:
    """[N, D, H, W, C] with dense memory: converted once here unless the input is channels_last."""
    return channels_inner(x).contiguous()


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Make x's device current: a launch goes to the current device, whatever its arguments say."""
    if x.device.type in ("cpu", "meta"):  # interpreted, or recorded without a device
        return nullcontext()
    return torch.get_device_module(x.device).device(x.device)
