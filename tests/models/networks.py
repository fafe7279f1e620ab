"""Networks small enough for every test, and the state that a trained network would have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.models import entry, list_models

RING_NETWORKS = [name for name in list_models() if name.startswith(("sre_", "gmr_"))]
PLAIN_NETWORKS = [name for pattern in ("resnet*", "r3d*", "plain_*") for name in list_models(pattern)]
RESNETS = [name for name in RING_NETWORKS if "unet" not in name]
UNETS = [name for name in RING_NETWORKS if "unet" in name]


def small(name: str, **options: Any) -> nn.Module:
    """A network with all of its layers and few of its channels, in eval mode."""
    narrow: dict[str, Any] = {"features": (4, 4, 6, 8)} if "unet" in name else {"inplanes": 8, "num_classes": 5}
    return entry(name).build(**{**entry(name).published, **narrow, **options}).eval()


def image(name: str, *size: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch of images for this network: ``size`` in every dimension, or one size for each."""
    channels, *space = entry(name).input_shape
    return torch.randn(batch, channels, *(size if len(size) > 1 else size * len(space)), dtype=dtype)


def as_if_trained(network: nn.Module) -> nn.Module:
    """Draws statistics and parameters of normalisations, which are trivial at initialisation."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network
