"""Sizes of convolutions, and what is said where there is none."""

from __future__ import annotations

import pytest

from sre_triton.geometry.conv import conv_spec, output_size


def test_a_map_smaller_than_the_kernel_is_refused_with_both_sizes() -> None:
    spec = conv_spec(2, 5, 3, True, False, (1, 1), (2, 0), (2, 1), 1)
    assert output_size(spec, (5, 5)) == (1, 1)
    message = r"padded input size per channel: \(8, 5\)\. Kernel size: \(9, 5\) \(dilation included\)"
    with pytest.raises(RuntimeError, match=message):
        output_size(spec, (4, 5))
