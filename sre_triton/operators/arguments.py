"""Turns a caller's arguments (integers, sequences, arrays, tensors) into tuples of ints, or refuses them by name.

Results are cached, since to work them out at every call would cost more than a small layer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np
import torch

from sre_triton.geometry.conv import ConvArgs

__all__ = ["Size", "conv_args", "integer", "size_tuple"]

Size = int | Sequence[int]


def size_tuple(value: Size, ndim: int, name: str) -> tuple[int, ...]:
    """One int per spatial dimension, from an integer or several; NumPy's and PyTorch's count as Python's.

    Raises:
        TypeError: ``value`` is no integer and holds none. Floats and bools are none.
        RuntimeError: it holds the wrong number of them.
    """
    size: tuple[int, ...]
    if type(value) is tuple and len(value) == ndim and set(map(type, value)) == {int}:
        return value
    try:
        size = (_integer(value),)
    except TypeError:
        try:
            size = tuple(_integer(v) for v in value)  # type: ignore[union-attr]
        except TypeError:
            raise TypeError(f"{name} must be an int or a tuple of {ndim} ints, got {value!r}") from None
    if len(size) == 1:
        return size * ndim
    if len(size) != ndim:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {ndim} values, got {name}={size}"
        )
    return size


def integer(value: Any, name: str) -> int:
    """One integer, NumPy's and PyTorch's as Python's.

    Raises:
        TypeError: ``value`` is none. Floats and bools are none.
    """
    try:
        return _integer(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None


def _integer(value: Any) -> int:
    # Tuples and lists, too, although index() refuses them: the compilers of PyTorch 2.10 and 2.11 cannot trace that.
    is_bool = isinstance(value, (bool, np.bool_)) or (isinstance(value, torch.Tensor) and value.dtype is torch.bool)
    if is_bool or isinstance(value, (tuple, list)):
        raise TypeError(f"a {type(value).__name__} is no integer")
    return index(value)


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
    if torch.compiler.is_compiling():
        return _conv_args(ndim, stride, padding, dilation, groups, kernel_size, circular, antialias, backend)
    # (1.0, True) would find what (1, 1) left behind: the look-up minds the types of its arguments, but not of what they
    # hold. A loop in place, as all() or a function of its own takes twice the time.
    is_plain, value = True, None  # type: bool, Any
    for value in (stride, padding, dilation, kernel_size):
        kind = type(value)
        if kind is tuple:
            for v in value:
                is_plain = is_plain and type(v) is int
        elif kind is not int and kind is not str:
            is_plain = False
    if not is_plain:
        stride, dilation = size_tuple(stride, ndim, "stride"), size_tuple(dilation, ndim, "dilation")
        kernel_size = size_tuple(kernel_size, ndim, "kernel_size")
        padding = padding if isinstance(padding, str) else size_tuple(padding, ndim, "padding")
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
    groups = integer(groups, "groups")
    for name, value in (("circular", circular), ("antialias", antialias)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, got {value!r}")
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


_known_conv_args = lru_cache(maxsize=4096, typed=True)(_conv_args)
