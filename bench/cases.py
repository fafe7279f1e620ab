"""The registry of benchmark cases: layers of real networks, and layers that are hard to plan for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "QUICK_CASES", "Case", "cases"]


@dataclass(frozen=True)
class Case:
    """One convolution, for each of its kernel sizes. Its padding keeps the size at stride 1."""

    name: str
    ndim: int
    batch: int
    in_channels: int
    out_channels: int
    size: int
    stride: int = 1
    groups: int = 1
    kernel_sizes: tuple[int, ...] = (3, 5, 9)
    hard: bool = False  # chosen because the dense path may win, so no part of the mean

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *[self.size] * self.ndim)

    @property
    def in_mean(self) -> bool:
        """Whether the geometric means count this case: ungrouped layers of 32 to 512 channels."""
        return not self.hard and 32 <= min(self.in_channels, self.out_channels) <= 512

    def __str__(self) -> str:
        return self.name


def _resnet18() -> list[Case]:
    """The four stages of SRE-ResNet18. Larger images come in smaller batches."""
    stages = {28: (8, (28, 14, 7, 4)), 32: (8, (32, 16, 8, 4)), 64: (2, (64, 32, 16, 8))}
    return [
        Case(f"resnet{image}.{channels}@{size}", 2, batch, channels, channels, size)
        for image, (batch, sizes) in stages.items()
        for channels, size in zip((64, 128, 256, 512), sizes, strict=True)
    ]


def _unet() -> list[Case]:
    """The vessel U-Net on one image of 256 pixels: encoder, bottleneck and a layer after concatenation."""
    return [
        Case("unet.32@256", 2, 1, 32, 32, 256),
        Case("unet.64-32@256", 2, 1, 64, 32, 256),
        Case("unet.32@128", 2, 1, 32, 32, 128),
        Case("unet.64@64", 2, 1, 64, 64, 64),
        Case("unet.128-64@64", 2, 1, 128, 64, 64),
        Case("unet.128@32", 2, 1, 128, 128, 32),
    ]


def _volumes() -> list[Case]:
    """Layers of a 3-D ResNet-18."""
    return [
        Case("r3d18.64@14", 3, 1, 64, 64, 14, kernel_sizes=(3, 5)),
        Case("r3d18.128@7", 3, 2, 128, 128, 7, kernel_sizes=(3, 5)),
        Case("r3d18.32@24", 3, 1, 32, 32, 24, kernel_sizes=(3, 5)),
    ]


def _hard() -> list[Case]:
    """Where few multiplications are to be saved, or the cost is that of starting operations."""
    return [
        Case("stem.3-64@64", 2, 8, 3, 64, 64, hard=True),
        Case("stem.3-64@64/2", 2, 8, 3, 64, 64, stride=2, kernel_sizes=(3, 5), hard=True),
        Case("thin.8-16@64", 2, 8, 8, 16, 64, kernel_sizes=(3, 5), hard=True),
        Case("thin.16@64", 2, 8, 16, 16, 64, kernel_sizes=(3, 5), hard=True),
        Case("depthwise.64@32", 2, 8, 64, 64, 32, groups=64, hard=True),
        Case("grouped4.128@16", 2, 16, 128, 128, 16, groups=4, kernel_sizes=(3, 5), hard=True),
        Case("down.64-128@32/2", 2, 16, 64, 128, 32, stride=2, kernel_sizes=(3, 5), hard=True),
        Case("down.256-512@8/2", 2, 16, 256, 512, 8, stride=2, kernel_sizes=(3, 5), hard=True),
        Case("tiny.32@4", 2, 1, 32, 32, 4, hard=True),
        Case("tiny.64@8", 2, 1, 64, 64, 8, kernel_sizes=(3, 5), hard=True),
        Case("pointwise.64@32", 2, 8, 64, 64, 32, kernel_sizes=(1,), hard=True),
        Case("stem3d.3-32@16/2", 3, 2, 3, 32, 16, stride=2, kernel_sizes=(3, 5), hard=True),
    ]


CASES = (*_resnet18(), *_unet(), *_volumes(), *_hard())

# One case of each kind, for a look at the machine.
QUICK_CASES = ("resnet32.64@32", "resnet32.256@8", "unet.32@128", "r3d18.128@7", "stem.3-64@64", "tiny.64@8")


def cases(*, quick: bool = False, name: str = "") -> tuple[Case, ...]:
    """The cases of the registry, or of its ``quick`` part, whose name contains ``name``."""
    return tuple(case for case in CASES if name in case.name and (case.name in QUICK_CASES or not quick))
