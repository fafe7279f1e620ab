"""What a result is held against, and how much it may be off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

__all__ = ["difference", "full_float32", "poisoned_memory", "rounding", "without_search"]

_FLOAT32 = 2e-5
_LARGEST = 64  # times the root mean square of the error: no element may be further off


def rounding(truth: Tensor, dtype: torch.dtype) -> float:
    """Relative error, as a root mean square, of ``truth`` rounded to ``dtype`` once."""
    return float((truth.to(dtype).double() - truth.double()).norm() / truth.double().norm())


def difference(result: Tensor, truth: Tensor, unit: float | None = None, roundings: float = 3) -> str | None:
    """None, or what is wrong with ``result``.

    Args:
        unit: relative error of a result that was rounded once; by default that of ``truth`` in the result's dtype,
            and 2e-5 / roundings in float32.
        roundings: how many times that the error may be, as a root mean square; a single element may be off by 64 times
            as much as that, which a whole wrong one is not.
    """
    if not result.isfinite().all():
        return f"{int((~result.isfinite()).sum())} elements were not written"
    error, scale = result.double() - truth.double(), truth.double().norm()
    if unit is None:
        unit = _FLOAT32 / roundings if result.dtype == torch.float32 else rounding(truth, result.dtype)
    limit = roundings * unit
    relative, largest = float(error.norm() / scale), float(error.abs().max() / scale) * truth.numel() ** 0.5
    if relative > limit:
        return f"relative error {relative:.1e}, limit {limit:.1e}"
    return f"an element is off by {largest:.1e} of the mean" if largest > _LARGEST * limit else None


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element which no kernel wrote shows."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **options: Any) -> Tensor:
            tensor = allocate(*args, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(owner, name, poisoned(getattr(owner, name))))
        yield


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions without TF32."""
    switch: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, switch.fp32_precision = switch.fp32_precision, "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextlib.contextmanager
def without_search() -> Iterator[None]:
    """cuDNN takes its first choice: a truth is computed once, and a search would cost more than it."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
