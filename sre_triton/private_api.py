"""What this package uses of PyTorch without PyTorch's promise to keep it: all of it, and nothing else.

Most of it asks questions that the public API answers too, at a multiple of the price, and a small layer costs less
than they do. Each is looked up once, when this module is imported, and has a substitute for a PyTorch that lacks it:
slower, never wrong. ``tests/test_private_api.py`` checks what each assumes, and each substitute.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd import Function, forward_ad
from torch.nn.modules.utils import _ntuple

__all__ = [
    "AUTOCAST_DEVICES",
    "apply_function",
    "autocast_is_enabled",
    "below_autocast",
    "derivative_may_hide",
    "dispatch_modes",
    "has_autocast",
    "ntuple",
    "transforms_are_active",
]

_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "ipu", "xla", "maia", "privateuseone")


# Asked once: `torch.amp.is_autocast_available` itself is public, but before PyTorch 2.12 the compiler cannot trace it.
AUTOCAST_DEVICES = frozenset(kind for kind in _DEVICES if torch.amp.is_autocast_available(kind))


def has_autocast(device_type: str) -> bool:
    """Whether there is autocast for this type of device."""
    return device_type in AUTOCAST_DEVICES or (
        device_type not in _DEVICES and device_type != "meta" and torch.amp.is_autocast_available(device_type)
    )


def _look_up(name: str, substitute: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(torch._C, name, substitute)


def _some_autocast_is_enabled() -> bool:
    return any(torch.is_autocast_enabled(kind) for kind in AUTOCAST_DEVICES)


def _perhaps() -> bool:
    """An answer that is always right: callers then take PyTorch's public way."""
    return True


# Whether autocast is enabled for any type of device.
autocast_is_enabled: Callable[[], bool] = _look_up("_is_any_autocast_enabled", _some_autocast_is_enabled)

# Whether a transform of torch.func is active.
transforms_are_active: Callable[[], bool] = _look_up("_are_functorch_transforms_active", _perhaps)

# How many modes look at every operator, such as fake tensors and tracers do.
dispatch_modes: Callable[[], int] = _look_up("_len_torch_dispatch_stack", _perhaps)


def derivative_may_hide() -> bool:
    """Whether a derivative may be under way that ``requires_grad`` does not tell of: a transform's, or one in forward
    mode."""
    return transforms_are_active() or getattr(forward_ad, "_current_level", 0) >= 0


def apply_function(function: type[Function], *args: Any) -> Any:
    """``function.apply(*args)`` without the inspection of its signature.

    ``Function.apply`` binds default arguments anew at every call, which costs more than the rest of
    a small layer; ours have none. Transforms and the compiler take the public way.
    """
    if torch.compiler.is_compiling() or transforms_are_active() or not _has_bare_apply:
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


# The function below Function.apply, written in C.
_has_bare_apply = hasattr(super(Function, Function), "apply")


def below_autocast(device_type: str) -> Callable[[], AbstractContextManager[object]]:
    """Makes contexts in which autocast does not reach the operations of this type of device."""
    try:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))
        guard = torch._C._ExcludeDispatchKeyGuard
    except AttributeError:
        return lambda: torch.autocast(device_type, enabled=False)
    return lambda: guard(keys)


def ntuple(n: int) -> Callable[[Any], tuple[Any, ...]]:
    """What ``nn.ConvNd`` makes of its arguments: a tuple of an iterable, ``n`` times anything else."""
    return _ntuple(n)
