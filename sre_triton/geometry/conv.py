"""The arithmetic of one ring convolution: everything about a call but its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sre_triton.geometry.rings import RingGeometry, ring_geometry

__all__ = ["ConvSpec", "conv_spec", "output_padding", "output_size", "transposed_size"]


@dataclass(frozen=True, eq=False)
class ConvSpec:
    """Geometry, strides and groups of a ring convolution.

    Obtained from :func:`conv_spec`, which returns one object per set of arguments; it is therefore
    compared and hashed by identity, which keeps it cheap as a cache key.
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
        """Spatial size of the convolution of an input of this spatial size; see :func:`output_size`."""
        return output_size(input_size, self.stride, self.padding, self.reach)

    def transposed_size(self, input_size: Sequence[int], output_padding: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the transposed convolution of such an input; see :func:`transposed_size`."""
        return transposed_size(input_size, output_padding, self.stride, self.padding, self.reach)

    def output_padding(self, input_size: Sequence[int], output_size: Sequence[int]) -> tuple[int, ...]:
        """What leads from ``output_size`` back to ``input_size``; see :func:`output_padding`."""
        return output_padding(input_size, output_size, self.stride, self.padding, self.reach)


# Plain arithmetic on ints, so that it also works on the symbolic sizes of a compiler. ``reach`` is the
# distance between the first and the last tap, dilation * (kernel_size - 1).


def output_size(
    input_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], reach: Sequence[int]
) -> tuple[int, ...]:
    """Spatial size of a convolution's output.

    Raises:
        RuntimeError: the dilated kernel is larger than the padded input.
    """
    padded = [n + 2 * p for n, p in zip(input_size, padding, strict=True)]
    for n, r in zip(padded, reach, strict=True):
        if n <= r:
            raise RuntimeError(
                f"Calculated padded input size per channel: {tuple(padded)}. "
                f"Kernel size: {tuple(r + 1 for r in reach)} (dilation included). "
                "Kernel size can't be greater than actual input size"
            )
    return tuple((n - r - 1) // s + 1 for n, r, s in zip(padded, reach, stride, strict=True))


def transposed_size(
    input_size: Sequence[int],
    output_padding: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    reach: Sequence[int],
) -> tuple[int, ...]:
    """Spatial size of a transposed convolution's output.

    Raises:
        RuntimeError: it would be empty.
    """
    size = tuple(
        (n - 1) * s - 2 * p + r + o + 1
        for n, s, p, r, o in zip(input_size, stride, padding, reach, output_padding, strict=True)
    )
    for n in size:
        if n < 1:
            raise RuntimeError(
                f"Given input size per channel: {tuple(input_size)}. Calculated output size per channel: {size}. "
                "Output size is too small"
            )
    return size


def output_padding(
    input_size: Sequence[int],
    output_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    reach: Sequence[int],
) -> tuple[int, ...]:
    """Rows at the far end of a convolution's input that its output is too coarse to tell of."""
    return tuple(
        n - ((m - 1) * s - 2 * p + r + 1)
        for n, m, s, p, r in zip(input_size, output_size, stride, padding, reach, strict=True)
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
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(value) != ndim:
            raise RuntimeError(f"{name} must have {ndim} entries, one per spatial dimension, got {value}")
        if min(value) < least:
            kind = "negative" if least == 0 else "non-positive"
            raise RuntimeError(f"{kind} {name} is not supported, got {name}={value}")
    if groups < 1:
        raise RuntimeError(f"non-positive groups is not supported, got groups={groups}")
    geometry = ring_geometry((kernel_size,) * ndim, num_rings, circular, antialias)
    return ConvSpec(geometry, stride, padding, dilation, groups)
