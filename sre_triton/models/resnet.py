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
from sre_triton.models.parts import InvariantsOption, Parts, checkpointed, invariants_of, per_stage, positive
from sre_triton.models.residual_blocks import Block, strided
from sre_triton.operators.arguments import integer

if TYPE_CHECKING:
    from typing_extensions import TypedDict

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


__all__ = ["ResNet"]


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
        groups: blocks of channels that the bottleneck's middle convolution convolves apart, as in ResNeXt.
        width_per_group: channels of each in the first stage.
        global_pool: "avg" or "max" over the last map.
        dropout_p: probability of dropping a pooled feature before the classifier in training.
        features_only: return the list of the four stages' maps instead of logits.
        invariants: True adds scalars of derivatives, which let rings see lines, after the stem and the first ring
            convolution of each block of the first two stages; the name of a kind, as "gradient", adds that alone; a
            mapping changes where and which, see :class:`sre_triton.models.parts.Invariants`. For networks of ring
            convolutions.
        device: where the parameters are; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.

    Attributes:
        num_features: channels of the last map.
        feature_info: of each stage, its channels (``num_chs``), how much smaller its map is than the image
            (``reduction``) and its name (``module``).

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument is none of the above.

    Source:
        K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; of ring convolutions the packages
        SRE_Conv 1.0.2 and GMR_Conv 1.0.3.
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
        in_channels, inplanes = positive(in_channels, "in_channels"), positive(inplanes, "inplanes")
        stem_stride = positive(stem_stride, "stem_stride")
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
        """Puts a new classifier with random parameters into the place of the last.

        Args:
            num_classes: logits; 0 for none, which gives the pooled features.
            global_pool: "avg" or "max" over the last map; None keeps what it was.
            device: where the parameters are; None for where the others are.
            dtype: of the parameters; None for that of the others.

        Raises:
            ValueError: an argument is none of the above.
        """
        if integer(num_classes, "num_classes") < 0:
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
        """The last layer, an ``nn.Linear`` or, without classes, an ``nn.Identity``."""
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between blocks for the backward pass, and compute the others twice.

        Args:
            enable: False keeps all maps again.
        """
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
        """The last map.

        Args:
            x: (N, in_channels, *space).

        Returns:
            (N, num_features, *size), smaller than the image by the last ``reduction`` of ``feature_info``.

        Raises:
            RuntimeError: ``x`` has other channels.
            ValueError: ``x`` has no dimension for the batch.
        """
        return self._stages(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The logits that a last map gives.

        Args:
            x: (N, num_features, *size), as :meth:`forward_features` gives it.
            pre_logits: return the pooled features instead.

        Returns:
            (N, num_classes), or (N, num_features) if ``pre_logits``.

        Raises:
            RuntimeError: ``x`` has another number of channels.
        """
        dims = tuple(range(-self.ndim, 0))
        x = x.mean(dims) if self.global_pool == "avg" else x.amax(dims)
        return x if pre_logits else self.fc(self.dropout(x))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """The logits of images, or maps of them.

        Args:
            x: (N, in_channels, *space), of any size.

        Returns:
            (N, num_classes), or the list of the four stages' maps if ``features_only``.

        Raises:
            RuntimeError: ``x`` has other channels.
            ValueError: ``x`` has no dimension for the batch.
        """
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
