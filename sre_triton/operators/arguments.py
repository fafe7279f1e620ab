"""What a caller may pass: the forms that arguments take, and whether tensors fit together.

Everything here depends on shapes, dtypes and plain values, never on data, and is looked up rather than
worked out again when a call looks like an earlier one: a small layer costs less than checking it would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import index
from typing import Any

import torch
from torch import Tensor

from sre_triton.geometry.conv import ConvArgs
from sre_triton.private_api import dispatch_modes

__all__ = ["Size", "check_conv", "check_conv_transpose", "conv_args", "size_tuple"]

Size = int | Sequence[int]


def size_tuple(value: Size, ndim: int, name: str) -> tuple[int, ...]:
    """One int per spatial dimension.

    Raises:
        TypeError: ``value`` is no int and holds none.
        RuntimeError: it holds the wrong number of them.
    """
    if isinstance(value, int):
        return (value,) * ndim
    try:
        size = tuple(index(v) for v in (value if isinstance(value, Iterable) else (value,)))
    except TypeError:
        raise TypeError(f"{name} must be an int or a tuple of {ndim} ints, got {value!r}") from None
    if len(size) == 1:
        return size * ndim
    if len(size) != ndim:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {ndim} values, got {name}={size}"
        )
    return size


def conv_args(
    ndim: int,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    kernel_size: Size,
    circular: bool,
    antialias: bool,
    backend: str,
) -> ConvArgs:
    """The arguments of a convolution as tuples and plain values, as the operators take them.

    Raises:
        TypeError, ValueError, RuntimeError: an argument has no such form.
    """
    if type(stride) is list or type(padding) is list or type(dilation) is list or type(kernel_size) is list:
        # A list cannot be looked up.
        stride, dilation = size_tuple(stride, ndim, "stride"), size_tuple(dilation, ndim, "dilation")
        kernel_size = size_tuple(kernel_size, ndim, "kernel_size")
        padding = padding if isinstance(padding, str) else size_tuple(padding, ndim, "padding")
    if torch.compiler.is_compiling():
        return _conv_args(ndim, stride, padding, dilation, groups, kernel_size, circular, antialias, backend)
    return _known_conv_args(ndim, stride, padding, dilation, groups, kernel_size, circular, antialias, backend)


def _conv_args(
    ndim: int,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    kernel_size: Size,
    circular: bool,
    antialias: bool,
    backend: str,
) -> ConvArgs:
    if not isinstance(groups, int):
        raise TypeError(f"groups must be an int, got {groups!r}")
    if groups < 1:
        raise RuntimeError(f"non-positive groups is not supported, got groups={groups}")
    stride, dilation = size_tuple(stride, ndim, "stride"), size_tuple(dilation, ndim, "dilation")
    kernel = size_tuple(kernel_size, ndim, "kernel_size")
    if len(set(kernel)) > 1:
        raise ValueError(f"kernel_size must be the same in every dimension for rings to be round, got {kernel}")
    return ConvArgs(
        stride, _pixels(padding, stride, dilation, kernel[0]), dilation, groups, kernel[0], circular, antialias, backend
    )


def _pixels(
    padding: Size | str, stride: tuple[int, ...], dilation: tuple[int, ...], kernel_size: int
) -> tuple[int, ...]:
    """Padding in pixels. An odd kernel's "same" padding is the same on both sides."""
    if not isinstance(padding, str):
        return size_tuple(padding, len(stride), "padding")
    if padding == "valid":
        return (0,) * len(stride)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: {padding!r}, expected 'valid' or 'same'")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride={stride}")
    return tuple(d * (kernel_size - 1) // 2 for d in dilation)


# Checked forms of call are remembered. A tracer goes to the checks themselves, with its symbolic sizes.


def check_conv(x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs) -> None:
    """Raises what ``F.convNd`` raises if these tensors are not a convolution's."""
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        raise _not_tensors(x, weight, bias)
    check = _check_conv if torch.compiler.is_compiling() or dispatch_modes() else _known_conv
    check(
        (x.shape, x.dtype, x.device),
        (weight.shape, weight.dtype, weight.device),
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        args,
    )


def check_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: tuple[int, ...], args: ConvArgs
) -> None:
    """Raises what ``F.conv_transposeNd`` raises if these tensors are not a transposed convolution's."""
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        raise _not_tensors(x, weight, bias)
    check = _check_conv_transpose if torch.compiler.is_compiling() or dispatch_modes() else _known_conv_transpose
    check(
        (x.shape, x.dtype, x.device),
        (weight.shape, weight.dtype, weight.device),
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        output_padding,
        args,
    )


