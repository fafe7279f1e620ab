"""Rival networks by name: steerable ones, and those that lay each image first."""

from __future__ import annotations

from bench.evidence import canonical, steerable_names

__all__ = ["register"]


def register() -> None:
    """Lets trainings of this process ask for the networks of :mod:`.steerable_names` and :mod:`.canonical`."""
    steerable_names.register()
    canonical.register()
