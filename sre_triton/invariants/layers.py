"""Layers of differential invariants: their maps alone, and a layer that adds them to its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from sre_triton.docstrings import completed_by
from sre_triton.invariants import formulas
from sre_triton.invariants.functional import (
    add_invariants,
    differential_invariants,
    gradient_products,
    invariant_spec,
)

__all__ = [
    "AddInvariants2d",
    "AddInvariants3d",
    "AddInvariantsNd",
    "DifferentialInvariants2d",
    "DifferentialInvariants3d",
    "InvariantsNd",
]


class InvariantsNd(nn.Module):
    """What the layers share: which invariants, at which scales."""

    __constants__ = ["dilations", "eps", "kinds"]
    ndim: ClassVar[int]

    def __init__(self, kinds: Sequence[str] | str, dilations: Sequence[int] | int, eps: float) -> None:
        super().__init__()
        _, self.kinds, self.dilations, self.eps = invariant_spec(self.ndim, kinds, dilations, eps)

    @property
    def spec(self) -> formulas.Spec:
        """The arguments in one form."""
        return formulas.Spec(self.ndim, self.kinds, self.dilations, self.eps)

    def extra_repr(self) -> str:
        """Kinds and scales."""
        return f"kinds={self.kinds}, dilations={self.dilations}"


class _DifferentialInvariantsNd(InvariantsNd):
    """What :class:`DifferentialInvariants2d` and its like in 3-D share."""

    def __init__(
        self,
        channels: int | None = None,
        kinds: Sequence[str] | str = ("gradient", "anisotropy"),
        dilations: Sequence[int] | int = 1,
        *,
        pairing: Sequence[int] | str | None = None,
        eps: float = 1e-2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kinds, dilations, eps)
        if pairing is not None and (channels is None or channels < 1):
            raise ValueError(f"channels must be a positive int where there is a pairing, got {channels}")
        self.channels = channels
        self.pairing: tuple[int, ...] | str | None = None
        self.register_parameter("pairing_weight", None)
        if isinstance(pairing, str):
            if pairing != "learned":
                raise ValueError(f"pairing must be 'learned', a sequence of channels or None, got {pairing!r}")
            assert channels is not None
            self.pairing = pairing
            shape = (channels, channels, *[1] * self.ndim)
            self.pairing_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        elif pairing is not None:
            assert channels is not None
            self.pairing = tuple(pairing)
            if len(self.pairing) != channels or any(not 0 <= p < channels for p in self.pairing):
                raise ValueError(f"pairing must name one of {channels} channels for each of them, got {pairing!r}")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws a learned pairing anew."""
        if self.pairing_weight is not None:
            nn.init.normal_(self.pairing_weight, 0, 1 / math.sqrt(self.pairing_weight.shape[0]))

    def forward(self, input: Tensor) -> Tensor:
        """The invariants of one map or a batch.

        Args:
            input: (N, C, *space) or (C, *space), of the parameter's device.

        Returns:
            (N, scales * (kinds [+ 1]) * C, *space), or the same without N; 1 more kind where there is a pairing.

        Raises:
            TypeError: ``input`` is not of a floating type.
            ValueError: ``input`` has not these dimensions, or with a pairing not ``channels`` channels.
        """
        if isinstance(input, Proxy):  # its shape and type are not known; nothing in PyTorch is of them here
            weight = self._parameters["pairing_weight"]
            dtype = torch.float32 if weight is None else weight.dtype
            maps = formulas.maps(input, self.spec, dtype)
            if self.pairing is None:
                return maps
            products = formulas.products(input, self._partner(input), self.spec, dtype)
        else:
            maps = differential_invariants(input, self.kinds, self.dilations, eps=self.eps, ndim=self.ndim)
            if self.pairing is None:
                return maps
            if input.shape[-1 - self.ndim] != self.channels:
                raise ValueError(f"input must have {self.channels} channels, got shape {tuple(input.shape)}")
            products = gradient_products(input, self._partner(input), self.dilations, ndim=self.ndim)
        return torch.cat([maps, products], -1 - self.ndim)

    def _partner(self, z: Tensor) -> Tensor:
        if self.pairing_weight is None:
            assert isinstance(self.pairing, tuple)
            return torch.cat([z.narrow(-1 - self.ndim, c, 1) for c in self.pairing], -1 - self.ndim)
        mix: Any = (nn.functional.conv2d, nn.functional.conv3d)[self.ndim - 2]
        partner: Tensor = mix(z, self.pairing_weight)
        return partner.type_as(z)

    def extra_repr(self) -> str:
        """Kinds, scales and pairing."""
        return super().extra_repr() + (f", pairing={self.pairing!r}" if self.pairing is not None else "")


