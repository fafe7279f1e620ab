"""Dense kernels of ring weights, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sre_triton.functional.calls import needs_function
from sre_triton.geometry.rings import default_num_rings
from sre_triton.operators import operators as _ops
from sre_triton.operators.arguments import size_tuple
from sre_triton.operators.autograd import CollapseKernel, ExpandKernel
from sre_triton.operators.checks import check_strided
from sre_triton.private_api import apply_function as apply

__all__ = ["expand_kernel", "project_kernel"]


def expand_kernel(
    weight: Tensor,
    kernel_size: Sequence[int],
    circular: bool = True,
    antialias: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Dense kernel of ring weights, differentiable.

    Args:
        weight: ring weights (out, in / groups, rings).
        kernel_size: one odd number of pixels per spatial dimension, all equal. A tuple: an int would not tell how
            many dimensions the kernel has.
        circular: True ends the rings at radius ``kernel_size // 2 + 0.5`` pixels; False at the corners.
        antialias: weigh each tap by the share of its pixel that a ring covers.
        dtype: a floating dtype of the kernel, None for that of ``weight``. The conversion rounds once and is
            part of the same pass.

    Returns:
        (out, in / groups, *kernel_size) in ``dtype``.

    Raises:
        TypeError: an argument is of a wrong type, e.g. a tensor of integers.
        ValueError: a shape is none of the above, or there is no such geometry; see :func:`sre_triton.ring_geometry`.

    Examples:
        >>> weight = torch.tensor([[[1.0, 2.0, 3.0]]])  # the centre, and two rings
        >>> sre_triton.expand_kernel(weight, (5, 5))[0, 0]
        tensor([[0., 3., 3., 3., 0.],
                [3., 2., 2., 2., 3.],
                [3., 2., 1., 2., 3.],
                [3., 2., 2., 2., 3.],
                [0., 3., 3., 3., 0.]])
    """
    if isinstance(kernel_size, int):
        raise TypeError(f"kernel_size must be a tuple with one entry per spatial dimension, got the int {kernel_size}")
    check_strided("weight", weight)
    if weight.dim() != 3:
        raise ValueError(f"weight must be (out, in / groups, rings), got shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be of a floating dtype, got {weight.dtype}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype or None, got {dtype}")
    size = size_tuple(kernel_size, len(kernel_size), "kernel_size")
    if needs_function(weight):
        return apply(ExpandKernel, weight, size, circular, antialias, dtype)
    return _ops.expand_kernel(weight, size, circular, antialias, dtype)


def project_kernel(
    dense: Tensor, num_rings: int | None = None, circular: bool = True, antialias: bool = False
) -> Tensor:
    """Ring weights whose kernel is nearest to a dense one in least squares; inverts :func:`expand_kernel`.

    For hard rings this is the mean over each ring. Differentiable.

    Args:
        dense: (out, in / groups, *kernel_size).
        num_rings: number of rings, None for the default of this kernel size.
        circular: True ends the rings at radius ``kernel_size // 2 + 0.5`` pixels; False at the corners.
        antialias: weigh each tap by the share of its pixel that a ring covers.

    Returns:
        Ring weights (out, in / groups, rings), in the dtype of ``dense``.

    Raises:
        TypeError: an argument is of a wrong type, e.g. a tensor of integers.
        ValueError: a shape is none of the above, or there is no such geometry; see :func:`sre_triton.ring_geometry`.

    Examples:
        >>> weight = torch.randn(8, 3, 5)
        >>> dense = sre_triton.expand_kernel(weight, (9, 9))
        >>> torch.allclose(sre_triton.project_kernel(dense), weight, atol=1e-6)
        True
    """
    check_strided("dense", dense)
    if not 3 <= dense.dim() <= 5:
        raise ValueError(
            f"dense must be (out, in / groups, *kernel_size) in 1 to 3 dimensions, got {tuple(dense.shape)}"
        )
    if not dense.is_floating_point():
        raise TypeError(f"dense must be of a floating dtype, got {dense.dtype}")
    size = tuple(dense.shape[2:])
    rings = default_num_rings(size[0], circular, len(size)) if num_rings is None else num_rings
    # The normal equations, in float64: a mean of many taps should be as exact as its dtype can hold.
    wide = dense.to(torch.float64)
    sums = _collapse(wide, rings, circular, antialias)
    basis = torch.eye(rings, dtype=torch.float64, device=dense.device).unsqueeze(1)
    gram = _collapse(expand_kernel(basis, size, circular, antialias), rings, circular, antialias).squeeze(1)
    return torch.linalg.solve(gram, sums.flatten(0, 1).t()).t().reshape(sums.shape).to(dense.dtype)


def _collapse(dense: Tensor, num_rings: int, circular: bool, antialias: bool) -> Tensor:
    if needs_function(dense):
        return apply(CollapseKernel, dense, num_rings, circular, antialias, None)
    return _ops.collapse_kernel(dense, num_rings, circular, antialias, None)
