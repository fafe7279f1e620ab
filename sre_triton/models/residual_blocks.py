"""The blocks of residual networks, in 2-D and 3-D, of ring convolutions or of plain ones.

Every stride is an average pooling in front of a convolution of stride 1, in the residual branch and in its
shortcut alike.
"""

from __future__ import annotations

from torch import Tensor, nn

from sre_triton.docstrings import completed_by
from sre_triton.models.parts import Parts

__all__ = ["BasicBlock", "Block", "Bottleneck", "strided"]


class Block(nn.Module):
    """A residual branch and its shortcut. Subclasses make the branch; their names are the reference's."""

    expansion: int
    convolutions: int
    relu: nn.Module
    downsample: nn.Sequential | None

    def _add_invariants(self, parts: Parts, channels: int, stage: int, *numbers: int) -> None:
        """After the ring convolutions, whose numbers these are, as many as is wanted at this stage."""
        for i, number in enumerate(numbers):
            if (layer := parts.add_invariants(channels, stage, i)) is not None:
                self.add_module(f"invariants{number}", layer)

    def _shortcut(self, parts: Parts, in_channels: int, out_channels: int, stride: int) -> None:
        """Made last: the state of an optimizer knows parameters by their order."""
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                parts.avg_pool(stride), parts.pointwise(in_channels, out_channels), parts.norm(out_channels)
            )

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation that ends the residual branch."""
        return self.get_submodule(f"bn{self.convolutions}")

    def forward(self, x: Tensor) -> Tensor:
        """The block's map of one batch.

        Args:
            x: (N, in_channels, *space).

        Returns:
            (N, out, *size) with ``size = ceil(space / stride)`` and ``out = expansion * channels``.

        Raises:
            RuntimeError: ``x`` has other channels.
            ValueError: ``x`` has no dimension for the batch.
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.convolutions + 1):
            x = getattr(self, f"conv{i}")(x)
            if (invariants := getattr(self, f"invariants{i}", None)) is not None:
                x = invariants(x)
            x = getattr(self, f"bn{i}")(x)
            if i < self.convolutions:
                x = self.relu(x)
        return self.relu(x + shortcut)


def strided(parts: Parts, conv: nn.Module, stride: int) -> nn.Module:
    return conv if stride == 1 else nn.Sequential(parts.avg_pool(stride), conv)


class BasicBlock(Block):
    """A residual block of two convolutions of the same size, for :class:`ResNet`.

    Args:
        parts: which convolutions, poolings and normalisations the network is made of.
        in_channels: channels of the block's input.
        channels: channels of its convolutions; the output has ``expansion`` times as many.
        stride: pixels of the input to one of the output in each dimension, done by averaging.
        stage: number of the stage, from 0, upon which depends whether it adds invariants.
        size: odd size of its convolutions, in pixels.
        num_rings: of these; None for the default of their size.
        groups: 1, the only one here: blocks of channels that are convolved apart.
        width_per_group: 64, the only one here.

    Raises:
        ValueError: an argument is none of the above.

    Source:
        K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    expansion = 1
    convolutions = 2

    def __init__(
        self,
        parts: Parts,
        in_channels: int,
        channels: int,
        stride: int,
        stage: int,
        size: int,
        num_rings: int | None,
        groups: int,
        width_per_group: int,
    ) -> None:
        if groups != 1 or width_per_group != 64:
            raise ValueError(
                "groups and width_per_group are for networks of bottleneck blocks (resnet50, resnet101), "
                f"got groups={groups}, width_per_group={width_per_group}"
            )
        super().__init__()
        self.conv1 = strided(parts, parts.convolution(in_channels, channels, size, num_rings=num_rings), stride)
        self.bn1 = parts.norm(channels)
        self.conv2 = parts.convolution(channels, channels, size, num_rings=num_rings)
        self.bn2 = parts.norm(channels)
        self._add_invariants(parts, channels, stage, 1, 2)
        self._shortcut(parts, in_channels, channels, stride)


@completed_by(BasicBlock)
class Bottleneck(Block):
    """A residual block for :class:`ResNet`: a convolution between two pointwise ones, which lead to fewer channels and
    back to four times as many. The arguments are those of :class:`BasicBlock`.

    Args:
        groups: blocks of channels that the middle convolution convolves apart, as in ResNeXt.
        width_per_group: channels of each where ``channels`` is 64, and in proportion elsewhere.
    """

    expansion = 4
    convolutions = 3

    def __init__(
        self,
        parts: Parts,
        in_channels: int,
        channels: int,
        stride: int,
        stage: int,
        size: int,
        num_rings: int | None,
        groups: int,
        width_per_group: int,
    ) -> None:
        super().__init__()
        width = channels * width_per_group // 64 * groups
        self.conv1 = parts.pointwise(in_channels, width)
        self.bn1 = parts.norm(width)
        conv2 = parts.convolution(width, width, size, num_rings=num_rings, groups=groups)
        self.conv2 = strided(parts, conv2, stride)
        self.bn2 = parts.norm(width)
        self.conv3 = parts.pointwise(width, channels * self.expansion)
        self.bn3 = parts.norm(channels * self.expansion)
        self._add_invariants(parts, width, stage, 2)
        self._shortcut(parts, in_channels, channels * self.expansion, stride)
