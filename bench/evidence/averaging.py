"""What an ordinary network's user would do about turned images without training again: average over the symmetries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["OverSymmetries"]


class OverSymmetries(nn.Module):
    """A network whose probabilities are means over the 8 turns and flips of the square, turned back.

    Args:
        network: from images (N, C, H, W) to logits (N, classes), or (N, classes, H, W), which are turned back.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, in the shape of the logits."""
        total: Tensor | None = None
        for flipped in (False, True):
            for quarters in range(4):
                turned = torch.rot90(x.flip(3) if flipped else x, quarters, (2, 3))
                answer = self.network(turned).float().softmax(dim=1)
                if answer.dim() == 4:
                    answer = torch.rot90(answer, -quarters, (2, 3))
                    answer = answer.flip(3) if flipped else answer
                total = answer if total is None else total + answer
        assert total is not None
        return (total / 8).clamp(min=1e-12).log()
