"""Memory layouts: what the kernels see of a tensor, and what the caller gets back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["as_ndhwc", "channels_inner", "device_of", "empty_output", "output_format"]

_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}


def output_format(x: Tensor) -> torch.memory_format:
    """Memory format of the output for this input: channels_last for channels_last, else contiguous."""
    memory_format = _FORMAT.get(x.dim())
    if memory_format is None or not x.is_contiguous(memory_format=memory_format):
        return torch.contiguous_format
    return memory_format if x.stride(1) == 1 and x.stride(-1) == x.shape[1] else torch.contiguous_format


def channels_inner(x: Tensor) -> Tensor:
    """View of ``(N, C, *space)`` as [N, D, H, W, C], without copying."""
    x = x.movedim(1, -1)
    while x.dim() < 5:
        x = x.unsqueeze(1)
    return x


def as_ndhwc(x: Tensor) -> Tensor:
    """[N, D, H, W, C] with dense memory: converted once here unless the input is channels_last."""
    return channels_inner(x).contiguous()


def empty_output(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=output_format(like))


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Make x's device current: a launch goes to the current device, whatever its arguments say."""
    if x.device.type in ("cpu", "meta"):  # interpreted, or recorded without a device
        return nullcontext()
    return torch.get_device_module(x.device).device(x.device)
