"""The reference packages' layers by their own names and argument order.

Code written for SRE_Conv 1.0.2 or GMR_Conv 1.0.3 runs with the import changed. Arguments that only
tuned the reference's speed (``inference_accelerate``, ``dw_fwd``) are accepted and change nothing, since
there is no cached kernel to switch off; arguments that would change the result in a way that these
layers do not offer raise :class:`ValueError`.
"""

from __future__ import annotations

import torch

from sre_triton.docstrings import completed_by
from sre_triton.gmr import GMRConv1d, GMRConv2d, GMRConv3d, _GMRConvNd
from sre_triton.layers.convolutions import SREConv1d, SREConv2d, SREConv3d, SREConvTranspose2d, _SREConvNd
from sre_triton.operators.arguments import Size

__all__ = [
    "GMR_Conv1d",
    "GMR_Conv2d",
    "GMR_Conv3d",
    "SRE_Conv1d",
    "SRE_Conv2d",
    "SRE_Conv3d",
    "SRE_ConvTranspose2d",
]


def _refuse_transposed(layer: object, transposed: bool) -> None:
    if transposed:
        name = type(layer).__name__
        raise ValueError(
            f"transposed=True is not supported by {name} (the reference runs a plain convolution); "
            f"use sre_triton.SREConvTranspose{name[-2:]}"
        )


class _SREArguments(_SREConvNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        transposed: bool = False,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        sre_k: int | None = None,
        inference_accelerate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _refuse_transposed(self, transposed)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype,
            num_rings=sre_k,
        )  # fmt: skip

    @property
    def sre_k(self) -> int:
        """The reference's name for the number of rings."""
        return self.num_rings


@completed_by(SREConv2d)
class SRE_Conv2d(_SREArguments, SREConv2d):
    """:class:`sre_triton.SREConv2d` with the names and the order of the arguments of SRE_Conv 1.0.2.

    Args:
        transposed: False, the only one: the reference runs a plain convolution there.
        sre_k: rings of the kernel; None for ``kernel_size // 2 + 1``.
        inference_accelerate: changes nothing, since there is no cached kernel to switch off.

    Raises:
        ValueError: an argument describes no convolution, or no ring kernel; or ``transposed`` is True.

    Examples:
        >>> layer = sre_triton.SRE_Conv2d(3, 8, 9, sre_k=4)
        >>> layer.num_rings, layer.sre_k
        (4, 4)
    """


@completed_by(SRE_Conv2d)
class SRE_Conv1d(_SREArguments, SREConv1d):
    """:class:`sre_triton.SREConv1d`, over (N, in, L) or (in, L), with the arguments of :class:`SRE_Conv2d`."""


@completed_by(SRE_Conv2d)
class SRE_Conv3d(_SREArguments, SREConv3d):
    """:class:`sre_triton.SREConv3d`, over (N, in, D, H, W) or (in, D, H, W), with the arguments of
    :class:`SRE_Conv2d`."""


@completed_by(SREConvTranspose2d)
class SRE_ConvTranspose2d(SREConvTranspose2d):
    """:class:`sre_triton.SREConvTranspose2d` with the names and the order of the arguments of SRE_Conv 1.0.2.

    Args:
        sre_k: rings of the kernel; None for ``kernel_size // 2 + 1``.
        inference_accelerate: changes nothing, since there is no cached kernel to switch off.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        sre_k: int | None = None,
        inference_accelerate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, 0, groups, bias, dilation, padding_mode,
            device, dtype, num_rings=sre_k,
        )  # fmt: skip

    @property
    def sre_k(self) -> int:
        """The reference's name for the number of rings."""
        return self.num_rings


class _GMRArguments(_GMRConvNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        transposed: bool = False,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        num_rings: int | None = None,
        train_index_mat: bool = False,
        inference_accelerate: bool = True,
        force_circular: bool = True,
        gaussian_mixture_ring: bool = True,
        train_gaussian_sigma: bool = True,
        sigma_no_weight_decay: bool = False,
        gaussian_sigma_scale: float = 2.355,
        dw_fwd: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _refuse_transposed(self, transposed)
        if train_index_mat:
            raise ValueError(
                "train_index_mat=True is not supported: a trained map would no longer be constant on rings"
            )
        if not gaussian_mixture_ring:
            raise ValueError(
                "gaussian_mixture_ring=False is not supported: without the mixture the layer is "
                f"sre_triton.SRE_Conv{self.ndim}d"
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype,
            num_rings=num_rings, circular=force_circular, train_gaussian_sigma=train_gaussian_sigma,
            gaussian_sigma_scale=gaussian_sigma_scale,
        )  # fmt: skip
        if sigma_no_weight_decay:
            self.log_sigmas._no_weight_decay = True  # type: ignore[attr-defined]


@completed_by(GMRConv2d)
class GMR_Conv2d(_GMRArguments, GMRConv2d):
    """:class:`sre_triton.GMRConv2d` with the names and the order of the arguments of GMR_Conv 1.0.3.

    Args:
        transposed: False, the only one: the reference runs a plain convolution there.
        train_index_mat: False, the only one: a trained map would no longer be constant on rings.
        inference_accelerate: changes nothing, since there is no cached kernel to switch off.
        force_circular: True ends the rings at radius ``kernel_size // 2 + 0.5`` pixels; False at the corners.
        gaussian_mixture_ring: True, the only one: without the mixture the layer is :class:`SRE_Conv2d`.
        sigma_no_weight_decay: mark ``log_sigmas`` for the reference's optimiser, which then does not decay it.
        dw_fwd: changes nothing: it chose between two ways of computing the same.

    Raises:
        ValueError: an argument describes no convolution, no ring kernel, or no width; or one that has a single
            value above has another.
    """


@completed_by(GMR_Conv2d)
class GMR_Conv1d(_GMRArguments, GMRConv1d):
    """:class:`sre_triton.GMRConv1d`, over (N, in, L) or (in, L), with the arguments of :class:`GMR_Conv2d`."""


@completed_by(GMR_Conv2d)
class GMR_Conv3d(_GMRArguments, GMRConv3d):
    """:class:`sre_triton.GMRConv3d`, over (N, in, D, H, W) or (in, D, H, W), with the arguments of
    :class:`GMR_Conv2d`; as in GMR_Conv 1.0.3 ``sigma_no_weight_decay`` comes before ``train_gaussian_sigma`` here."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        transposed: bool = False,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        num_rings: int | None = None,
        train_index_mat: bool = False,
        inference_accelerate: bool = True,
        force_circular: bool = True,
        gaussian_mixture_ring: bool = True,
        sigma_no_weight_decay: bool = False,
        train_gaussian_sigma: bool = True,
        gaussian_sigma_scale: float = 2.355,
        dw_fwd: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, transposed, groups, bias, padding_mode,
            num_rings, train_index_mat, inference_accelerate, force_circular, gaussian_mixture_ring,
            train_gaussian_sigma, sigma_no_weight_decay, gaussian_sigma_scale, dw_fwd, device, dtype,
        )  # fmt: skip
