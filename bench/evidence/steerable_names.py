"""The steerable rivals by name; their package is imported when one is built."""

from __future__ import annotations

from typing import Any

from torch import nn

from sre_triton.models.registry import register_model

__all__ = ["register"]


def register() -> None:
    """Lets trainings of this process ask for :func:`.steerable.steerable_net` and :func:`.steerable.steerable_unet`."""

    @register_model((1, 32, 32), in_channels=1)
    def steerable_digit_net(
        *,
        inplanes: int = 0,
        dropout_p: float = 0.0,
        skip_first_maxpool: bool = True,
        norm_layer: Any = None,
        global_pool: str = "avg",
        **options: Any,
    ) -> nn.Module:
        """:func:`.steerable.steerable_net`; the arguments by name are those that a training gives to every
        classifier."""
        from bench.evidence.steerable import steerable_net

        return steerable_net(**options)

    @register_model((3, 96, 96))
    def steerable_unet(**options: Any) -> nn.Module:
        """:func:`.steerable.steerable_unet`."""
        from bench.evidence.steerable import steerable_unet as build

        return build(**options)
