"""Centred pooling that one recorded program computes at every image size.

The window of a centred pooling follows from the size, and programs (of ``torch.export``, ONNX, ``torch.jit.trace``)
hold windows as constants. Here they are gathered by index.
"""

from __future__ import annotations

from torch import Tensor, nn

from sre_triton.conversion.behaviour import copied
from sre_triton.conversion.references import Replacement, replace_modules
from sre_triton.pooling import CenteredMaxPool1d, CenteredMaxPool2d, CenteredMaxPool3d, CenteredPoolNd, gathered_pool

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
        return gathered_pool(x, self.axes, takes_maximum=self.takes_maximum)
