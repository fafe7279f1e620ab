"""A baseline that sees no structure: what it reaches, a set gives away by its grey values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HISTOGRAM", "HistogramClassifier"]

HISTOGRAM = "histogram"
"""Its name as ``--model-type``."""

_NUMBERS = 9
_HIDDEN = 64


class HistogramClassifier(nn.Sequential):
    """Logits (N, classes) from the nine deciles of each channel of images or volumes (N, channels, *space).

    However pixels are moved, the answer is the same.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(nn.Linear(_NUMBERS * channels, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes))

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.arange(1, _NUMBERS + 1, device=x.device, dtype=torch.float32) / (_NUMBERS + 1)
        deciles = x.float().flatten(2).quantile(shares, dim=2)
        logits: Tensor = super().forward(deciles.movedim(0, 2).flatten(1).to(x.dtype))
        return logits
