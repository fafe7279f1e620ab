"""Windows: what each tap of an output position reads, and which taps never read anything."""

from __future__ import annotations

import itertools

import pytest

from sre_triton.geometry.conv import conv_spec
from sre_triton.geometry.windows import Window, adjoint_window, forward_window


def reads(window: Window, tap: int, input_size: int) -> bool:
    """Whether a tap of any output position of a line finds itself between the first input and the last."""
    (half,), (origin,), (stride,), (dilation,), (upsampling,) = (
        window.half, window.origin, window.stride, window.dilation, window.upsampling,
    )  # fmt: skip
    positions = (stride * p + dilation * (half + tap) + origin for p in range(window.output_size[0]))
    return any(0 <= position <= (input_size - 1) * upsampling for position in positions)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9])
def test_no_tap_that_reads_is_left_out_and_none_that_does_not_is_kept(
    kernel_size: int, dilation: int, stride: int
) -> None:
    for size, padding in itertools.product(range(1, 9), range(kernel_size + 2)):
        reach = dilation * (kernel_size - 1)
        if size + 2 * padding <= reach:
            continue
        spec = conv_spec(1, kernel_size, 1, True, False, (stride,), (padding,), (dilation,), 1)
        window = forward_window(spec, (size,))
        adjoint = adjoint_window(spec, window.output_size, (size,))
        for found, length in ((window, size), (adjoint, window.output_size[0])):
            reading = [tap for tap in range(kernel_size // 2 + 1) if any(reads(found, t, length) for t in (tap, -tap))]
            assert found.half[0] >= max(reading, default=0)
            if stride == 1:  # larger strides may step over what they could reach
                assert found.half[0] == max(reading, default=0)
