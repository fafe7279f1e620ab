"""A second reading of segmentation under turns, to which neither turned masks nor other pixels add a spread.

A network sees the whole photograph turned; its probabilities are turned back and compared with the mask as it is, on a
disc that is the same scene at every angle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.evidence.objects import OBJECT_F1, found_objects
from sre_triton.training.data.warp import Symmetry, turn
from sre_triton.training.options import TurningOptions
from sre_triton.training.tasks.undefined import means_of_known

__all__ = ["TurnedBack", "disc", "each_scored_turned_back"]


class TurnedBack(nn.Module):
    """A network that sees each image turned, and whose probabilities are turned back; bicubic both ways.

    Args:
        network: from images (N, C, H, W) to logits (N, classes, H, W).
        angle: degrees, counter-clockwise.
    """

    def __init__(self, network: nn.Module, angle: float) -> None:
        super().__init__()
        self.network, self.angle = network, angle

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the probabilities, in the shape of the logits; images are mirrored where they end."""
        answer = self.network(_turned(x, self.angle)).float().softmax(dim=1)
        return _turned(answer, -self.angle).clamp(min=1e-12).log()


def _turned(x: Tensor, angle: float) -> Tensor:
    return turn(x, angle, interpolation="bicubic", padding="reflect")


def disc(space: tuple[int, ...], diameter: float) -> Tensor:
    """Whether a pixel's centre lies on a disc in the middle of an image, (H, W)."""
    down, right = (torch.arange(length) - (length - 1) / 2 for length in space)
    return down[:, None] ** 2 + right**2 <= (diameter / 2) ** 2


def each_scored_turned_back(
    task: Any, split: str, symmetry: Symmetry, turning: TurningOptions, diameter: float
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """``task.each_scored`` on a disc of ``diameter`` pixels, of answers that are turned back; F1 of objects, too.

    Photographs must be one window each, of two classes.
    """
    network, table = task.network, []
    task.network = TurnedBack(network, symmetry.angle)
    try:
        for logits, labels, field in task.answered(split, Symmetry(), turning):
            inside = disc(labels.shape, diameter).to(labels.device)
            scores = task.scored(*(part[..., inside][..., None] for part in (logits, labels, field)))
            table.append(scores | {OBJECT_F1: found_objects(task, logits, labels, field.bool() & inside)})
    finally:
        task.network = network
    return means_of_known(table), table
