"""What a kernel may use of a device: registers, memories, processors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

__all__ = ["DeviceLimits", "device_limits", "limits_of"]


@dataclass(frozen=True)
class DeviceLimits:
    """What the choice of a tile depends on. Only a device that is present has a name.

    A thread has at most ``registers``, and fewer where the threads of a program share out ``register_file``.
    """

    arch: str
    processors: int
    shared_bytes: int
    l2_bytes: int
    warp_size: int = 32
    registers: int = 255
    register_file: int = 2**16
    has_tensor_memory: bool = False
    packs_bfloat16: bool = True
    name: str = ""


# For compiling without a device, and for anything that does not say its limits.
_KNOWN = {
    "sm_80": DeviceLimits("sm_80", 108, 163 * 1024, 40 * 2**20),
    "sm_90": DeviceLimits("sm_90", 132, 227 * 1024, 50 * 2**20),
    "sm_100": DeviceLimits("sm_100", 148, 227 * 1024, 126 * 2**20, has_tensor_memory=True),
    "gfx942": DeviceLimits(
        "gfx942", 304, 64 * 1024, 4 * 2**20, warp_size=64, registers=512, register_file=2**17, packs_bfloat16=False
    ),
    "interpreter": DeviceLimits("interpreter", 2, 163 * 1024, 2**14),
}


def limits_of(arch: str) -> DeviceLimits:
    """Limits of an architecture by name, for compiling without a device."""
    return _KNOWN[arch]


@lru_cache(maxsize=64)
def device_limits(device: torch.device) -> DeviceLimits:
    """Limits of a device that is present."""
    if device.type == "cpu":
        return _KNOWN["interpreter"]
    properties = torch.get_device_module(device).get_device_properties(device)
    arch = getattr(properties, "gcnArchName", "").split(":")[0]
    if not arch and hasattr(properties, "major"):
        arch = f"sm_{properties.major}0"
    known = _KNOWN.get(arch, _KNOWN["sm_80"])
    return replace(
        known,
        name=properties.name,
        processors=getattr(properties, "multi_processor_count", known.processors),
        shared_bytes=getattr(properties, "shared_memory_per_block_optin", 0) or known.shared_bytes,
        l2_bytes=getattr(properties, "L2_cache_size", 0) or known.l2_bytes,
    )
