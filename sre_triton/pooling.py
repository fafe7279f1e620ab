"""Down-sampling that is symmetric at every image size, and the up-sampling that mirrors it.

A pooling layer commutes with flips and quarter turns if its windows lie symmetrically about the centre of
the image. ``AvgPool2d(2)`` leaves out the last row of an odd image, and ``MaxPool2d(3, 2, 1)`` looks past
the near edge of an even one but not past the far edge; so does everything built of them. Here the window
follows from the size. Let ``n`` pixels be pooled at stride ``s`` to ``m = ceil(n / s)``, and let ``e = m s - n``
pixels be missing from whole windows. Windows of size ``w`` with ``p`` pixels of padding at both ends are
symmetric if nothing is left over, ``(m - 1) s + w = n + 2 p``, hence ``w = s - e + 2 p``. The least padding
with which the windows still cover every pixel (``w >= s``) is ``p = ceil(e / 2)``: then ``w = s``, or ``s + 1``
where ``e`` is odd. A single window need not reach beyond its ``n`` pixels.

At ``s = 2`` that is window 2 for even sizes, and window 3 with padding 1 for odd ones.

A layer that stands in for one with window ``k`` and padding ``q`` has to return that layer's sizes, which are
``m = ceil((n - r) / s)`` with ``r = k - 1 - 2 q``, its ``reach``. The same equations hold with ``e = m s - n`` of
either sign: where it is negative, pixels are left over from whole windows, which then grow by them.
``AvgPool2d(2)`` has reach 1: window 2 for even sizes, 3 without padding for odd ones.

Everything here is shape arithmetic in front of ``torch.nn.functional``, so it can be traced, exported and
compiled with dynamic shapes. ONNX alone holds windows as constants: there they are gathered by index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sre_triton.docstrings import completed_by
from sre_triton.operators.arguments import Size
from sre_triton.private_api import ntuple

__all__ = [
    "CenteredAvgPool1d",
    "CenteredAvgPool2d",
    "CenteredAvgPool3d",
    "CenteredMaxPool1d",
    "CenteredMaxPool2d",
    "CenteredMaxPool3d",
    "centered_avg_pool",
    "centered_max_pool",
    "upsample_to",
]

_AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def centered_avg_pool(x: Tensor, stride: Size = 2, ndim: int | None = None, *, reach: Size = 0) -> Tensor:
    """Mean over windows that lie symmetrically at every size; padding is not counted.

    Equal to ``F.avg_poolNd(x, stride)`` where the stride divides the size.

    Args:
        x: (N, C, *space), or (C, *space) if ``ndim`` is given.
        stride: pixels between windows, an int or one per spatial dimension. The windows are as large, or
            one pixel larger; see :mod:`sre_triton.pooling`.
        ndim: number of spatial dimensions, None for all but two. To be given where it cannot be asked of
            ``x``, as in ``torch.fx`` tracing.
        reach: pixels that the size of the output leaves out of count, an int or one per spatial dimension:
            ``kernel_size - 1 - 2 * padding`` for the sizes of a pooling layer of that window.

    Returns:
        (N, C, *size) with ``size = ceil((space - reach) / stride)``, in the memory format of ``x``.

    Raises:
        ValueError: ``stride`` is not positive or ``reach`` is negative, or has not one entry per dimension.

    Examples:
        >>> x = torch.arange(5.0).reshape(1, 1, 5)
        >>> sre_triton.centered_avg_pool(x)  # avg_pool1d(x, 2) would leave out the last pixel
        tensor([[[0.5000, 2.0000, 3.5000]]])
    """
    return _pooled(x, _axes(stride, reach, x.dim() - 2 if ndim is None else ndim), takes_maximum=False)


@completed_by(centered_avg_pool)
def centered_max_pool(x: Tensor, stride: Size = 2, ndim: int | None = None, *, reach: Size = 0) -> Tensor:
    """Maximum over windows that lie symmetrically at every size. The arguments are those of :func:`centered_avg_pool`.

    Equal to ``F.max_poolNd(x, stride)`` where the stride divides the size.

    Examples:
        >>> x = torch.arange(5.0).reshape(1, 1, 5)
        >>> sre_triton.centered_max_pool(x)
        tensor([[[1., 3., 4.]]])
    """
    return _pooled(x, _axes(stride, reach, x.dim() - 2 if ndim is None else ndim), takes_maximum=True)


def upsample_to(x: Tensor, size: Any, ndim: int | None = None) -> Tensor:
    """Linear interpolation of (N, C, *space) to the spatial ``size``, corner pixels onto corner pixels.

    Symmetric between any two sizes, so it leads back to whichever size a centred pooling came from.

    Args:
        size: one entry per spatial dimension.
        ndim: as for :func:`centered_avg_pool`.
    """
    mode = _LINEAR[x.dim() - 2 if ndim is None else ndim]
    return F.interpolate(x, size=size, mode=mode, align_corners=True)


def _axes(stride: Size, reach: Size, ndim: int) -> list[tuple[int, int]]:
    """Stride and reach of each spatial dimension."""
    if ndim not in _AVG_POOL:
        raise ValueError(f"x must be (N, C, *space) in 1 to 3 dimensions, got {ndim} spatial dimensions")
    return list(zip(_entries("stride", stride, ndim, 1), _entries("reach", reach, ndim, 0), strict=True))


def _pooled(x: Tensor, axes: Sequence[tuple[int, int]], *, takes_maximum: bool) -> Tensor:
    if _is_recorded_by_onnx(x, len(axes)):
        return gathered_pool(x, axes, takes_maximum=takes_maximum)
    # Sizes one by one: a traced shape can be indexed but not unpacked.
    windows = [window(x.shape[axis - len(axes)], *steps) for axis, steps in enumerate(axes)]
    sizes, paddings = (tuple(pair[i] for pair in windows) for i in (0, 1))
    strides = tuple(stride for stride, _ in axes)
    if takes_maximum:
        return _MAX_POOL[len(axes)](x, sizes, strides, paddings)
    return _AVG_POOL[len(axes)](x, sizes, strides, paddings, count_include_pad=False)


def _is_recorded_by_onnx(x: Tensor, ndim: int) -> bool:
    """Whether a program for sizes that are not known is recorded in a format whose windows are constants."""
    return torch.onnx.is_in_onnx_export() and any(isinstance(size, torch.SymInt) for size in x.shape[-ndim:])


def gathered_pool(x: Tensor, axes: Sequence[tuple[int, int]], *, takes_maximum: bool) -> Tensor:
    """The pooling of one recorded program for every image size, slower than by windows.

    Places follow from the size, which may be unknown: each window is gathered by index, as many times as the largest of
    all windows has pixels, and the last pixel stands for those that a smaller one has not.

    Args:
        x: (N, C, *space) or (C, *space).
        axes: stride and reach of each spatial dimension, in pixels.
        takes_maximum: of each window, in place of the mean.

    Returns:
        As :func:`centered_max_pool` or :func:`centered_avg_pool`.
    """
    for axis, (stride, reach) in enumerate(axes, -len(axes)):
        x = _gathered_along(x, axis, stride, reach, takes_maximum)
    return x


def _gathered_along(x: Tensor, axis: int, stride: int, reach: int, takes_maximum: bool) -> Tensor:
    n: Any = x.shape[axis]
    size, padding = window(n, stride, reach)
    # Arithmetic on tensors alone, since a size that is traced may be no number.
    start = (x.new_ones(((n - reach + stride - 1) // stride,), dtype=torch.long).cumsum(0) - 1) * stride - padding
    first, last = start.clamp(min=0), (start + (size - 1)).clamp(max=n - 1)
    each = (-1, *[1] * (-axis - 1))
    total: Any = None
    for step in range(stride + max(reach, 1)):
        taken = x.index_select(axis, torch.minimum(first + step, last))
        if takes_maximum:
            total = taken if total is None else torch.maximum(total, taken)
        else:
            taken = taken * (first + step <= last).to(x.dtype).view(each)
            total = taken if total is None else total + taken
    pooled: Tensor = total if takes_maximum else total / (last - first + 1).to(x.dtype).view(each)
    return pooled


def window(n: int, stride: int, reach: int) -> tuple[int, int]:
    """Size and padding of the windows on an axis of ``n`` pixels, as the top of this module derives them.

    Nothing is done to ``n`` but arithmetic, since tracers differ in what else they follow.
    """
    count = (n - reach + stride - 1) // stride
    missing = count * stride - n  # pixels to whole windows; negative where some are left over
    padding = 0
    if reach < stride - 1:  # otherwise none is ever missing
        padding = (missing + 1) // 2 * _is_positive(missing, stride)
    window = stride - missing + 2 * padding
    window = window + _is_one(count) * (n - window)  # a single one is the image: avg_pool3d takes none that is larger
    return window, (window - stride + missing) // 2


def _is_positive(value: int, limit: int) -> int:
    """1 if ``value``, between ``-limit`` and ``limit``, is positive, else 0."""
    return (value + limit) // (limit + 1)


def _is_one(count: int) -> int:
    """1 if a positive ``count`` is 1, else 0."""
    return 2 // (count * count + 1)


def _entries(name: str, value: Size, ndim: int, least: int) -> tuple[int, ...]:
    entries: tuple[int, ...] = tuple(ntuple(ndim)(value))
    if len(entries) != ndim or any(v < least for v in entries):
        kind = "a positive int" if least else "a non-negative int"
        raise ValueError(f"{name} must be {kind} or {ndim} of them, got {value}")
    return entries


class CenteredPoolNd(nn.Module):
    """A pooling layer without parameters; its arguments are the stride and, seldom, the reach."""

    __constants__ = ["reach", "stride"]
    ndim: ClassVar[int]
    _pool: ClassVar[Callable[..., Tensor]]

    def __init__(self, stride: Size = 2, *, reach: Size = 0) -> None:
        super().__init__()
        _entries("stride", stride, self.ndim, 1)
        _entries("reach", reach, self.ndim, 0)
        self.stride = stride
        self.reach = reach

    def forward(self, input: Tensor) -> Tensor:
        """Pools one map or a batch.

        Args:
            input: (N, C, *space) or (C, *space).

        Returns:
            (N, C, *size) or (C, *size) with ``size = ceil((space - reach) / stride)``, in the memory format of
            ``input``.

        Raises:
            RuntimeError: ``input`` has more dimensions, or nothing is left of it.
            IndexError: ``input`` has fewer dimensions.
        """
        return type(self)._pool(input, self.stride, self.ndim, reach=self.reach)

    def axes(self) -> list[tuple[int, int]]:
        """Stride and reach of each dimension, in pixels."""
        return _axes(self.stride, self.reach, self.ndim)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults; the stride always, as ``nn.AvgPoolNd`` prints it."""
        return f"stride={self.stride}" + (f", reach={self.reach}" if self.reach != 0 else "")


