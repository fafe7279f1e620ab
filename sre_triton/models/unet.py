"""U-Nets of ring convolutions in 2-D and 3-D, for images of any size.

The shape is that of MONAI's BasicUNet, with its state dict's names; the defaults are the vessel network of
J. Zhang et al., "Improved Vessel Segmentation with Symmetric Rotation-Equivariant U-Net", ISBI 2025. The way
down takes maxima over windows that are symmetric at every size, the way up interpolates to the size of the
map that is joined: the output turns and flips with the image, at any size.

Source of the shape: O. Ronneberger et al., "U-Net", MICCAI 2015; T. Falk et al., Nature Methods 16, 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sre_triton.conversion.fusion import fused
from sre_triton.docstrings import completed_by
from sre_triton.models.parts import InvariantsOption, Parts, checkpointed, invariants_of, per_stage, positive
from sre_triton.models.registry import register_model
from sre_triton.pooling import upsample_to

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class UNetOptions(TypedDict, total=False):
        """Keyword arguments of every U-Net; see :class:`UNet`."""

        in_channels: int
        out_channels: int
        features: Sequence[int] | None
        sre_conv_size: int | Sequence[int]
        num_rings: int | Sequence[int | None] | None
        pooling: str
        antialias: bool
        norm_layer: Callable[[int], nn.Module] | None
        negative_slope: float
        dropout_p: float
        invariants: InvariantsOption
        device: torch.device | str | None
        dtype: torch.dtype | None


__all__ = [
    "GMRUNet",
    "PlainUNet",
    "SREUNet",
    "UNet",
    "gmr_unet",
    "gmr_unet_3d",
    "plain_unet",
    "plain_unet_3d",
    "sre_unet",
    "sre_unet_3d",
]


_FEATURES = (32, 32, 64, 128)
# No more parameters than without: what the invariants learn is saved where the map is coarsest.
_FEATURES_WITH_INVARIANTS = (32, 32, 64, 120)


class _NormDropAct(nn.Module):
    """Normalisation, dropout and activation after a convolution."""

    def __init__(self, norm: nn.Module, dropout_p: float, negative_slope: float) -> None:
        super().__init__()
        self.N = norm
        self.D = nn.Dropout(dropout_p)
        self.A = nn.LeakyReLU(negative_slope, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.A(self.D(self.N(x)))
        return y


class _ConvUnit(nn.Module):
    def __init__(self, conv: nn.Module, adn: _NormDropAct, invariants: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        self.adn = adn
        self.invariants = invariants

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.invariants is not None:
            x = self.invariants(x)
        y: Tensor = self.adn(x)
        return y


class _Level(NamedTuple):
    """A resolution, counted from the finest, and size and rings of its convolutions."""

    number: int
    size: int
    num_rings: int | None


class _TwoConv(nn.Sequential):
    def __init__(
        self, parts: Parts, in_channels: int, out_channels: int, level: _Level, dropout_p: float, negative_slope: float
    ) -> None:
        super().__init__()
        for i, channels in enumerate((in_channels, out_channels)):
            conv = parts.convolution(channels, out_channels, level.size, num_rings=level.num_rings, bias=True)
            invariants = parts.add_invariants(out_channels, level.number, i)
            adn = _NormDropAct(parts.norm(out_channels), dropout_p, negative_slope)
            self.add_module(f"conv_{i}", _ConvUnit(conv, adn, invariants))


class _Down(nn.Sequential):
    def __init__(self, pool: nn.Module, convs: nn.Module) -> None:
        super().__init__()
        self.max_pooling = pool
        self.convs = convs


class _UpSample(nn.Module):
    """Fewer channels, then the size of the map that will be joined."""

    def __init__(self, parts: Parts, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.ndim = parts.ndim
        self.doubles = parts.pooling == "reference"
        self.preconv = (
            nn.Identity() if in_channels == out_channels else parts.pointwise(in_channels, out_channels, bias=True)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.preconv(x)
        if not self.doubles:
            return upsample_to(x, skip.shape[-self.ndim :], self.ndim)
        # The reference doubles, and repeats the last row of an odd map. Sizes one by one: torch.fx has no others.
        axes = range(-self.ndim, 0)
        x = upsample_to(x, [2 * x.shape[axis] for axis in axes], self.ndim)
        missing = [skip.shape[axis] - x.shape[axis] for axis in reversed(axes)]
        return F.pad(x, [side for n in missing for side in (0, n)], mode="replicate")


class _UpCat(nn.Module):
    def __init__(self, upsample: _UpSample, convs: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample
        self.convs = convs

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y: Tensor = self.convs(torch.cat([skip, self.upsample(x, skip)], dim=1))
        return y


class UNet(nn.Module):
    """A U-Net over (N, in_channels, *space), which gives (N, out_channels, *space). Subclasses say of which
    convolutions: :class:`SREUNet`, :class:`GMRUNet`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes.
        features: channels per resolution, from fine to coarse; one less is the number of down-samplings. None for
            (32, 32, 64, 128), with ``invariants`` (32, 32, 64, 120).
        sre_conv_size: odd size of the convolutions in pixels, one or one per resolution.
        num_rings: of these, None for the default of their size; one or one per resolution.
        pooling: "centered", symmetric at every size, or "reference": ordinary pooling and doubling, which
            is symmetric where the size is a multiple of 2 per down-sampling.
        antialias: weigh taps by the share of their pixel that a ring covers.
        norm_layer: makes a normalisation of so many channels, None for batch normalisation.
        negative_slope: of the LeakyReLU.
        dropout_p: probability of dropping an activation in training.
        invariants: True adds scalars of derivatives, which let rings see lines, after the first convolution of each
            pair at the two finest resolutions (262,574 parameters); "gradient" that kind alone, which turns more
            exactly between right angles (261,550); a mapping changes where and which, see
            :class:`sre_triton.models.parts.Invariants`.
        device: where the parameters are; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument is none of the above.

    Source:
        J. Zhang et al., "Improved Vessel Segmentation with Symmetric Rotation-Equivariant U-Net", ISBI 2025; the shape
        is that of O. Ronneberger et al., "U-Net", MICCAI 2015, as MONAI's BasicUNet has it.

    Examples:
        >>> network = sre_triton.SREUNet(in_channels=1, out_channels=3)
        >>> network(torch.randn(1, 1, 37, 50)).shape
        torch.Size([1, 3, 37, 50])
    """

    conv: ClassVar[str]

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 2,
        features: Sequence[int] | None = None,
        *,
        sre_conv_size: int | Sequence[int] = 9,
        num_rings: int | Sequence[int | None] | None = None,
        pooling: str = "centered",
        antialias: bool = False,
        norm_layer: Callable[[int], nn.Module] | None = None,
        negative_slope: float = 0.1,
        dropout_p: float = 0.0,
        invariants: InvariantsOption = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features is None:
            features = _FEATURES_WITH_INVARIANTS if invariants else _FEATURES
        if not isinstance(features, Iterable) or len(features := tuple(features)) < 2:
            raise ValueError(f"features must be two positive ints or more, one per resolution, got {features!r}")
        features = tuple(positive(f, f"features[{i}]") for i, f in enumerate(features))
        in_channels, out_channels = positive(in_channels, "in_channels"), positive(out_channels, "out_channels")
        added = invariants_of(invariants)
        parts = Parts(self.conv, spatial_dims, pooling, antialias, norm_layer, added, device, dtype)
        depth = len(features) - 1
        sizes = per_stage(sre_conv_size, depth + 1, "sre_conv_size")
        rings = per_stage(num_rings, depth + 1, "num_rings")
        levels = [_Level(*level) for level in zip(itertools.count(), sizes, rings)]

        def two_conv(i: int, o: int, level: _Level) -> _TwoConv:
            return _TwoConv(parts, i, o, level, dropout_p, negative_slope)

        self.spatial_dims = spatial_dims
        self.depth = depth
        self.grad_checkpointing = False
        self.conv_0 = two_conv(in_channels, features[0], levels[0])
        for i, (fine, coarse) in enumerate(itertools.pairwise(features), start=1):
            self.add_module(f"down_{i}", _Down(parts.max_pool(2), two_conv(fine, coarse, levels[i])))
        for i in range(depth, 0, -1):
            # The finest map is joined with as many channels as come up to it.
            fine, coarse = features[i - 1], features[i]
            risen = coarse if i == 1 else coarse // 2
            self.add_module(
                f"upcat_{i}",
                _UpCat(_UpSample(parts, coarse, risen), two_conv(fine + risen, fine, levels[i - 1])),
            )
        self.final_conv = parts.pointwise(features[0], out_channels, bias=True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between levels for the backward pass, and compute the others twice.

        Args:
            enable: False keeps all maps again.
        """
        self.grad_checkpointing = enable

    def _run(self, name: str, *inputs: Tensor) -> Tensor:
        module = self.get_submodule(name)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpointed(module, *inputs)
        y: Tensor = module(*inputs)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """The logits of each pixel.

        Args:
            x: (N, in_channels, *space), of any size that is left over after the down-samplings.

        Returns:
            (N, out_channels, *space).

        Raises:
            RuntimeError: ``x`` has other channels.
            ValueError: ``x`` has no dimension for the batch.
        """
        skips = [self._run("conv_0", x)]
        for i in range(1, self.depth + 1):
            skips.append(self._run(f"down_{i}", skips[-1]))
        x = skips.pop()
        for i in range(self.depth, 0, -1):
            x = self._run(f"upcat_{i}", x, skips.pop())
        y: Tensor = self.final_conv(x)
        return y

    def fuse(self) -> UNet:
        """A copy for inference, its batch normalisations folded into the convolutions before them.

        One stays where folding would change something: at a layer that is parametrized, pruned or hooked, or that
        something else uses, too.

        Raises:
            RuntimeError: the network is in training mode.
            ValueError: it cannot be copied.
        """
        network: UNet = fused(self)
        return network


