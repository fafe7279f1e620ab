"""The one rule of memory layout: activations are channels_last where the input is, and contiguous otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["contiguous", "laid_out_like", "layout_of", "new_activation"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last if the strides of x are those of that layout, else contiguous. Dimensions of size 1 could belong to
    either; their strides are compared, too."""
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
    """An empty ``(N, channels, *size)`` tensor in the layout of ``like``, with the strides that such tensors have.

    ``like`` may have other strides in its dimensions of size 1. They decide the layout of what follows, so a compiled
    graph would differ from its fakes if they were kept.
    """
    shape = (like.shape[0], channels, *size)
    layout = layout_of(like)
    # The same in half the time. Fakes may have symbolic sizes, which cannot be looked up.
    if type(like) is Tensor and shape == like.shape and like.stride() == _strides(like.shape, layout):
        return torch.empty_like(like)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def laid_out_like(like: Tensor, y: Tensor) -> Tensor:
    """``y`` in the layout of ``like``, with the strides of a new tensor."""
    return _laid_out(y, layout_of(like))


def contiguous(y: Tensor) -> Tensor:
    """``y.contiguous()``, with the strides of a new tensor."""
    return _laid_out(y, torch.contiguous_format)


def _laid_out(y: Tensor, layout: torch.memory_format) -> Tensor:
    # This leaves the strides of dimensions of size 1 as they are.
    y = y.contiguous(memory_format=layout)
    strides = _strides(y.shape, layout)
    return y if y.stride() == strides else y.as_strided(y.shape, strides)


@lru_cache(maxsize=8192)
def _strides(size: torch.Size, layout: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(size, device="meta", memory_format=layout).stride()