def _not_tensors(x: Any, weight: Any, bias: Any) -> TypeError:
    if not isinstance(x, Tensor):
        return TypeError(f"input must be a Tensor, got {type(x).__name__}")
    if not isinstance(weight, Tensor):
        return TypeError(f"weight must be a Tensor, got {type(weight).__name__}")
    return TypeError(f"bias must be a Tensor or None, got {type(bias).__name__}")


_Signature = tuple[torch.Size, torch.dtype, torch.device]


def _check_conv(x: _Signature, weight: _Signature, bias: _Signature | None, args: ConvArgs) -> None:
    ndim, groups = len(args.stride), args.groups
    _check_tensors(f"sre_conv{ndim}d", ndim, x, weight, bias)
    size, rings = x[0], weight[0]
    if rings[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of "
            f"size {list(rings)}"
        )
    if size[-ndim - 1] != rings[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(rings)}, expected input{list(size)} to have "
            f"{rings[1] * groups} channels, but got {size[-ndim - 1]} channels instead"
        )
    _check_bias(bias, rings[0])


def _check_conv_transpose(
    x: _Signature, weight: _Signature, bias: _Signature | None, output_padding: tuple[int, ...], args: ConvArgs
) -> None:
    ndim, groups = len(args.stride), args.groups
    _check_tensors(f"sre_conv_transpose{ndim}d", ndim, x, weight, bias)
    size, rings = x[0], weight[0]
    channels = size[-ndim - 1]
    if channels != rings[0]:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(rings)}, expected input{list(size)} to have "
            f"{rings[0]} channels, but got {channels} channels instead"
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
    _check_bias(bias, rings[1] * groups)


def _check_tensors(name: str, ndim: int, x: _Signature, weight: _Signature, bias: _Signature | None) -> None:
    if len(weight[0]) != 3:
        raise RuntimeError(
            f"Expected 3D ring weights (channels, channels / groups, rings) for {name}, but got weight of size: "
            f"{list(weight[0])}"
        )
    if len(x[0]) != ndim + 2 and len(x[0]) != ndim + 1:
        raise RuntimeError(
            f"Expected {ndim + 1}D (unbatched) or {ndim + 2}D (batched) input to {name}, but got input of size: "
            f"{list(x[0])}"
        )
    for what, other in (("weight", weight), ("bias", bias)):
        if other is not None and x[1] != other[1]:
            raise RuntimeError(f"Input type ({x[1]}) and {what} type ({other[1]}) should be the same")
    if not x[1].is_floating_point:
        raise RuntimeError(f"{name} needs a floating-point input, got input of type {x[1]}")
    if x[2] != weight[2] or (bias is not None and x[2] != bias[2]):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got input on {x[2]}, weight on {weight[2]}"
            + ("" if bias is None else f", bias on {bias[2]}")
        )


def _check_bias(bias: _Signature | None, channels: int) -> None:
    if bias is not None and (len(bias[0]) != 1 or bias[0][0] != channels):
        raise RuntimeError(
            f"expected bias to be 1-dimensional with {channels} elements, but got bias of size {list(bias[0])}"
        )


_known_conv_args = lru_cache(maxsize=4096, typed=True)(_conv_args)
_known_conv = lru_cache(maxsize=4096)(_check_conv)
_known_conv_transpose = lru_cache(maxsize=4096)(_check_conv_transpose)
