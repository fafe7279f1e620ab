"""Networks for rotated MNIST that the package does not offer by name: residual networks whose widths are free, of ring
convolutions or plain ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.layers import RingConvNd
from sre_triton.models.parts import InvariantsOption, Parts, invariants_of
from sre_triton.models.registry import register_model
from sre_triton.models.residual_blocks import BasicBlock

__all__ = ["DigitNet", "register"]


class DigitNet(nn.Module):
    """A residual network over (N, in_channels, H, W) whose stages are as wide and deep as is asked for.

    Args:
        conv: "sre" or "plain".
        widths, depths, sizes: channels, blocks and size of the convolutions of each stage; every stage but the first
            halves the map by averaging.
        stem_size: of the first convolution.
        stem_pool: "max", "avg" or None; halves the map after the stem.
        invariants: of the blocks and the stem, as in :class:`sre_triton.models.ResNet`.
        global_pool: "avg" or "max" over the last map.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        conv: str = "sre",
        widths: Sequence[int] = (16, 16, 16),
        depths: Sequence[int] = (1, 1, 1),
        sizes: Sequence[int] = (5, 5, 5),
        stem_size: int = 5,
        stem_pool: str | None = "max",
        invariants: InvariantsOption = False,
        global_pool: str = "avg",
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        parts = Parts(conv, 2, norm_layer=norm_layer, invariants=invariants_of(invariants))
        self.stem = parts.convolution(in_channels, widths[0], stem_size)
        self.invariants = parts.add_invariants(widths[0], 0) or nn.Identity()
        self.norm = parts.norm(widths[0])
        self.pool: nn.Module = nn.Identity()
        if stem_pool is not None:
            self.pool = parts.max_pool(2) if stem_pool == "max" else parts.avg_pool(2)
        blocks, width = [], widths[0]
        for stage, (channels, depth, size) in enumerate(zip(widths, depths, sizes, strict=True)):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(BasicBlock(parts, width, channels, stride, stage, size, None, 1, 64))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.global_pool = global_pool
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, (RingConvNd, nn.Conv2d)):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.invariants(self.stem(x)))))
        x = self.blocks(x)
        x = x.mean((-2, -1)) if self.global_pool == "avg" else x.amax((-2, -1))
        y: Tensor = self.head(x)
        return y


def register() -> None:
    """Lets trainings of this process ask for these networks by name."""

    @register_model((1, 32, 32), in_channels=1)
    def digit_net(*, inplanes: int = 0, dropout_p: float = 0.0, skip_first_maxpool: bool = True, **options: Any) -> Any:
        """:class:`DigitNet`; the arguments by name are those that a training gives to every classifier."""
        return DigitNet(**options)
