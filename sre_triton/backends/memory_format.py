"""The one rule of memory layout: outputs are channels_last where the input is, and contiguous otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["layout_of", "new_activation"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last if x is laid out so, else contiguous. Strides decide between the two where a
    size of 1 makes x both."""
    channels_last = _CHANNELS_LAST.get(x.dim())
    if (
        channels_last is not None
        and x.stride(1) == 1
        and x.stride(-1) == x.shape[1]
        and x.is_contiguous(memory_format=channels_last)
    ):
        return channels_last
    return torch.contiguous_format


def new_activation(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An empty ``(N, channels, *size)`` tensor in the layout of ``like``."""
    shape = (like.shape[0], channels, *size)
    layout = layout_of(like)
    if shape == like.shape and (layout is not torch.contiguous_format or like.is_contiguous()):
        return torch.empty_like(like)  # the same in half the time
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
