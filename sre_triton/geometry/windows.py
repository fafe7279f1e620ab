"""Where the taps of an output position lie in the input: of a convolution, and of its adjoint.

A window holds all that ring sums need to know of a convolution's shape, one description for the forward pass and
for the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sre_triton.geometry.conv import ConvSpec
from sre_triton.geometry.rings import RingGeometry
from sre_triton.geometry.schedule import Offset, Schedule, ring_schedule

__all__ = ["Window", "adjoint_window", "forward_window"]


@dataclass(frozen=True, eq=False)
class Window:
    """Where the taps of an output position lie in the input.

    Tap ``t`` of output position ``p`` reads position ``stride * p + dilation * (half + t) + origin`` of
    the input, after ``upsampling - 1`` zeros have been put between its neighbours. What lies outside is 0.

    Attributes:
        half: taps on either side of the centre, per dimension: half of the kernel, or less where taps further out
            would read nothing but such zeros for every output position.
        origin: where the first tap of the first output position lies in the input; negative in the padding.
        upsampling: 1 in a convolution, its stride in the adjoint of one.
    """

    geometry: RingGeometry
    half: Offset
    origin: Offset
    stride: Offset
    dilation: Offset
    upsampling: Offset
    output_size: Offset

    @cached_property
    def _scheduled(self) -> tuple[tuple[int, ...], Schedule]:
        return ring_schedule(self.geometry, self.half)

    @property
    def rings(self) -> tuple[int, ...]:
        """The rings that have a tap here."""
        return self._scheduled[0]

    @property
    def schedule(self) -> Schedule:
        """The additions that lead to their sums."""
        return self._scheduled[1]

    def padded_size(self, output_size: Sequence[int]) -> tuple[int, ...]:
        """Size of the part of the padded input that a block of outputs reads."""
        return tuple(
            (n - 1) * s + 2 * d * h + 1
            for n, s, d, h in zip(output_size, self.stride, self.dilation, self.half, strict=True)
        )


@lru_cache(maxsize=1024)
def forward_window(spec: ConvSpec, input_size: tuple[int, ...]) -> Window:
    """Where the convolution of an input of this size reads it."""
    ones = (1,) * spec.ndim
    return _reachable(spec, input_size, spec.output_size(input_size), spec.padding, spec.stride, ones)


@lru_cache(maxsize=1024)
def adjoint_window(spec: ConvSpec, input_size: tuple[int, ...], output_size: tuple[int, ...]) -> Window:
    """Where the transposed convolution from ``input_size`` to ``output_size`` reads its input."""
    padding = tuple(r - p for r, p in zip(spec.reach, spec.padding, strict=True))
    return _reachable(spec, input_size, output_size, padding, (1,) * spec.ndim, spec.stride)


def _reachable(
    spec: ConvSpec,
    input_size: tuple[int, ...],
    output_size: tuple[int, ...],
    padding: tuple[int, ...],
    stride: tuple[int, ...],
    upsampling: tuple[int, ...],
) -> Window:
    """The window without the taps that lie in the padding for every output position. On maps smaller
    than the kernel these are most taps, and sometimes whole rings."""
    half, origin = [], []
    for k, n, m, p, s, u, d in zip(
        spec.geometry.kernel_size, input_size, output_size, padding, stride, upsampling, spec.dilation, strict=True
    ):
        h = k // 2
        last_tap = ((n - 1) * u + p) // d - h  # of the first output, on the last input
        first_tap = ((m - 1) * s - p) // d + h  # of the last output, on the first input, counted backwards
        half.append(min(h, max(last_tap, first_tap, 0)))
        origin.append(d * (h - half[-1]) - p)
    return Window(spec.geometry, tuple(half), tuple(origin), stride, spec.dilation, upsampling, output_size)
