"""Ring convolutions as functions, with the arguments and errors of ``torch.nn.functional.convNd``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from sre_triton import _ops
from sre_triton._ops import ConvArgs
from sre_triton.autograd import ExpandKernel, RingConv, RingConvTranspose, apply
from sre_triton.plan import current_backend
from sre_triton.rings import default_num_rings, ring_geometry

__all__ = [
    "expand_kernel",
    "project_kernel",
    "ring_conv",
    "ring_conv_transpose",
    "sre_conv1d",
    "sre_conv2d",
    "sre_conv3d",
    "sre_conv_transpose1d",
    "sre_conv_transpose2d",
    "sre_conv_transpose3d",
]

Size = int | Sequence[int]


def sre_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """1-D ring convolution; see :func:`sre_conv2d`. ``input`` is (N, in, L) or (in, L)."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, kernel_size, circular, antialias)


def sre_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """2-D ring convolution: ``F.conv2d`` with a kernel that is constant on concentric rings.

    Args:
        input: (N, in, H, W) or (in, H, W), any floating dtype and memory format.
        weight: ring weights (out, in / groups, rings), of the input's dtype and device. The number of
            rings is read off it.
        bias: (out,) or None.
        stride, padding, dilation: an int, or one int per spatial dimension. Padding is with zeros, in
            pixels on both sides; ``"same"`` keeps the size at stride 1, ``"valid"`` is none.
        groups: as in ``F.conv2d``.
        kernel_size: odd and equal in every dimension; an int or one int per dimension.
        circular: False lets the rings reach the corners of the kernel.
        antialias: weigh taps by the share of their pixel that a ring covers.

    Returns:
        (N, out, H', W') or (out, H', W'), channels_last if the input is.

    Raises:
        TypeError, ValueError: an argument describes no ring kernel (even or non-cubic ``kernel_size``,
            more rings than the kernel can tell apart).
        RuntimeError: shapes, dtypes or devices do not fit, as from ``F.conv2d``.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, kernel_size, circular, antialias)


def sre_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """3-D ring convolution; see :func:`sre_conv2d`. ``input`` is (N, in, D, H, W) or (in, D, H, W)."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, kernel_size, circular, antialias)


def sre_conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """1-D transposed ring convolution; see :func:`sre_conv_transpose2d`."""
    return _conv_transpose(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation, kernel_size, circular, antialias
    )


def sre_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """2-D transposed ring convolution: the adjoint of :func:`sre_conv2d` in its input.

    Args:
        input: (N, in, H, W) or (in, H, W).
        weight: ring weights (in, out / groups, rings).
        output_padding: rows and columns added at the far end, fewer than the stride or dilation.
        others: as in :func:`sre_conv2d`, in the argument order of ``F.conv_transpose2d``.

    Returns:
        (N, out, H', W') or (out, H', W') with ``H' = (H - 1) * stride - 2 * padding + dilation *
        (kernel_size - 1) + output_padding + 1``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`sre_conv2d`.
    """
    return _conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, groups, dilation, kernel_size, circular, antialias
    )


def sre_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    kernel_size: Size,
    circular: bool = True,
    antialias: bool = False,
) -> Tensor:
    """3-D transposed ring convolution; see :func:`sre_conv_transpose2d`."""
    return _conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, groups, dilation, kernel_size, circular, antialias
    )


def expand_kernel(
    weight: Tensor, kernel_size: Sequence[int], circular: bool = True, antialias: bool = False
) -> Tensor:
    """Dense kernel of ring weights, differentiable.

    Args:
        weight: (out, in / groups, rings).
        kernel_size: one odd size per spatial dimension, all equal. A tuple: an int would not tell how
            many dimensions the kernel has.

    Returns:
        (out, in / groups, *kernel_size), in the dtype of ``weight``.

    Raises:
        TypeError, ValueError: no such geometry; see :func:`sre_triton.rings.ring_geometry`.
    """
    if isinstance(kernel_size, int):
        raise TypeError(f"kernel_size must be a tuple with one entry per spatial dimension, got the int {kernel_size}")
    if weight.dim() != 3:
        raise ValueError(f"weight must be (out, in / groups, rings), got shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be of a floating dtype, got {weight.dtype}")
    size = _ntuple(kernel_size, len(kernel_size), "kernel_size")
    if torch.is_grad_enabled() and weight.requires_grad or _differentiates_forward():
        return apply(ExpandKernel, weight, size, circular, antialias)
    return _ops.expand_kernel(weight, size, circular, antialias)


