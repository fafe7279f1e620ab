"""Ring convolutions and transposed ones in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import functional as F

from sre_triton.docstrings import completed_by
from sre_triton.functional import ring_conv, ring_conv_transpose
from sre_triton.functional.calls import pointwise_conv
from sre_triton.geometry.conv import ConvArgs, output_padding
from sre_triton.layers.base import RingConvNd
from sre_triton.operators.arguments import Size, size_tuple

__all__ = [
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
]

_ONE_TAP = tuple((1,) * ndim for ndim in (1, 2, 3))


class _SREConvNd(RingConvNd):
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        antialias: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation, output_padding=0,
            groups=groups, bias=bias, padding_mode=padding_mode, num_rings=num_rings, circular=circular,
            antialias=antialias, device=device, dtype=dtype,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        """Convolves one image or a batch, as ``nn.ConvNd`` does.

        Args:
            input: (N, in_channels, *space) or (in_channels, *space), of the layer's dtype and device.

        Returns:
            (N, out_channels, *size) or (out_channels, *size), channels_last if the input is.

        Raises:
            RuntimeError: shape, dtype or device of ``input`` do not fit.
        """
        if type(input) is not Tensor and isinstance(input, Proxy):
            return self._as_leaf(input)
        if self.kernel_size in _ONE_TAP:
            sizes = self.stride, self.padding, self.dilation
            y = pointwise_conv(input, self.ring_weight(), self.bias, *sizes, self.groups, self.ndim)
            if y is not None:
                return y
        args = self._conv_args(self.padding)
        if self.padding_mode != "zeros":
            input = F.pad(input, [p for p in reversed(args.padding) for _ in range(2)], mode=self.padding_mode)
            args = args._replace(padding=(0,) * self.ndim)
        return ring_conv(input, self.ring_weight(), self.bias, args)


class _SREConvTransposeNd(RingConvNd):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        antialias: bool = False,
    ) -> None:
        if isinstance(padding, str):
            raise TypeError(f"padding must be an int or a tuple of ints for {type(self).__name__}, got {padding!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation,
            output_padding=output_padding, groups=groups, bias=bias, padding_mode=padding_mode, num_rings=num_rings,
            circular=circular, antialias=antialias, device=device, dtype=dtype,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Convolves one image or a batch, as ``nn.ConvTransposeNd`` does.

        Args:
            input: (N, in_channels, *space) or (in_channels, *space), of the layer's dtype and device.
            output_size: pixels of the output per spatial dimension, with or without batch and channels before them;
                it takes the place of ``output_padding``. None for the least size plus ``output_padding``.

        Returns:
            (N, out_channels, *size) or (out_channels, *size), channels_last if the input is.

        Raises:
            ValueError: no output padding leads to ``output_size``.
            RuntimeError: shape, dtype or device of ``input`` do not fit.
        """
        if type(input) is not Tensor and isinstance(input, Proxy):
            return self._as_leaf(input, *(() if output_size is None else (output_size,)))
        assert not isinstance(self.padding, str)
        args = self._conv_args(self.padding)
        if output_size is None:
            extra = size_tuple(self.output_padding, self.ndim, "output_padding")
        else:
            extra = self._extra_for(input, output_size, args)
        return ring_conv_transpose(input, self.ring_weight(), self.bias, extra, args)

    def _extra_for(self, input: Tensor, output_size: Sequence[int], args: ConvArgs) -> tuple[int, ...]:
        """Output padding that leads to ``output_size``, which may or may not name batch and channels."""
        space = input.shape[-self.ndim :]
        size = tuple(output_size)
        if len(size) == input.dim():
            size = size[-self.ndim :]
        if len(size) != self.ndim:
            raise ValueError(
                f"{type(self).__name__}: for {input.dim()}D input, output_size must have {self.ndim} or {input.dim()} "
                f"elements (got {len(size)})"
            )
        extra = output_padding(args, size, space)
        if not all(0 <= n < s for n, s in zip(extra, args.stride, strict=True)):
            least = [n - e for n, e in zip(size, extra, strict=True)]
            most = [n + s - 1 for n, s in zip(least, args.stride, strict=True)]
            raise ValueError(
                f"requested an output size of {size}, but valid sizes range from {least} to {most} (for an input of "
                f"{tuple(space)})"
            )
        return extra


