"""Residual networks in 2-D and 3-D, of ring convolutions or of plain ones.

Every stride is an average pooling in front of a convolution of stride 1, in the residual branch and in its
shortcut alike. With centred pooling the logits do not change, but for rounding, when the image is flipped
or turned by 90 degrees, at any size.

Sources: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the ring networks of the
packages SRE_Conv 1.0.2 and GMR_Conv 1.0.3, whose checkpoints load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sre_triton.conversion.fusion import fused
from sre_triton.layers import RingConvNd
from sre_triton.models.checkpoint import translate_reference_keys
from sre_triton.models.parts import InvariantsOption, Parts, checkpointed, invariants_of, per_stage
from sre_triton.models.registry import register_model
from sre_triton.models.residual_blocks import BasicBlock, Block, Bottleneck, strided

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class ResNetOptions(TypedDict, total=False):
        """Keyword arguments of every network here; see :class:`ResNet`."""

        num_classes: int
        in_channels: int
        sre_conv_size: int | Sequence[int]
        num_rings: int | Sequence[int | None] | None
        inplanes: int
        stem_size: int
        stem_stride: int
        skip_first_maxpool: bool
        pooling: str
        antialias: bool
        norm_layer: Callable[[int], nn.Module] | None
        zero_init_residual: bool
        groups: int
        width_per_group: int
        global_pool: str
        dropout_p: float
        features_only: bool
        invariants: InvariantsOption
        device: torch.device | str | None
        dtype: torch.dtype | None


__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
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


class ResNet(nn.Module):
    """A residual network of four stages, over (N, in_channels, *space) in 2-D or 3-D.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks per stage.
        conv: "sre", "gmr" or "plain" convolutions.
        ndim: 2 or 3 spatial dimensions.
        stem_pool: how the stem is pooled to half the size, "max" or "avg"; None for not at all.
        num_classes: logits; 0 for none, which gives the pooled features.
        in_channels: channels of the image.
        sre_conv_size: size of the convolutions, one or one per stage.
        num_rings: of these, None for the default of their size; one or one per stage.
        inplanes: channels of the stem and the first stage; every further stage has twice as many.
        stem_size: size of the first convolution.
        stem_stride: of the first convolution, done by averaging the image in front of it.
        skip_first_maxpool: leave out the stem's pooling, as is usual for small images.
        pooling: "centered", symmetric at every size, or "reference": windows of the reference packages,
            which are symmetric at some sizes.
        antialias: weigh taps of ring convolutions by the share of their pixel that a ring covers.
        norm_layer: makes a normalisation of so many channels, None for batch normalisation.
        zero_init_residual: start every residual branch at zero.
        groups, width_per_group: of the bottleneck's middle convolution, as in ResNeXt.
        global_pool: "avg" or "max" over the last map.
        dropout_p: probability of dropping a pooled feature before the classifier in training.
        features_only: return the list of the four stages' maps instead of logits.
        invariants: True adds scalars of derivatives, which let rings see lines, after the stem and the first ring
            convolution of each block of the first two stages; a mapping changes where and which, see
            :class:`sre_triton.models.parts.Invariants`. For networks of ring convolutions.
        device, dtype: of all parameters.

    Attributes:
        num_features: channels of the last map.
        feature_info: of each stage, its channels (``num_chs``), how much smaller its map is than the image
            (``reduction``) and its name (``module``).

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument is none of the above.
    """

    def __init__(
        self,
        block: Callable[..., Block],
        depths: Sequence[int],
        *,
        conv: str,
        ndim: int = 2,
        stem_pool: str | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        sre_conv_size: int | Sequence[int] = 3,
        num_rings: int | Sequence[int | None] | None = None,
        inplanes: int = 64,
        stem_size: int = 5,
        stem_stride: int = 1,
        skip_first_maxpool: bool = False,
        pooling: str = "centered",
        antialias: bool = False,
        norm_layer: Callable[[int], nn.Module] | None = None,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        global_pool: str = "avg",
        dropout_p: float = 0.0,
        features_only: bool = False,
        invariants: InvariantsOption = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if stem_pool not in ("max", "avg", None):
            raise ValueError(f"stem_pool must be 'max', 'avg' or None, got {stem_pool!r}")
        for name, value in {"in_channels": in_channels, "inplanes": inplanes, "stem_stride": stem_stride}.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        added = invariants_of(invariants)
        parts = Parts(conv, ndim, pooling, antialias, norm_layer, added, device, dtype)
        sizes = per_stage(sre_conv_size, 4, "sre_conv_size")
        rings = per_stage(num_rings, 4, "num_rings")
        self.ndim = ndim
        self.features_only = features_only
        self.grad_checkpointing = False

        self.conv1 = strided(parts, parts.convolution(in_channels, inplanes, stem_size), stem_stride)
        self.invariants = parts.add_invariants(inplanes, 0)
        self.bn1 = parts.norm(inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity()
        if stem_pool is not None and not skip_first_maxpool:
            self.maxpool = parts.max_pool(2, reference=(3, 2, 1)) if stem_pool == "max" else parts.avg_pool(2)
        reduction = stem_stride if isinstance(self.maxpool, nn.Identity) else 2 * stem_stride

        self.feature_info: list[dict[str, Any]] = []
        width = inplanes
        for i, depth in enumerate(depths):
            channels, stride = inplanes * 2**i, 1 if i == 0 else 2
            blocks = []
            for j in range(depth):
                blocks.append(
                    block(
                        parts, width, channels, stride if j == 0 else 1, i, sizes[i], rings[i], groups, width_per_group
                    )
                )
                width = channels * blocks[-1].expansion
            name = f"layer{i + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            reduction *= stride
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": name})
        self.num_features = width

        self.dropout = nn.Dropout(dropout_p)
        self.fc: nn.Module = nn.Identity()
        self.reset_classifier(0 if features_only else num_classes, global_pool, device=device, dtype=dtype)
        self._initialise()
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, Block):
                    nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]

    def _initialise(self) -> None:
        """Draws convolutions as He et al. do, by the fan-out of the dense kernel.

        A ring's weight stands at all of its taps, so every tap has the variance that it has in a plain kernel.
        """
        for module in self.modules():
            if isinstance(module, (RingConvNd, nn.Conv2d, nn.Conv3d)):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def reset_classifier(
        self,
        num_classes: int,
        global_pool: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A new classifier of ``num_classes`` logits, none at 0; None keeps the global pooling."""
        if num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {num_classes}")
        if global_pool is not None:
            if global_pool not in ("avg", "max"):
                raise ValueError(f"global_pool must be 'avg' or 'max', got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        factory: dict[str, Any] = {"device": device or like.device, "dtype": dtype or like.dtype}
        self.fc = nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between blocks for the backward pass, and compute the others twice."""
        self.grad_checkpointing = enable

    def _stages(self, x: Tensor) -> list[Tensor]:
        x = self.conv1(x)
        if self.invariants is not None:
            x = self.invariants(x)
        x = self.maxpool(self.relu(self.bn1(x)))
        maps = []
        for info in self.feature_info:
            for block in getattr(self, info["module"]):
                x = checkpointed(block, x) if self.grad_checkpointing and torch.is_grad_enabled() else block(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (N, num_features, *space)."""
        return self._stages(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes) of the last map; its pooled features if ``pre_logits``."""
        dims = tuple(range(-self.ndim, 0))
        x = x.mean(dims) if self.global_pool == "avg" else x.amax(dims)
        return x if pre_logits else self.fc(self.dropout(x))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (N, num_classes), or the four stages' maps if ``features_only``."""
        if self.features_only:
            return self._stages(x)
        return self.forward_head(self.forward_features(x))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        translate_reference_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fuse(self) -> ResNet:
        """A copy for inference, its batch normalisations folded into the convolutions before them.

        One stays where folding would change something: at a layer that is parametrized, pruned or hooked, or that
        something else uses, too.

        Raises:
            RuntimeError: the network is in training mode.
            ValueError: it cannot be copied.
        """
        network: ResNet = fused(self)
        return network


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
    """ResNet-18 of SRE convolutions. Keyword arguments: those of :class:`ResNet` from ``num_classes`` on."""
    return _resnet2d("sre", 18, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
def sre_resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-34 of SRE convolutions; see :func:`sre_resnet18`."""
    return _resnet2d("sre", 34, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
def sre_resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50 of SRE convolutions; see :func:`sre_resnet18`."""
    return _resnet2d("sre", 50, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
def sre_resnet101(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-101 of SRE convolutions; see :func:`sre_resnet18`."""
    return _resnet2d("sre", 101, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
def gmr_resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-18 of GMR convolutions, its stem pooled by averages; see :func:`sre_resnet18`."""
    return _resnet2d("gmr", 18, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
def gmr_resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-34 of GMR convolutions; see :func:`gmr_resnet18`."""
    return _resnet2d("gmr", 34, options)


@register_model((3, 32, 32), sre_conv_size=(9, 9, 5, 5), skip_first_maxpool=True)
def gmr_resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50 of GMR convolutions; see :func:`gmr_resnet18`."""
    return _resnet2d("gmr", 50, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
def resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet18`: the same network of ``nn.Conv2d``, and not equivariant."""
    return _resnet2d("plain", 18, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
def resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet34`."""
    return _resnet2d("plain", 34, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
def resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet50`."""
    return _resnet2d("plain", 50, options)


@register_model((3, 32, 32), sre_conv_size=3, skip_first_maxpool=True)
def resnet101(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_resnet101`."""
    return _resnet2d("plain", 101, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=5)
def sre_r3d_18(**options: Unpack[ResNetOptions]) -> ResNet:
    """3-D ResNet-18 of SRE convolutions: 400 classes and a 3x3x3 stem by default, which is not pooled.

    Keyword arguments: those of :class:`ResNet` from ``num_classes`` on.
    """
    return _resnet3d("sre", 18, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=5)
def sre_r3d_34(**options: Unpack[ResNetOptions]) -> ResNet:
    """3-D ResNet-34 of SRE convolutions; see :func:`sre_r3d_18`."""
    return _resnet3d("sre", 34, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=5)
def gmr_r3d_18(**options: Unpack[ResNetOptions]) -> ResNet:
    """3-D ResNet-18 of GMR convolutions; see :func:`sre_r3d_18`."""
    return _resnet3d("gmr", 18, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=3)
def r3d_18(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_r3d_18`."""
    return _resnet3d("plain", 18, options)


@register_model((1, 28, 28, 28), in_channels=1, sre_conv_size=3)
def r3d_34(**options: Unpack[ResNetOptions]) -> ResNet:
    """The plain twin of :func:`sre_r3d_34`."""
    return _resnet3d("plain", 34, options)