@completed_by(UNet)
class SREUNet(UNet):
    """U-Net of SRE convolutions over (N, in_channels, *space): by default the vessel network, 274,306 parameters. The
    arguments are those of :class:`UNet`."""

    conv = "sre"


@completed_by(UNet)
class GMRUNet(UNet):
    """U-Net of GMR convolutions over (N, in_channels, *space), whose rings are mixed by learned Gaussians, one width
    per ring and layer. The arguments are those of :class:`UNet`."""

    conv = "gmr"


@completed_by(UNet)
class PlainUNet(UNet):
    """The ordinary twin of :class:`SREUNet` over (N, in_channels, *space): the same resolutions, channels, pooling and
    up-sampling, of ordinary convolutions. The arguments are those of :class:`UNet`; those of rings are refused."""

    conv = "plain"


@register_model((3, 256, 256), sre_conv_size=9)
def sre_unet(**options: Unpack[UNetOptions]) -> SREUNet:
    """:class:`SREUNet` over images (N, in_channels, H, W).

    Args:
        options: keyword arguments of :class:`UNet` from ``in_channels`` on.

    Returns:
        The network with random parameters, in training mode.

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument has a value that it cannot have.

    Source:
        J. Zhang et al., "Improved Vessel Segmentation with Symmetric Rotation-Equivariant U-Net", ISBI 2025.
    """
    return SREUNet(2, **options)