@completed_by(centered_avg_pool)
class CenteredAvgPool1d(CenteredPoolNd):
    """:func:`centered_avg_pool` of (N, C, L) or (C, L) as a module: ``nn.AvgPool1d(stride)``, but symmetric at
    every size."""

    ndim, _pool = 1, centered_avg_pool


@completed_by(centered_avg_pool)
class CenteredAvgPool2d(CenteredPoolNd):
    """:func:`centered_avg_pool` of (N, C, H, W) or (C, H, W) as a module: ``nn.AvgPool2d(stride)``, but symmetric at
    every size."""

    ndim, _pool = 2, centered_avg_pool


@completed_by(centered_avg_pool)
class CenteredAvgPool3d(CenteredPoolNd):
    """:func:`centered_avg_pool` of (N, C, D, H, W) or (C, D, H, W) as a module: ``nn.AvgPool3d(stride)``, but symmetric
    at every size."""

    ndim, _pool = 3, centered_avg_pool


@completed_by(centered_max_pool)
class CenteredMaxPool1d(CenteredPoolNd):
    """:func:`centered_max_pool` of (N, C, L) or (C, L) as a module: ``nn.MaxPool1d(stride)``, but symmetric at
    every size."""

    ndim, _pool = 1, centered_max_pool


@completed_by(centered_max_pool)
class CenteredMaxPool2d(CenteredPoolNd):
    """:func:`centered_max_pool` of (N, C, H, W) or (C, H, W) as a module: ``nn.MaxPool2d(stride)``, but symmetric at
    every size."""

    ndim, _pool = 2, centered_max_pool


@completed_by(centered_max_pool)
class CenteredMaxPool3d(CenteredPoolNd):
    """:func:`centered_max_pool` of (N, C, D, H, W) or (C, D, H, W) as a module: ``nn.MaxPool3d(stride)``, but symmetric
    at every size."""

    ndim, _pool = 3, centered_max_pool
