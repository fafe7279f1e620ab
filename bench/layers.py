"""The layers that race each other on a case, and what they are asked to do."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor, nn

import sre_triton
from bench.cases import Case
from sre_triton.layers import RingConvNd

__all__ = [
    "DENSE",
    "FLOOR",
    "GMR",
    "MEMORY_FORMATS",
    "OURS",
    "SRE",
    "Floor",
    "Layer",
    "contestants",
    "dense_layer",
    "reference_module",
    "ring_layer",
    "task",
]

Layer = nn.Module

OURS, DENSE, FLOOR, SRE, GMR = "sre_triton", "nn.Conv", "floor", "SRE_Conv", "GMR_Conv"
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RING = (sre_triton.SREConv1d, sre_triton.SREConv2d, sre_triton.SREConv3d)
MEMORY_FORMATS = {
    2: {"nchw": torch.contiguous_format, "nhwc": torch.channels_last},
    3: {"nchw": torch.contiguous_format, "nhwc": torch.channels_last_3d},
}


@lru_cache
def reference_module(package: str, file: str) -> ModuleType:
    """A file of an installed reference package, whose own ``__init__`` needs torchvision and is not run."""
    parent = f"bench_{package}"
    if parent not in sys.modules:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(f"{package} is not installed; `make env` installs it", name=package)
        stand_in = ModuleType(parent)
        stand_in.__path__ = list(found.submodule_search_locations)
        sys.modules[parent] = stand_in
    return importlib.import_module(f"{parent}.{file}")


def ring_layer(case: Case, k: int) -> RingConvNd:
    """Our layer."""
    return _RING[case.ndim - 1](
        case.in_channels, case.out_channels, k, case.stride, padding=k // 2, groups=case.groups, bias=False
    )


def dense_layer(case: Case, k: int) -> Layer:
    """PyTorch's layer of the same kernel size."""
    return _CONV[case.ndim - 1](
        case.in_channels, case.out_channels, k, case.stride, padding=k // 2, groups=case.groups, bias=False
    )


def _reference_layer(package: str, case: Case, k: int) -> Layer:
    layer = getattr(reference_module(package, package.lower()), f"{package}{case.ndim}d")
    built: Layer = layer(case.in_channels, case.out_channels, k, case.stride, k // 2, groups=case.groups, bias=False)
    return built


class Floor(nn.Module):
    """One pointwise convolution over as many channels as all ring sums have: the multiplications that a
    ring convolution cannot do without. Its input is given, as if ring sums cost nothing."""

    def __init__(self, case: Case, rings: int) -> None:
        super().__init__()
        self.conv = _CONV[case.ndim - 1](case.in_channels * rings, case.out_channels, 1, groups=case.groups, bias=False)
        self.shape = (case.batch, case.in_channels * rings, *[-(-case.size // case.stride)] * case.ndim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def contestants(case: Case, k: int, *, references: bool) -> dict[str, tuple[Layer, str]]:
    """Layers and the memory format of their input, by name, with or without the reference packages'."""
    ring = ring_layer(case, k)
    dense = dense_layer(case, k)
    entries: dict[str, tuple[Layer, str]] = {}
    for name in MEMORY_FORMATS[case.ndim]:
        entries[f"{OURS} {name}"] = (ring, name)
        entries[f"{DENSE} {name}"] = (copy.deepcopy(dense), name)
    entries[FLOOR] = (Floor(case, ring.num_rings), "nhwc")
    if references:
        entries[SRE] = (_reference_layer(SRE, case, k), "nchw")
    if references and case.groups == 1 and k > 1:  # GMR_Conv ignores groups, and divides by zero for one ring
        entries[GMR] = (_reference_layer(GMR, case, k), "nchw")
    return entries


def task(layer: Layer, x: Tensor, *, train: bool) -> Callable[[], Tensor]:
    """Inference, or a training step: forward and backward to the input and every parameter."""
    layer.train(train)
    if not train:

        def infer() -> Tensor:
            with torch.no_grad():
                y: Tensor = layer(x)
            return y

        return infer

    leaves = [x.detach().requires_grad_(), *layer.parameters()]
    with torch.no_grad():
        grad_y = torch.randn_like(layer(leaves[0]))

    def step() -> Tensor:
        y: Tensor = layer(leaves[0])
        torch.autograd.grad(y, leaves, grad_y)
        return y

    return step