@register_model((3, 256, 256), sre_conv_size=9)
@completed_by(sre_unet)
def gmr_unet(**options: Unpack[UNetOptions]) -> GMRUNet:
    """:class:`GMRUNet` over images (N, in_channels, H, W). The arguments are those of :func:`sre_unet`."""
    return GMRUNet(2, **options)


@register_model((1, 48, 48, 48), in_channels=1, sre_conv_size=5)
@completed_by(sre_unet)
def sre_unet_3d(**options: Unpack[UNetOptions]) -> SREUNet:
    """:class:`SREUNet` over volumes (N, in_channels, D, H, W). The arguments are those of :func:`sre_unet`."""
    return SREUNet(3, **options)


@register_model((1, 48, 48, 48), in_channels=1, sre_conv_size=5)
@completed_by(sre_unet)
def gmr_unet_3d(**options: Unpack[UNetOptions]) -> GMRUNet:
    """:class:`GMRUNet` over volumes (N, in_channels, D, H, W). The arguments are those of :func:`sre_unet`."""
    return GMRUNet(3, **options)


@register_model((3, 256, 256), sre_conv_size=3)
@completed_by(sre_unet)
def plain_unet(**options: Unpack[UNetOptions]) -> PlainUNet:
    """The ordinary twin of :func:`sre_unet` over images (N, in_channels, H, W), by default of 3x3 convolutions. The
    arguments are those of :func:`sre_unet`; those of rings are refused."""
    options = {"sre_conv_size": 3, **options}
    return PlainUNet(2, **options)


@register_model((1, 48, 48, 48), in_channels=1, sre_conv_size=3)
@completed_by(sre_unet)
def plain_unet_3d(**options: Unpack[UNetOptions]) -> PlainUNet:
    """The ordinary twin of :func:`sre_unet_3d` over volumes (N, in_channels, D, H, W), by default of 3x3x3
    convolutions. The arguments are those of :func:`sre_unet`; those of rings are refused."""
    options = {"sre_conv_size": 3, **options}
    return PlainUNet(3, **options)