@completed_by(differential_invariants, "Args")
class DifferentialInvariants2d(_DifferentialInvariantsNd):
    """:func:`sre_triton.differential_invariants` of (N, C, H, W) or (C, H, W) as a layer.

    The result has scales * kinds * C channels, and scales * C more where there is a pairing. ``kinds``, ``dilations``
    and ``eps`` are those of the function.

    Args:
        channels: C, which is only read by ``pairing``; None for any.
        pairing: adds scalar products of gradients between channels, after everything else and by scale and channel.
            A sequence of C ints names the partner of each channel; "learned" makes it a mixture of all channels by a
            matrix ``pairing_weight`` (C, C, 1, ...), drawn with variance 1 / C; None for no products.
        device: where the parameter is; None for PyTorch's default.
        dtype: of the parameter; None for PyTorch's default.

    Raises:
        ValueError: an argument is none of the above.
    """

    ndim = 2


@completed_by(DifferentialInvariants2d)
class DifferentialInvariants3d(_DifferentialInvariantsNd):
    """:func:`sre_triton.differential_invariants` of (N, C, D, H, W) or (C, D, H, W) as a layer. The arguments are those
    of :class:`DifferentialInvariants2d`."""

    ndim = 3


@completed_by(differential_invariants, "Args")
class AddInvariantsNd(InvariantsNd):
    """Its input plus differential invariants of it: ``z + weight . invariants(project . z)``.

    It stands between a ring convolution and its normalisation, where it lets a network see lines and edges, which
    rings cannot tell from blobs and steps. ``project`` mixes the channels to a few features, and ``weight`` adds
    their invariants to all channels. Only the input is kept for the backward pass. ``kinds``, ``dilations`` and ``eps``
    are those of :func:`sre_triton.differential_invariants`.

    Args:
        channels: of the input.
        features: how many mixtures of channels have invariants; None for a quarter of the channels.
        device: where the parameters are; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.

    Attributes:
        project: (features, channels, 1, ...), drawn with variance 1 / channels.
        weight: (channels, scales * kinds * features, 1, ...), drawn with variance 1 / (scales * kinds * features).

    Raises:
        ValueError: an argument is none of the above.
    """

    def __init__(
        self,
        channels: int,
        kinds: Sequence[str] | str = ("gradient", "anisotropy"),
        dilations: Sequence[int] | int = 1,
        *,
        features: int | None = None,
        eps: float = 1e-2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kinds, dilations, eps)
        features = max(1, channels // 4) if features is None else features
        for name, value in (("channels", channels), ("features", features)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.channels, self.features = channels, features
        one = (1,) * self.ndim
        self.project = nn.Parameter(torch.empty(features, channels, *one, device=device, dtype=dtype))
        self.weight = nn.Parameter(
            torch.empty(channels, self.spec.per_channel * features, *one, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        for matrix in (self.project, self.weight):
            nn.init.normal_(matrix, 0, 1 / math.sqrt(matrix.shape[1]))

    def forward(self, input: Tensor) -> Tensor:
        """Adds invariants to one map or a batch.

        Args:
            input: (N, channels, *space) or (channels, *space), of a floating type and the parameters' device.

        Returns:
            A tensor like ``input``.

        Raises:
            TypeError: ``input`` is not of a floating type.
            ValueError: ``input`` has not these dimensions or channels.
        """
        if isinstance(input, Proxy):
            weight = self._parameters["weight"]
            assert weight is not None
            return formulas.add(input, self.project, self.weight, self.spec, weight.dtype)
        if input.dim() > self.ndim and input.shape[-1 - self.ndim] != self.channels:
            raise ValueError(f"input must have {self.channels} channels, got shape {tuple(input.shape)}")
        return add_invariants(
            input, self.project, self.weight, self.kinds, self.dilations, eps=self.eps, ndim=self.ndim
        )

    def extra_repr(self) -> str:
        """Channels, kinds, scales and features."""
        return f"{self.channels}, {super().extra_repr()}, features={self.features}"


@completed_by(AddInvariantsNd)
class AddInvariants2d(AddInvariantsNd):
    """A map (N, C, H, W) or (C, H, W) plus differential invariants of it: ``z + weight . invariants(project . z)``.

    It stands between a ring convolution and its normalisation, where it lets a network see lines and edges, which
    rings cannot tell from blobs and steps."""

    ndim = 2


@completed_by(AddInvariantsNd)
class AddInvariants3d(AddInvariantsNd):
    """A map (N, C, D, H, W) or (C, D, H, W) plus differential invariants of it; :class:`AddInvariants2d` in 3-D."""

    ndim = 3
