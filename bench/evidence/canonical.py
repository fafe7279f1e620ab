"""What makes any network indifferent to turns: each image is first laid by a direction of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.models import get_model
from sre_triton.models.registry import register_model
from sre_triton.training.data.warp import affine, rotation_matrix

__all__ = ["Canonical", "direction", "register"]


class Canonical(nn.Module):
    """A classifier that sees each image (N, C, S, S) turned so that it grows brighter to the right.

    Args:
        network: from images to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the images as they are laid; bilinear, mirrored where they end."""
        laid = affine(x, rotation_matrix(-direction(x), "x", 2), "bilinear", "reflect")
        y: Tensor = self.network(laid)
        return y


def direction(x: Tensor) -> Tensor:
    """Where images (N, C, S, S) grow brighter: the angle of their first moment over a disc that fades to its rim, in
    degrees, counter-clockwise from the right, (N,). It turns with the image."""
    half = (x.shape[-1] - 1) / 2
    steps = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) - half
    right, up = steps[None, :], -steps[:, None]
    disc = (1 - (right**2 + up**2) / half**2).clamp(min=0)
    grey = x.mean(dim=1) * disc
    return torch.rad2deg(torch.atan2((grey * up).sum((1, 2)), (grey * right).sum((1, 2))))


def register() -> None:
    """Lets trainings of this process ask for such networks by name."""

    @register_model((1, 32, 32), in_channels=1)
    def canonical_resnet18(**options: Any) -> nn.Module:
        """:class:`Canonical` around the ``resnet18`` of these arguments."""
        return Canonical(get_model("resnet18", **options))
