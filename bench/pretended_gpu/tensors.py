"""Tensors in main memory that say "cuda"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.pretended_gpu.faults import check_context

__all__ = ["install"]

_FACTORIES = (
    "arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace", "ones",
    "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "tensor", "zeros", "zeros_like",
)  # fmt: skip
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")


def install() -> None:
    for name in _FACTORIES:
        setattr(torch, name, _redirected(getattr(torch, name)))
    for name in _METHODS:
        setattr(Tensor, name, _redirected(getattr(Tensor, name)))
    for owner in (Tensor, nn.Module):
        owner.to = _redirected(owner.to)  # type: ignore[method-assign, attr-defined]
        owner.cuda = lambda self, *args, **options: self  # type: ignore[method-assign, attr-defined]
    inner = Tensor.device.__get__  # type: ignore[attr-defined]
    here = torch.device("cuda", 0)

    def device(tensor: Tensor) -> torch.device:
        real = inner(tensor)
        return here if real.type == "cpu" else real

    Tensor.device = property(device)  # type: ignore[misc, assignment]
    Tensor.is_cuda = property(lambda tensor: tensor.device.type == "cuda")  # type: ignore[assignment]
    torch.autocast = torch.amp.autocast = _Autocast  # type: ignore[misc, assignment]


class _Autocast(torch.autocast):
    """PyTorch chooses autocast by where a tensor really is, the library by what it says: both are on."""

    def __init__(self, device_type: str, *args: Any, **options: Any) -> None:
        super().__init__("cpu", *args, **options)

    def __enter__(self) -> Any:
        self._before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", self._enabled)
        torch.set_autocast_dtype("cuda", self.fast_dtype)
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        torch.set_autocast_enabled("cuda", self._before[0])
        torch.set_autocast_dtype("cuda", self._before[1])
        return super().__exit__(*error)


def _redirected(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        check_context()
        args = tuple(_place(a) if isinstance(a, (str, torch.device)) else a for a in args)
        if "device" in options:
            options["device"] = _place(options["device"])
        return function(*args, **options)

    return call


def _place(device: Any) -> Any:
    if isinstance(device, int):
        return "cpu"
    return "cpu" if device is not None and torch.device(device).type == "cuda" else device