def project_kernel(
    dense: Tensor, num_rings: int | None = None, circular: bool = True, antialias: bool = False
) -> Tensor:
    """Ring weights whose kernel is nearest to a dense one in least squares; inverts :func:`expand_kernel`.

    For hard rings this is the mean over each ring. Differentiable.

    Args:
        dense: (out, in / groups, *kernel_size).
        num_rings: number of rings, None for the default of this kernel size.

    Returns:
        (out, in / groups, rings), in the dtype of ``dense``.

    Raises:
        TypeError, ValueError: no such geometry; see :func:`sre_triton.rings.ring_geometry`.
    """
    if not 3 <= dense.dim() <= 5:
        raise ValueError(f"dense must be (out, in / groups, *kernel_size) in 1 to 3 dimensions, got {tuple(dense.shape)}")
    if not dense.is_floating_point():
        raise TypeError(f"dense must be of a floating dtype, got {dense.dtype}")
    geometry = ring_geometry(tuple(dense.shape[2:]), num_rings, circular, antialias)
    # In float64: a mean of many taps should be as exact as its dtype can hold.
    inverse = torch.from_numpy(geometry.pseudo_inverse.copy()).to(dense.device)
    return (dense.flatten(2).to(torch.float64) @ inverse).to(dense.dtype)


# One convolution for every dimension --------------------------------------------------------------


def ring_conv(x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs) -> Tensor:
    """Ring convolution of as many dimensions as ``args.stride`` has; the arguments are checked here."""
    ndim = len(args.stride)
    _check_types(x, weight, bias, args.groups)
    x, weight, bias = _autocast(x, weight, bias)
    _check_tensors("sre_conv", ndim, x, weight, bias)
    groups = args.groups
    if groups < 1:
        raise RuntimeError(f"non-positive groups is not supported, got groups={groups}")
    if weight.shape[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of "
            f"size {list(weight.shape)}"
        )
    channels = x.shape[-ndim - 1]
    if channels != weight.shape[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have "
            f"{weight.shape[1] * groups} channels, but got {channels} channels instead"
        )
    _check_bias(bias, weight.shape[0])
    if x.dim() == ndim + 1:
        return ring_conv(x.unsqueeze(0), weight, bias, args).squeeze(0)
    if _needs_function(x, weight, bias):
        return apply(RingConv, x, weight, bias, args)
    return _ops.ring_conv(x, weight, bias, *args)


def ring_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: tuple[int, ...], args: ConvArgs
) -> Tensor:
    """Transposed ring convolution of any dimension; the arguments are checked here."""
    ndim = len(args.stride)
    _check_types(x, weight, bias, args.groups)
    x, weight, bias = _autocast(x, weight, bias)
    _check_tensors("sre_conv_transpose", ndim, x, weight, bias)
    groups = args.groups
    if groups < 1:
        raise RuntimeError(f"non-positive groups is not supported, got groups={groups}")
    channels = x.shape[-ndim - 1]
    if channels != weight.shape[0]:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have "
            f"{weight.shape[0]} channels, but got {channels} channels instead"
        )
    if channels % groups:
        raise RuntimeError(f"Given groups={groups}, expected input channels to be divisible by it, but got {channels}")
    for extra, stride, dilation in zip(output_padding, args.stride, args.dilation, strict=True):
        if extra < 0:
            raise RuntimeError(f"negative output_padding is not supported, got output_padding={output_padding}")
        if extra >= max(stride, dilation):
            raise RuntimeError(
                f"output padding must be smaller than either stride or dilation, but got output_padding="
                f"{output_padding}, stride={args.stride}, dilation={args.dilation}"
            )
    _check_bias(bias, weight.shape[1] * groups)
    if x.dim() == ndim + 1:
        return ring_conv_transpose(x.unsqueeze(0), weight, bias, output_padding, args).squeeze(0)
    if any(extra >= stride > 0 for extra, stride in zip(output_padding, args.stride, strict=True)):
        # A stride or more of output padding is rows of zeros in the input. Without them the convolution of
        # the output would be larger than the input, and not its gradient.
        steps = [divmod(extra, stride) for extra, stride in zip(output_padding, args.stride, strict=True)]
        x = F.pad(x, [side for rows, _ in reversed(steps) for side in (0, rows)])
        output_padding = tuple(rest for _, rest in steps)
    if _needs_function(x, weight, bias):
        return apply(RingConvTranspose, x, weight, bias, output_padding, args)
    return _ops.ring_conv_transpose(x, weight, bias, output_padding, *args)


