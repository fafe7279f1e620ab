"""How many passes through memory a call takes: rules of channels and dtype alone, for the launchers and the planner.

Imports no Triton: the planner asks before anything runs.
"""

from __future__ import annotations

import torch

__all__ = ["chunk_pixels", "may_share_ring_sums", "may_sum_in_registers", "takes_two_kernels"]

_LEAST_BLOCK = 16  # rows, columns and channels of the least matrix product


def takes_two_kernels(groups: int, c_in: int, c_out: int, dtype: torch.dtype, columns: int) -> bool:
    """Whether the forward pass sends ring sums through memory to a library product.

    The fused kernel forms ring sums again for every block of output channels; from 256 channels and 7 taps on
    that costs more than a pass through memory. ``columns`` are the taps along the width.
    """
    return groups == 1 and min(c_in, c_out) >= 256 and dtype != torch.float32 and columns >= 7


def may_share_ring_sums(is_unit_stride: bool, groups: int, c_in: int, c_out: int, dtype: torch.dtype) -> bool:
    """Whether one set of ring sums of grad_y, in memory, may serve both gradients.

    Possible at stride 1; worth it unless x is much the thinner side to ring-sum for the weight gradient.
    """
    return is_unit_stride and groups == 1 and dtype != torch.float32 and 2 * c_in >= c_out >= _LEAST_BLOCK


def may_sum_in_registers(c_out: int, dtype: torch.dtype) -> bool:
    """Whether a weight gradient may keep its ring sums in registers: where one block holds all output channels, so that
    no sum is formed twice."""
    return dtype != torch.float32 and c_out <= 128


def chunk_pixels(rings: int, c_in: int, c_out: int, itemsize: int, l2_bytes: int) -> int:
    """Pixels whose ring sums are in memory at a time: as many as the cache holds together with what is read to form
    them and the two tensors that meet them.

    Args:
        c_in: channels that are ring-summed, of all groups together.
        c_out: channels of the other factor, of all groups together.
    """
    return max(1, l2_bytes // (((rings + 1) * c_in + 2 * c_out) * itemsize))
