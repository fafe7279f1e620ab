"""A steerable rival of the package e2cnn, which is imported when one is built: ``pip install '.[evidence]'``.

Source: M. Weiler and G. Cesa, "General E(2)-Equivariant Steerable CNNs", NeurIPS 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["steerable_net"]


def steerable_net(
    num_classes: int,
    in_channels: int,
    *,
    turns: int = 8,
    fields: Sequence[int] = (5, 6, 8),
    size: int = 5,
    pooled_fields: int = 24,
) -> nn.Module:
    """A residual network of regular fields of the group of ``turns`` rotations, over (N, in_channels, H, W).

    As the ring networks that it is compared with: a stem whose map is halved by maxima, and stages of one residual
    block of two convolutions, halved by averages in front of all but the first. Then a convolution of one tap, maxima
    over the turns, means over the map and a linear layer.

    Args:
        num_classes: logits.
        in_channels: channels of the image, which are scalars.
        turns: of the group; a field has as many channels.
        fields: per stage.
        size: of the convolutions.
        pooled_fields: whose maxima are classified.

    Raises:
        ImportError: e2cnn is not installed.
    """
    from e2cnn import gspaces
    from e2cnn import nn as steerable

    space = gspaces.Rot2dOnR2(turns)

    def regular(count: int) -> Any:
        return steerable.FieldType(space, count * [space.regular_repr])

    class Conv(steerable.R2Conv):  # type: ignore[misc]
        """Without the kernel that evaluation keeps, which checkpoints would hold or miss by the mode of the network."""

        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, bias=False, **options)
            self.train()

        def train(self, mode: bool = True) -> Any:
            return super().train(True)

    def conv_norm(before: Any, after: Any, kernel: int) -> list[Any]:
        return [Conv(before, after, kernel, padding=kernel // 2), steerable.InnerBatchNorm(after)]

    class Residual(nn.Module):
        def __init__(self, before: Any, after: Any, stride: int) -> None:
            super().__init__()
            halved = [steerable.PointwiseAvgPool(before, 2)] if stride == 2 else []
            self.branch = steerable.SequentialModule(
                *halved,
                *conv_norm(before, after, size),
                steerable.ReLU(after),
                *conv_norm(after, after, size),
            )
            other = stride == 2 or before != after
            self.shortcut = steerable.SequentialModule(*halved, *conv_norm(before, after, 1)) if other else None
            self.relu = steerable.ReLU(after)

        def forward(self, x: Any) -> Any:
            return self.relu(self.branch(x) + (x if self.shortcut is None else self.shortcut(x)))

    class SteerableNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = steerable.FieldType(space, in_channels * [space.trivial_repr])
            first, last = regular(fields[0]), regular(pooled_fields)
            self.stem = steerable.SequentialModule(
                *conv_norm(self.image, first, size), steerable.ReLU(first), steerable.PointwiseMaxPool(first, 2)
            )
            ends = [regular(count) for count in (fields[0], *fields)]
            self.blocks = nn.Sequential(
                *(Residual(*pair, 2 if stage else 1) for stage, pair in enumerate(itertools.pairwise(ends)))
            )
            self.last = steerable.SequentialModule(*conv_norm(ends[-1], last, 1), steerable.GroupPooling(last))
            self.head = nn.Linear(pooled_fields, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.last(self.blocks(self.stem(steerable.GeometricTensor(x, self.image)))).tensor
            logits: Tensor = self.head(maps.mean((-2, -1)))
            return logits

    return SteerableNet()
