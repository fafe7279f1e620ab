"""Steerable rivals of the package e2cnn, which this module alone imports: ``pip install '.[evidence]'``.

Source: M. Weiler and G. Cesa, "General E(2)-Equivariant Steerable CNNs", NeurIPS 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from e2cnn import gspaces
from e2cnn import nn as steerable
from torch import Tensor, nn

from sre_triton.models.unet import PlainUNet

__all__ = ["steerable_net", "steerable_unet"]


class _Conv(steerable.R2Conv):  # type: ignore[misc]
    """Keeps its size, and no kernel in evaluation, which checkpoints would hold or miss by the mode of the network."""

    def __init__(self, before: Any, after: Any, size: int, *, bias: bool = False) -> None:
        super().__init__(before, after, size, padding=size // 2, bias=bias)
        self.train()

    def train(self, mode: bool = True) -> Any:
        return super().train(True)


def _regular(space: Any, count: int) -> Any:
    return steerable.FieldType(space, count * [space.regular_repr])


def _scalars(space: Any, count: int) -> Any:
    return steerable.FieldType(space, count * [space.trivial_repr])


def _conv_norm(before: Any, after: Any, size: int) -> list[Any]:
    return [_Conv(before, after, size), steerable.InnerBatchNorm(after)]


class _Residual(nn.Module):
    def __init__(self, before: Any, after: Any, size: int, stride: int) -> None:
        super().__init__()
        halved = [steerable.PointwiseAvgPool(before, 2)] if stride == 2 else []
        self.branch = steerable.SequentialModule(
            *halved,
            *_conv_norm(before, after, size),
            steerable.ReLU(after),
            *_conv_norm(after, after, size),
        )
        other = stride == 2 or before != after
        self.shortcut = steerable.SequentialModule(*halved, *_conv_norm(before, after, 1)) if other else None
        self.relu = steerable.ReLU(after)

    def forward(self, x: Any) -> Any:
        return self.relu(self.branch(x) + (x if self.shortcut is None else self.shortcut(x)))


class _SteerableNet(nn.Module):
    def __init__(
        self,
        space: Any,
        num_classes: int,
        in_channels: int,
        fields: Sequence[int],
        depths: Sequence[int],
        size: int,
        stem_pool: bool,
        pooled_fields: int,
    ) -> None:
        super().__init__()
        self.image = _scalars(space, in_channels)
        first, last = _regular(space, fields[0]), _regular(space, pooled_fields)
        pool = [steerable.PointwiseMaxPool(first, 2)] if stem_pool else []
        self.stem = steerable.SequentialModule(*_conv_norm(self.image, first, size), steerable.ReLU(first), *pool)
        counts = [count for count, depth in zip(fields, depths, strict=True) for _ in range(depth)]
        firsts = {sum(depths[:stage]) for stage in range(1, len(depths))}  # blocks that halve the map
        ends = [_regular(space, count) for count in (fields[0], *counts)]
        self.blocks = nn.Sequential(
            *(
                _Residual(*pair, size, 2 if number in firsts else 1)
                for number, pair in enumerate(itertools.pairwise(ends))
            )
        )
        self.last = steerable.SequentialModule(*_conv_norm(ends[-1], last, 1), steerable.GroupPooling(last))
        self.head = nn.Linear(pooled_fields, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.last(self.blocks(self.stem(steerable.GeometricTensor(x, self.image)))).tensor
        logits: Tensor = self.head(maps.mean((-2, -1)))
        return logits


def steerable_net(
    num_classes: int,
    in_channels: int,
    *,
    turns: int = 8,
    fields: Sequence[int] = (5, 6, 8),
    depths: Sequence[int] = (1, 1, 1),
    size: int = 5,
    stem_pool: bool = True,
    pooled_fields: int = 24,
) -> nn.Module:
    """A residual network of regular fields of the group of ``turns`` rotations, over (N, in_channels, H, W).

    As the ring networks that it is compared with: a stem whose map is halved by maxima, and stages of residual blocks
    of two convolutions, halved by averages in front of all but the first. Then a convolution of one tap, maxima over
    the turns, means over the map and a linear layer.

    Args:
        num_classes: logits.
        in_channels: channels of the image, which are scalars.
        turns: of the group; a field has as many channels.
        fields, depths: of each stage, and its blocks.
        size: of the convolutions.
        stem_pool: whether the map is halved after the stem.
        pooled_fields: whose maxima are classified.
    """
    space = gspaces.Rot2dOnR2(turns)
    return _SteerableNet(space, num_classes, in_channels, fields, depths, size, stem_pool, pooled_fields)


class _OnTensors(nn.Module):
    """A layer between fields, of plain tensors (N, C, H, W) whose channels are theirs one after the other."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # e2cnn normalises maps in the channels-last format slowly
        y: Tensor = self.layer(steerable.GeometricTensor(x, self.layer.in_type)).tensor
        return y


def steerable_unet(
    *,
    in_channels: int = 3,
    out_channels: int = 2,
    turns: int = 8,
    fields: Sequence[int] = (4, 4, 8, 14),
    size: int = 5,
    **options: Any,
) -> nn.Module:
    """:class:`sre_triton.models.PlainUNet` whose maps are regular fields of the group of ``turns`` rotations: its
    pooling, up-sampling and activations act on each channel alone, so that they turn with the fields; its convolutions
    and normalisations are those of e2cnn, and the last convolution sees maxima over the turns.

    Args:
        in_channels, out_channels: of image and answer, which are scalars.
        turns: of the group; a field has as many channels.
        fields: per resolution, from fine to coarse; those that come up to the finest but one are half as many.
        size: of the convolutions.
        options: of the network.
    """
    space = gspaces.Rot2dOnR2(turns)
    network = PlainUNet(
        2, in_channels, out_channels, [turns * count for count in fields], sre_conv_size=size, **options
    )
    for name, module in list(network.named_modules()):
        if name == "final_conv":
            pooled = _OnTensors(steerable.GroupPooling(_regular(space, fields[0])))
            network.set_submodule(name, nn.Sequential(pooled, nn.Conv2d(fields[0], out_channels, 1)))
        elif isinstance(module, nn.Conv2d):
            before, after = module.in_channels, module.out_channels
            image = name == "conv_0.conv_0.conv"
            ends = (
                _scalars(space, before) if image else _regular(space, before // turns),
                _regular(space, after // turns),
            )
            network.set_submodule(name, _OnTensors(_Conv(*ends, module.kernel_size[0], bias=True)))
        elif isinstance(module, nn.BatchNorm2d):
            norm = steerable.InnerBatchNorm(_regular(space, module.num_features // turns))
            network.set_submodule(name, _OnTensors(norm))
    return network