class SREConv2d(_SREConvNd):
    """Ring convolution over (N, in, H, W) or (in, H, W), equivariant to quarter turns and flips exactly
    and to other rotations approximately.

    Arguments up to ``dtype`` are those of :class:`torch.nn.Conv2d`, in its order.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd number of pixels; an int, or the same int once per dimension.
        stride: pixels between outputs; an int or one per dimension. Above 1 an output is symmetric only if
            ``size + 2 * padding - dilation * (kernel_size - 1) - 1`` is a multiple of the stride.
        padding: pixels added to every side, an int or one per dimension; "same" keeps the size at stride 1,
            "valid" is none.
        dilation: pixels between neighbouring taps; an int or one per dimension.
        groups: blocks of channels that are convolved apart.
        bias: learn a bias per output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: where the parameters are; None for PyTorch's default.
        dtype: floating dtype of the parameters; None for PyTorch's default.
        num_rings: rings of the kernel; None for ``kernel_size // 2 + 1`` (one more if not circular).
        circular: True ends the rings at radius ``kernel_size // 2 + 0.5`` pixels; False at the corners.
        antialias: weigh each tap by the share of its pixel that a ring covers, instead of giving each
            tap to one ring. Closer to equivariant between quarter turns, at more additions.

    Attributes:
        weight: (out_channels, in_channels / groups, num_rings).
        bias: (out_channels,) or None.

    Raises:
        TypeError: an argument is of a wrong type, or ``dtype`` is complex.
        ValueError: an argument describes no convolution, or no ring kernel.

    Source:
        J. Zhang et al., "Improved Vessel Segmentation with Symmetric Rotation-Equivariant U-Net", ISBI 2025.

    Examples:
        >>> layer = sre_triton.SREConv2d(3, 64, kernel_size=9, padding=4)
        >>> layer.weight.shape  # five rings in the place of 81 taps
        torch.Size([64, 3, 5])
        >>> image = torch.randn(2, 3, 32, 48)
        >>> layer(image).shape
        torch.Size([2, 64, 32, 48])
        >>> torch.allclose(layer(image.rot90(1, (2, 3))), layer(image).rot90(1, (2, 3)), atol=1e-5)
        True
    """

    ndim = 2


@completed_by(SREConv2d)
class SREConv1d(_SREConvNd):
    """Ring convolution over (N, in, L) or (in, L): a convolution whose kernel is the same read backwards. The
    arguments are those of :class:`SREConv2d`."""

    ndim = 1


@completed_by(SREConv2d)
class SREConv3d(_SREConvNd):
    """Ring (spherical shell) convolution over (N, in, D, H, W) or (in, D, H, W), equivariant to quarter turns and
    flips exactly and to other rotations approximately. The arguments are those of :class:`SREConv2d`."""

    ndim = 3


@completed_by(SREConv2d)
class SREConvTranspose2d(_SREConvTransposeNd):
    """Transposed ring convolution over (N, in, H, W) or (in, H, W): the adjoint of :class:`SREConv2d` in its input.

    Arguments up to ``dtype`` are those of :class:`torch.nn.ConvTranspose2d`, in its order; the others are those of
    :class:`SREConv2d`. The output has in each dimension the size ``(size - 1) * stride - 2 * padding + dilation *
    (kernel_size - 1) + output_padding + 1``.

    Args:
        stride: pixels of the output between those of the input; an int or one per dimension.
        padding: pixels cut off every side of the output; an int or one per dimension, no string.
        output_padding: pixels added at the far sides of the output, fewer than the stride or the dilation.
            The output is symmetric only where it is 0.
        padding_mode: "zeros", the only one.

    Attributes:
        weight: (in_channels, out_channels / groups, num_rings).

    Raises:
        TypeError: an argument is of a wrong type, ``padding`` is a string, or ``dtype`` is complex.
        ValueError: an argument describes no transposed convolution, or no ring kernel.

    Examples:
        >>> up = sre_triton.SREConvTranspose2d(8, 4, kernel_size=3, stride=2, padding=1)
        >>> up(torch.randn(1, 8, 5, 7)).shape
        torch.Size([1, 4, 9, 13])
        >>> up(torch.randn(1, 8, 5, 7), output_size=(10, 14)).shape
        torch.Size([1, 4, 10, 14])
    """

    ndim = 2


@completed_by(SREConvTranspose2d)
class SREConvTranspose1d(_SREConvTransposeNd):
    """Transposed ring convolution over (N, in, L) or (in, L): the adjoint of :class:`SREConv1d` in its input. The
    arguments are those of :class:`SREConvTranspose2d`."""

    ndim = 1


@completed_by(SREConvTranspose2d)
class SREConvTranspose3d(_SREConvTransposeNd):
    """Transposed ring convolution over (N, in, D, H, W) or (in, D, H, W): the adjoint of :class:`SREConv3d` in its
    input. The arguments are those of :class:`SREConvTranspose2d`."""

    ndim = 3
