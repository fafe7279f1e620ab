"""What this package uses of PyTorch and Triton without their promise to keep it: all of it, and nothing else.

Most of it asks questions that the public API answers too, at a multiple of the price, and a small layer costs less
than they do. Each is looked up once, when this module is imported, and has a substitute for a PyTorch that lacks it:
slower, never wrong; Triton's part is looked up when a kernel has been started. ``tests/test_private_api.py`` checks
what each assumes, and each substitute.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.autograd import Function, forward_ad
from torch.nn.modules.utils import _ntuple

__all__ = [
    "AUTOCAST_DEVICES",
    "CompiledLaunch",
    "any_requires_grad",
    "apply_function",
    "autocast_is_enabled",
    "batches_gradients",
    "below_autocast",
    "below_autograd",
    "derivative_may_hide",
    "dispatch_modes",
    "has_autocast",
    "has_tangent",
    "is_expanded_weight",
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


# Whether a tensor among these arguments requires grad.
any_requires_grad: Callable[..., bool] = _look_up(
    "_any_requires_grad", lambda *args: any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args)
)

# Makes contexts in which operators go past their derivatives to their implementations.
below_autograd: Callable[[], AbstractContextManager[object]] = torch._C._AutoDispatchBelowAutograd


def _batching_mode() -> Callable[[], bool]:
    try:
        mode = torch._C._dispatch_key_parse("VmapMode")
        return partial(torch._C._dispatch_tls_is_dispatch_key_included, mode)
    except (AttributeError, RuntimeError):
        return _perhaps


# Whether gradients are batched (``is_grads_batched``), whose tensors look like any others.
batches_gradients = _batching_mode()


def derivative_may_hide() -> bool:
    """Whether a derivative may be under way that ``requires_grad`` does not tell of: a transform's, or one in forward
    mode."""
    return transforms_are_active() or getattr(forward_ad, "_current_level", 0) >= 0


def has_tangent(*args: Any) -> bool:
    """Whether derivatives in forward mode are under way, and a tensor among these arguments has one."""
    return getattr(forward_ad, "_current_level", 0) >= 0 and any(
        isinstance(arg, torch.Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args
    )


def is_expanded_weight(value: object) -> bool:
    """Whether this is what ``call_for_per_sample_grads`` puts in the place of parameters."""
    return type(value).__module__.startswith("torch.nn.utils._expanded_weights")


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


# Triton: a compiled kernel, started without binding its arguments anew ------------------------------------


class CompiledLaunch:
    """A kernel that Triton has compiled, loaded and started before, to be started again.

    ``JITFunction.run`` inspects every argument, makes a key of text and looks the compiled kernel up: more than the
    rest of a launch. Here the caller vouches that its arguments are those of the first launch but for the addresses
    of its tensors, and that these are as aligned.

    Assumes of Triton: ``JITFunction.run`` returns a ``CompiledKernel`` whose ``run``, a ``CudaLauncher``, takes the
    grid, the stream, ``function``, ``packed_metadata``, three hooks and then every parameter of the kernel in order,
    tensors by address. :meth:`of` gives None where that is not so.
    """

    __slots__ = ("_function", "_kernel", "_launcher", "_metadata", "_stream")

    def __init__(self, kernel: Any, compiled: Any, stream: Any) -> None:
        self._kernel, self._stream = kernel, stream
        self._launcher, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata

    @classmethod
    def of(cls, kernel: Any, compiled: Any) -> CompiledLaunch | None:
        """The launch of what ``kernel.run`` has just returned; None where Triton is not as assumed, as on ROCm and
        XPU, in the interpreter, or if it was told to instrument or to debug kernels."""
        stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        if stream is None or not _is_as_assumed() or not _is_plain(kernel) or not _is_known(kernel, compiled):
            return None
        return cls(kernel, compiled, stream)

    def is_allowed(self) -> bool:
        """Whether nobody wants to see launches: no hooks, no debugging, and ``JITFunction.run`` is Triton's own."""
        return _is_plain(self._kernel)

    def __call__(self, grid: tuple[int, int, int], device: int, arguments: Sequence[Any]) -> None:
        """Start the kernel on the current stream of CUDA device ``device``, which must be the current one."""
        self._launcher(
            grid[0],
            grid[1],
            grid[2],
            self._stream(device),
            self._function,
            self._metadata,
            None,
            None,
            None,
            *arguments,
        )


_jit: Any = None  # the class of kernels, and its own `run`
_jit_run: Any = None
_knobs: Any = None


def _is_as_assumed() -> bool:
    """Looks at Triton once it has been imported."""
    global _jit, _jit_run, _knobs
    if _jit is None:
        try:
            from triton import knobs
            from triton.backends.nvidia.driver import CudaLauncher
            from triton.runtime.jit import JITFunction

            parameters = list(inspect.signature(CudaLauncher.__call__).parameters)
            if parameters[:6] != ["self", "gridX", "gridY", "gridZ", "stream", "function"]:
                return False
            # What _is_plain reads; and not a `run` that somebody has put in its place.
            _ = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, knobs.runtime.debug, knobs.compilation
            if JITFunction.run.__module__ != "triton.runtime.jit":
                return False
        except (ImportError, AttributeError):
            return False
        _jit, _jit_run, _knobs = JITFunction, JITFunction.run, knobs
    return True


def _is_plain(kernel: Any) -> bool:
    runtime = _knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    # A chain of hooks is empty where its `calls` are; anything else that is not None is a hook.
    return not (
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or kernel.pre_run_hooks
        or runtime.debug
        or getattr(runtime, "add_stages_inspection_hook", None)
        or _knobs.compilation.__dict__.get("instrumentation_mode")
        or _jit.run is not _jit_run
    )


def _is_known(kernel: Any, compiled: Any) -> bool:
    return (
        type(kernel) is _jit
        and type(compiled).__name__ == "CompiledKernel"
        and type(compiled).__module__ == "triton.compiler.compiler"
        and type(compiled.run).__name__ == "CudaLauncher"
        and all(hasattr(compiled, name) for name in ("function", "packed_metadata"))
        and not getattr(_knobs.compilation, "instrumentation_mode", "")
    )
