"""Gaussian-mixture-ring (GMR) layers: a ring convolution whose ring weights are mixed by learned Gaussians.

The weight that ring ``l`` uses is ``sum_i weight[..., i] * P[i, l]``, where row ``i`` of ``P`` is a normal
density of mean ``i`` and learned width, sampled at the ring numbers. The kernel is still constant on
every ring, so the mixing is one small product in front of the same operator.

Source: Y. Du et al., "GMR-Conv: An Efficient Rotation and Reflection Equivariant Convolution Kernel Using Gaussian
Mixture Rings", arXiv:2504.02819, 2025, and the package GMR_Conv 1.0.3, whose constants are kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.docstrings import completed_by
from sre_triton.layers.convolutions import SREConv2d, _SREConvNd
from sre_triton.operators.arguments import Size
from sre_triton.operators.checks import is_parameter
from sre_triton.private_api import has_autocast

__all__ = ["GMRConv1d", "GMRConv2d", "GMRConv3d", "ring_mixing"]

# sqrt(2 pi) as the reference rounds it: checkpoints were trained with this value.
_SQRT_TWO_PI = 2.5066
_MIN_SIGMA = 1e-2


def ring_mixing(log_sigmas: Tensor) -> Tensor:
    """The matrix ``P[i, l]`` of (rings,) logarithms of ring widths, (rings, rings).

    ``P[i, l]`` is the normal density with mean ``i`` and width ``exp(log_sigmas[i])`` at ``l``, not
    normalised over ``l``. Widths are clamped to ``[1e-2, 2 * rings]``.
    """
    rings = log_sigmas.shape[0]
    sigmas = log_sigmas.exp().clamp(_MIN_SIGMA, 2.0 * rings).unsqueeze(1)
    numbers = torch.arange(rings, device=log_sigmas.device, dtype=log_sigmas.dtype)
    return torch.exp(-0.5 * ((numbers - numbers.unsqueeze(1)) / sigmas) ** 2) / (sigmas * _SQRT_TWO_PI)


class _GMRConvNd(_SREConvNd):
    """What GMR layers of every dimension share; :class:`GMRConv2d` documents it."""

    log_sigmas: Tensor

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
        train_gaussian_sigma: bool = True,
        gaussian_sigma_scale: float = 2.355,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype,
            num_rings=num_rings, circular=circular, antialias=antialias,
        )  # fmt: skip
        if not gaussian_sigma_scale > 0:
            raise ValueError(f"gaussian_sigma_scale must be positive, got {gaussian_sigma_scale}")
        self.gaussian_sigma_scale = gaussian_sigma_scale
        log_sigmas = torch.empty(self.num_rings, device=device, dtype=dtype)
        if train_gaussian_sigma:
            self.log_sigmas = nn.Parameter(log_sigmas)
        else:
            self.register_buffer("log_sigmas", log_sigmas)
        self._reset_sigmas()

    def reset_parameters(self) -> None:
        """As the SRE layer's; the widths return to their initial value."""
        super().reset_parameters()
        if hasattr(self, "log_sigmas"):  # the base class calls this before they exist
            self._reset_sigmas()

    def _reset_sigmas(self) -> None:
        # A single ring has no neighbours to be mixed with; any finite width will do.
        ring_width = self.kernel_size[0] / (2 * max(self.num_rings - 1, 1))
        with torch.no_grad():
            self.log_sigmas.fill_(math.log(ring_width / self.gaussian_sigma_scale))

    def ring_weight(self) -> Tensor:
        """``weight @ P(log_sigmas)``, the weight of each ring that the convolution uses, in the shape of ``weight``;
        differentiable."""
        for parameter in (self.weight, self.log_sigmas):
            is_parameter(parameter)
        device_type = self.weight.device.type
        if not has_autocast(device_type):
            return self.weight @ ring_mixing(self.log_sigmas)
        with torch.autocast(device_type, enabled=False):  # autocast would round the mixing itself
            return self.weight @ ring_mixing(self.log_sigmas)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        means = state_dict.pop(prefix + "mus", None)
        if means is not None and not means.is_meta and means.detach().flatten().tolist() != list(range(self.num_rings)):
            args[-1].append(
                f'"{prefix}mus" must be the ring numbers 0 to {self.num_rings - 1}, got {means.flatten().tolist()}'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


@completed_by(SREConv2d)
class GMRConv2d(_GMRConvNd):
    """GMR convolution over (N, in, H, W) or (in, H, W): a ring convolution whose rings are mixed by learned Gaussians.

    Takes the arguments of :class:`~sre_triton.SREConv2d` and two of its own.

    Args:
        train_gaussian_sigma: learn the widths of the Gaussians; if False they are a buffer.
        gaussian_sigma_scale: the initial width is that of a ring over this; 2.355 makes a ring's width the full width
            at half maximum.

    Attributes:
        weight: (out_channels, in_channels / groups, num_rings), before mixing.
        log_sigmas: (num_rings,) logarithms of the Gaussians' widths, in rings.

    Raises:
        ValueError: an argument describes no convolution, no ring kernel, or no width.

    Source:
        Y. Du et al., "GMR-Conv: An Efficient Rotation and Reflection Equivariant Convolution Kernel Using Gaussian
        Mixture Rings", arXiv:2504.02819, 2025; constants as in the package GMR_Conv 1.0.3.

    Examples:
        >>> layer = sre_triton.GMRConv2d(3, 8, kernel_size=5, padding=2)
        >>> [name for name, _ in layer.named_parameters()]
        ['weight', 'bias', 'log_sigmas']
        >>> layer.log_sigmas.exp()  # of the initial Gaussians, in rings
        tensor([0.5308, 0.5308, 0.5308], grad_fn=<ExpBackward0>)
    """

    ndim = 2


@completed_by(GMRConv2d)
class GMRConv1d(_GMRConvNd):
    """GMR convolution over (N, in, L) or (in, L). The arguments are those of :class:`GMRConv2d`."""

    ndim = 1


@completed_by(GMRConv2d)
class GMRConv3d(_GMRConvNd):
    """GMR convolution over (N, in, D, H, W) or (in, D, H, W). The arguments are those of :class:`GMRConv2d`."""

    ndim = 3
