"""Folding batch normalisation into the convolution before it, for inference."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sre_triton.layers import RingConvNd

__all__ = ["fold_batch_norm", "fused"]

Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norm(conv: nn.Module, norm: _BatchNorm) -> None:
    """Changes ``conv`` so that it gives what ``norm`` made of its output.

    Weights of a ring are scaled by output channel, so they stay weights of a ring: the layer keeps its
    geometry, and its cost. The arithmetic is in float64.

    Raises:
        TypeError: ``conv`` is no convolution, or a transposed one.
        ValueError: ``norm`` has no running statistics.
    """
    if not isinstance(conv, (RingConvNd, nn.modules.conv._ConvNd)) or conv.transposed:
        raise TypeError(f"conv must be a convolution that is not transposed, got {type(conv).__name__}")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm has no running statistics to fold (track_running_stats=False)")
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
        shift = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
        dtype = conv.weight.dtype
        conv.weight.copy_(conv.weight.double() * scale.view(-1, *[1] * (conv.weight.dim() - 1)))
        conv.bias = nn.Parameter(shift.to(dtype))


def fused(network: Network, pairs: Iterable[tuple[str, str]]) -> Network:
    """A copy of ``network`` without the batch normalisations that ``pairs`` names.

    Args:
        network: in eval mode, and left as it is.
        pairs: names of a convolution and of the normalisation that directly follows it. Pairs whose second
            is no batch normalisation are left as they are.

    Raises:
        RuntimeError: the network is in training mode, where the statistics are those of the batch.
    """
    if network.training:
        raise RuntimeError("fuse() folds the running statistics, which training mode does not use; call eval() first")
    network = copy.deepcopy(network)
    for conv, norm in pairs:
        module = network.get_submodule(norm)
        if isinstance(module, _BatchNorm):
            fold_batch_norm(network.get_submodule(conv), module)
            parent, _, name = norm.rpartition(".")
            setattr(network.get_submodule(parent), name, nn.Identity())
    return network
