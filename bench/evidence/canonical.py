"""What makes any network indifferent to turns: each image is first laid by a direction of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.models import get_model
from sre_triton.models.registry import register_model
from sre_triton.training.data.warp import affine, rotation_matrix

__all__ = ["Canonical", "CanonicalMap", "direction", "register"]


class Canonical(nn.Module):
    """A classifier that sees each image (N, C, H, W) turned so that it grows brighter to the right.

    Args:
        network: from images to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the images as they are laid; bilinear, mirrored where they end."""
        y: Tensor = self.network(_turned(x, -direction(x), x.shape[2:]))
        return y


class CanonicalMap(Canonical):
    """The same for a network that answers with a map (N, classes, H, W): its logits are turned back.

    The laid image lies in a square that holds all of it, so that no corner is cut off.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the images, bilinear both ways; what the square has beyond the image is mirrored."""
        angles, space = direction(x), x.shape[2:]
        side = math.ceil(math.hypot(*space))
        side += (side - min(space)) % 2  # of the image's parity: at right angles pixels lie on pixels
        return _turned(self.network(_turned(x, -angles, (side, side))).float(), angles, space)


def _turned(x: Tensor, angles: Tensor, size: tuple[int, ...]) -> Tensor:
    return affine(x, rotation_matrix(angles, "x", 2), "bilinear", "reflect", size)


def direction(x: Tensor) -> Tensor:
    """Where images (N, C, H, W) grow brighter: the angle of their first moment over a disc that fades to its rim, in
    degrees, counter-clockwise from the right, (N,). It turns with the image."""
    half = (min(x.shape[2:]) - 1) / 2
    down, right = (torch.arange(length, device=x.device, dtype=x.dtype) - (length - 1) / 2 for length in x.shape[2:])
    up = -down[:, None]
    disc = (1 - (right**2 + up**2) / half**2).clamp(min=0)
    grey = x.mean(dim=1) * disc
    return torch.rad2deg(torch.atan2((grey * up).sum((1, 2)), (grey * right).sum((1, 2))))


def register() -> None:
    """Lets trainings of this process ask for such networks by name."""

    @register_model((1, 32, 32), in_channels=1)
    def canonical_resnet18(**options: Any) -> nn.Module:
        """:class:`Canonical` around the ``resnet18`` of these arguments."""
        return Canonical(get_model("resnet18", **options))

    @register_model((3, 96, 96))
    def canonical_plain_unet(**options: Any) -> nn.Module:
        """:class:`CanonicalMap` around the ``plain_unet`` of these arguments."""
        return CanonicalMap(get_model("plain_unet", **options))
