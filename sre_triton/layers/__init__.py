"""Ring convolution layers with the arguments, attributes and errors of ``torch.nn``'s own.

``SREConv2d`` stands wherever ``nn.Conv2d`` stood. Its weight is (out, in / groups, rings) instead of
(out, in / groups, k, k); everything else is the same, so optimisers, schedulers, DDP, AMP, compile,
export, pickling and checkpoints see an ordinary module with ordinary parameters and no buffers.

Source: J. Zhang et al., "Improved Vessel Segmentation with Symmetric Rotation-Equivariant U-Net",
ISBI 2025; initialisation and ring edges as in the package SRE_Conv 1.0.2.
"""

from sre_triton.layers.base import INDEX_BUFFERS, RingConvNd
from sre_triton.layers.convolutions import (
    SREConv1d,
    SREConv2d,
    SREConv3d,
    SREConvTranspose1d,
    SREConvTranspose2d,
    SREConvTranspose3d,
)

__all__ = [
    "INDEX_BUFFERS",
    "RingConvNd",
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
]
