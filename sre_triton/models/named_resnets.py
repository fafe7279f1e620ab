"""The residual networks that have a name, each of them :class:`ResNet` with some arguments set.

Sources: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the ring networks of the
packages SRE_Conv 1.0.2 and GMR_Conv 1.0.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sre_triton.docstrings import completed_by
from sre_triton.models.registry import register_model
from sre_triton.models.residual_blocks import BasicBlock, Block, Bottleneck
from sre_triton.models.resnet import ResNet

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sre_triton.models.resnet import ResNetOptions

__all__ = [
    "gmr_r3d_18",
    "gmr_resnet18",
    "gmr_resnet34",
    "gmr_resnet50",
    "r3d_18",
    "r3d_34",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "sre_r3d_18",
    "sre_r3d_34",
    "sre_resnet18",
    "sre_resnet34",
    "sre_resnet50",
    "sre_resnet101",
]

_DEPTHS: dict[int, tuple[Callable[..., Block], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
# The GMR networks average where the others take the maximum.
_STEM_POOLS = {"sre": "max", "gmr": "avg", "plain": "max"}


def _resnet2d(conv: str, layers: int, options: ResNetOptions) -> ResNet:
    return ResNet(*_DEPTHS[layers], conv=conv, ndim=2, stem_pool=_STEM_POOLS[conv], **options)


def _resnet3d(conv: str, layers: int, options: ResNetOptions) -> ResNet:
    options = {"num_classes": 400, "stem_size": 3, **options}
    return ResNet(*_DEPTHS[layers], conv=conv, ndim=3, **options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
def sre_resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-18 of SRE convolutions, over images (N, in_channels, H, W).

    Args:
        options: keyword arguments of :class:`ResNet` from ``num_classes`` on.

    Returns:
        The network with random parameters, in training mode.

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument has a value that it cannot have.

    Source:
        K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; of ring convolutions the packages
        SRE_Conv 1.0.2 and GMR_Conv 1.0.3.

    Examples:
        >>> network = sre_triton.sre_resnet18(num_classes=9, sre_conv_size=[9, 9, 5, 5], skip_first_maxpool=True)
        >>> network.eval()(torch.randn(1, 3, 33, 33)).shape
        torch.Size([1, 9])
    """
    return _resnet2d("sre", 18, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
@completed_by(sre_resnet18)
def sre_resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-34 of SRE convolutions."""
    return _resnet2d("sre", 34, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
@completed_by(sre_resnet18)
def sre_resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50 of SRE convolutions."""
    return _resnet2d("sre", 50, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
@completed_by(sre_resnet18)
def sre_resnet101(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-101 of SRE convolutions."""
    return _resnet2d("sre", 101, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
@completed_by(sre_resnet18)
def gmr_resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-18 of GMR convolutions, its stem pooled by averages."""
    return _resnet2d("gmr", 18, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
@completed_by(sre_resnet18)
def gmr_resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-34 of GMR convolutions."""
    return _resnet2d("gmr", 34, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
@completed_by(sre_resnet18)
def gmr_resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50 of GMR convolutions."""
    return _resnet2d("gmr", 50, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
@completed_by(sre_resnet18)
def resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet18`: the same network of ``nn.Conv2d``, and not equivariant."""
    return _resnet2d("plain", 18, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
@completed_by(sre_resnet18)
def resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet34`."""
    return _resnet2d("plain", 34, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
@completed_by(sre_resnet18)
def resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet50`."""
    return _resnet2d("plain", 50, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
@completed_by(sre_resnet18)
def resnet101(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet101`."""
    return _resnet2d("plain", 101, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=5)
@completed_by(sre_resnet18)
def sre_r3d_18(**options: Unpack[ResNetOptions]) -> ResNet:
    """3-D ResNet-18 of SRE convolutions, over volumes (N, in_channels, D, H, W): 400 classes and a 3x3x3 stem by
    default, which is not pooled."""
    return _resnet3d("sre", 18, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=5)
@completed_by(sre_resnet18)
def sre_r3d_34(**options: Unpack[ResNetOptions]) -> ResNet:
    """3-D ResNet-34 of SRE convolutions."""
    return _resnet3d("sre", 34, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=5)
@completed_by(sre_resnet18)
def gmr_r3d_18(**options: Unpack[ResNetOptions]) -> ResNet:
    """3-D ResNet-18 of GMR convolutions."""
    return _resnet3d("gmr", 18, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=3)
@completed_by(sre_resnet18)
def r3d_18(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_r3d_18`."""
    return _resnet3d("plain", 18, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=3)
@completed_by(sre_resnet18)
def r3d_34(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_r3d_34`."""
    return _resnet3d("plain", 34, options)