def _conv(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    kernel_size: Size,
    circular: bool,
    antialias: bool,
) -> Tensor:
    stride, dilation = _ntuple(stride, ndim, "stride"), _ntuple(dilation, ndim, "dilation")
    k = _cubic(kernel_size, ndim)
    padding = resolve_padding(padding, stride, dilation, k)
    args = ConvArgs(stride, padding, dilation, groups, k, circular, antialias, current_backend())
    return ring_conv(input, weight, bias, args)


def _conv_transpose(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
    kernel_size: Size,
    circular: bool,
    antialias: bool,
) -> Tensor:
    args = ConvArgs(
        _ntuple(stride, ndim, "stride"),
        _ntuple(padding, ndim, "padding"),
        _ntuple(dilation, ndim, "dilation"),
        groups,
        _cubic(kernel_size, ndim),
        circular,
        antialias,
        current_backend(),
    )
    return ring_conv_transpose(input, weight, bias, _ntuple(output_padding, ndim, "output_padding"), args)


# Arguments ----------------------------------------------------------------------------------------


def resolve_padding(
    padding: Size | str, stride: tuple[int, ...], dilation: tuple[int, ...], kernel_size: int
) -> tuple[int, ...]:
    """Padding in pixels. An odd kernel's "same" padding is the same on both sides."""
    if not isinstance(padding, str):
        return _ntuple(padding, len(stride), "padding")
    if padding == "valid":
        return (0,) * len(stride)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: {padding!r}, expected 'valid' or 'same'")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride={stride}")
    return tuple(d * (kernel_size - 1) // 2 for d in dilation)


def _ntuple(value: Size, ndim: int, name: str) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * ndim
    try:
        size = tuple(index(v) for v in (value if isinstance(value, Iterable) else (value,)))
    except TypeError:
        raise TypeError(f"{name} must be an int or a tuple of {ndim} ints, got {value!r}") from None
    if len(size) == 1:
        return size * ndim
    if len(size) != ndim:
        raise RuntimeError(f"expected {name} to be a single integer value or a list of {ndim} values, got {name}={size}")
    return size


def _cubic(kernel_size: Size, ndim: int) -> int:
    if isinstance(kernel_size, int):
        return kernel_size
    size = _ntuple(kernel_size, ndim, "kernel_size")
    if len(set(size)) > 1:
        raise ValueError(f"kernel_size must be the same in every dimension for rings to be round, got {size}")
    return size[0]


def _check_types(x: Any, weight: Any, bias: Any, groups: Any) -> None:
    for name, value in (("input", x), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"bias must be a Tensor or None, got {type(bias).__name__}")
    if not isinstance(groups, int):
        raise TypeError(f"groups must be an int, got {groups!r}")


def _check_tensors(name: str, ndim: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 3:
        raise RuntimeError(
            f"Expected 3D ring weights (channels, channels / groups, rings) for {name}{ndim}d, but got weight of size: "
            f"{list(weight.shape)}"
        )
    if x.dim() != ndim + 2 and x.dim() != ndim + 1:
        raise RuntimeError(
            f"Expected {ndim + 1}D (unbatched) or {ndim + 2}D (batched) input to {name}{ndim}d, but got input of size: "
            f"{list(x.shape)}"
        )
    if x.dtype != weight.dtype or (bias is not None and x.dtype != bias.dtype):
        other, what = (weight, "weight") if x.dtype != weight.dtype else (bias, "bias")
        raise RuntimeError(f"Input type ({x.dtype}) and {what} type ({other.dtype}) should be the same")  # type: ignore[union-attr]
    if not x.is_floating_point():
        raise RuntimeError(f"{name}{ndim}d needs a floating-point input, got input of type {x.dtype}")
    if x.device != weight.device or (bias is not None and x.device != bias.device):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got input on {x.device}, weight on {weight.device}"
            + ("" if bias is None else f", bias on {bias.device}")
        )


def _check_bias(bias: Tensor | None, channels: int) -> None:
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != channels):
        raise RuntimeError(f"expected bias to be 1-dimensional with {channels} elements, but got bias of size {list(bias.shape)}")


def _autocast(x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """What autocast does to a convolution: every float tensor but float64 becomes its dtype."""
    kind = x.device.type
    tensors = (x, *parameters)
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )


def _needs_function(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a derivative may be asked for: the bare operator has none, and costs less."""
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return True
    return _differentiates_forward()


def _differentiates_forward() -> bool:
    """Forward-mode derivatives hide from ``requires_grad``; the Functions refuse them with an error."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
