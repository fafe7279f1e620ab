"""The arithmetic of one ring convolution: everything about a call but its tensors, and the sizes that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

from sre_triton.geometry.rings import RingGeometry, ring_geometry

__all__ = ["ConvArgs", "ConvSpec", "check_numbers", "conv_spec", "output_padding", "output_size", "transposed_size"]


_MOST = 2**31 - 1


class ConvArgs(NamedTuple):
    """What a caller asks for beside tensors: plain values, in the order of the operators' schemas.

    The number of rings is missing: it is read off the weight, and :meth:`spec` puts the two together.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    kernel_size: int
    circular: bool
    antialias: bool
    backend: str  # the request: "auto" or the name of a backend

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance between the first and the last tap, ``dilation * (kernel_size - 1)``, per dimension."""
        return tuple(d * (self.kernel_size - 1) for d in self.dilation)

    def spec(self, num_rings: int) -> ConvSpec:
        """The convolution that these arguments and a weight with this many rings describe."""
        return conv_spec(
            len(self.stride),
            self.kernel_size,
            num_rings,
            self.circular,
            self.antialias,
            tuple(self.stride),
            tuple(self.padding),
            tuple(self.dilation),
            self.groups,
        )


@dataclass(frozen=True, eq=False)
class ConvSpec:
    """Geometry, strides and groups of a ring convolution: what backends are told beside tensors.

    Obtained from :func:`conv_spec`, which checks its arguments and returns one object per set of them; it is
    therefore compared and hashed by identity, which keeps it cheap as a cache key.
    """

    geometry: RingGeometry
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return self.geometry.ndim

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """Distance between the first and last tap, ``dilation * (kernel_size - 1)``, per dimension."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.geometry.kernel_size, strict=True))

    @cached_property
    def is_unit_stride(self) -> bool:
        return all(s == 1 for s in self.stride)

    @cached_property
    def is_dilated(self) -> bool:
        return any(d > 1 for d in self.dilation)

    @cached_property
    def pads_beyond_half(self) -> bool:
        """Whether somewhere more is padded than keeps the size at stride 1."""
        return any(2 * p > r for p, r in zip(self.padding, self.reach, strict=True))

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """See :func:`output_size`."""
        return output_size(self, input_size)

    def transposed_size(self, input_size: Sequence[int], output_padding: Sequence[int]) -> tuple[int, ...]:
        """See :func:`transposed_size`."""
        return transposed_size(self, input_size, output_padding)

    def output_padding(self, input_size: Sequence[int], output_size: Sequence[int]) -> tuple[int, ...]:
        """See :func:`output_padding`."""
        return output_padding(self, input_size, output_size)


# Sizes: plain arithmetic on ints, so that it also works on the symbolic sizes of a compiler, and on what both
# descriptions of a convolution have.


class _Convolution(Protocol):
    @property
    def stride(self) -> tuple[int, ...]: ...
    @property
    def padding(self) -> tuple[int, ...]: ...
    @property
    def reach(self) -> tuple[int, ...]: ...


def output_size(conv: _Convolution, input_size: Sequence[int]) -> tuple[int, ...]:
    """Spatial size of a convolution's output.

    Raises:
        RuntimeError: the dilated kernel is larger than the padded input.
    """
    reach = conv.reach
    padded = [n + 2 * p for n, p in zip(input_size, conv.padding, strict=True)]
    for n, r in zip(padded, reach, strict=True):
        if n <= r:
            raise RuntimeError(
                f"Calculated padded input size per channel: {tuple(padded)}. "
                f"Kernel size: {tuple(r + 1 for r in reach)} (dilation included). "
                "Kernel size can't be greater than actual input size"
            )
    return tuple((n - r - 1) // s + 1 for n, r, s in zip(padded, reach, conv.stride, strict=True))


def transposed_size(conv: _Convolution, input_size: Sequence[int], output_padding: Sequence[int]) -> tuple[int, ...]:
    """Spatial size of a transposed convolution's output.

    Raises:
        RuntimeError: it would be empty.
    """
    size = tuple(n + extra for n, extra in zip(_least_size(conv, input_size), output_padding, strict=True))
    for n in size:
        if n < 1:
            raise RuntimeError(
                f"Given input size per channel: {tuple(input_size)}. Calculated output size per channel: {size}. "
                "Output size is too small"
            )
    return size


def output_padding(conv: _Convolution, input_size: Sequence[int], output_size: Sequence[int]) -> tuple[int, ...]:
    """The output padding with which the transposed convolution leads from ``output_size`` back to ``input_size``: by
    how much this input is larger than the smallest one with an output of this size."""
    return tuple(n - least for n, least in zip(input_size, _least_size(conv, output_size), strict=True))


def _least_size(conv: _Convolution, output_size: Sequence[int]) -> tuple[int, ...]:
    """Size of the smallest input whose output has this size."""
    return tuple(
        (m - 1) * s - 2 * p + r + 1
        for m, s, p, r in zip(output_size, conv.stride, conv.padding, conv.reach, strict=True)
    )


@lru_cache(maxsize=4096)
def conv_spec(
    ndim: int,
    kernel_size: int,
    num_rings: int,
    circular: bool,
    antialias: bool,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> ConvSpec:
    """The one shared :class:`ConvSpec` for these arguments.

    Raises:
        ValueError: no such geometry; see :func:`sre_triton.geometry.rings.ring_geometry`.
        RuntimeError: a stride, padding, dilation or group count that no convolution can have.
    """
    check_numbers(ndim, stride, padding, dilation, groups)
    geometry = ring_geometry((kernel_size,) * ndim, num_rings, circular, antialias)
    return ConvSpec(geometry, stride, padding, dilation, groups)


def check_numbers(
    ndim: int, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> None:
    """Raises RuntimeError for a stride, padding, dilation or group count that no convolution can have.

    Strides, paddings and dilations are below 2**31: sizes that follow from them are then far from overflowing.
    """
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(value) != ndim:
            raise RuntimeError(f"{name} must have {ndim} entries, one per spatial dimension, got {value}")
        if min(value) < least:
            kind = "negative" if least == 0 else "non-positive"
            raise RuntimeError(f"{kind} {name} is not supported, got {name}={value}")
        if max(value) > _MOST:
            raise RuntimeError(f"{name} must be at most {_MOST}, got {name}={value}")
    if groups < 1:
        raise RuntimeError(f"non-positive groups is not supported, got groups={groups}")
