"""Centred pooling that one recorded program computes at every image size.

The window of a centred pooling follows from the size, and programs (of ``torch.export``, ONNX, ``torch.jit.trace``)
hold windows as constants. Here places follow from the size, which may be unknown: each window is gathered by index, as
many times as the largest of all windows has pixels, and the last pixel stands for those that a smaller one has not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.conversion.behaviour import copied
from sre_triton.conversion.references import Replacement, replace_modules
from sre_triton.pooling import CenteredMaxPool1d, CenteredMaxPool2d, CenteredMaxPool3d, CenteredPoolNd, window

__all__ = ["for_any_size"]

_MAX = (CenteredMaxPool1d, CenteredMaxPool2d, CenteredMaxPool3d)


def for_any_size(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with the same function, whose centred poolings can be exported with dynamic sizes.

    Raises:
        ValueError: it cannot be copied, or something would go on holding a replaced pooling.
    """
    model, copies = copied(model)
    poolings = [
        Replacement(name, module, _GatheredPool(module))
        for name, module in model.named_modules()
        if isinstance(module, CenteredPoolNd)
    ]
    return replace_modules(model, poolings, copies)


class _GatheredPool(nn.Module):
    def __init__(self, pool: CenteredPoolNd) -> None:
        super().__init__()
        self.axes, self.takes_maximum = pool.axes(), isinstance(pool, _MAX)
        self.train(pool.training)

    def forward(self, x: Tensor) -> Tensor:
        for axis, (stride, reach) in enumerate(self.axes):
            x = self._along(x, axis - len(self.axes), stride, reach)
        return x

    def _along(self, x: Tensor, axis: int, stride: int, reach: int) -> Tensor:
        n: Any = x.shape[axis]
        size, padding = window(n, stride, reach)
        # Arithmetic on tensors alone, since a size that is traced may be no number.
        start = (x.new_ones(((n - reach + stride - 1) // stride,), dtype=torch.long).cumsum(0) - 1) * stride - padding
        first, last = start.clamp(min=0), (start + (size - 1)).clamp(max=n - 1)
        each = (-1, *[1] * (-axis - 1))
        total: Any = None
        for step in range(stride + max(reach, 1)):
            taken = x.index_select(axis, torch.minimum(first + step, last))
            if self.takes_maximum:
                total = taken if total is None else torch.maximum(total, taken)
            else:
                taken = taken * (first + step <= last).to(x.dtype).view(each)
                total = taken if total is None else total + taken
        pooled: Tensor = total if self.takes_maximum else total / (last - first + 1).to(x.dtype).view(each)
        return pooled
