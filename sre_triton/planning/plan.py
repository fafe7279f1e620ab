"""Which execution path a call takes, and why.

There are four paths, all of the same function: ``dense`` (expand, then ``F.convNd``), ``ringwise``
(ring sums, then one small product per ring), ``native`` (the same in one C++ kernel, where that was built) and
``triton`` (the GPU kernels). The plan looks at shapes, dtype and device alone, so that it is the same in every
process of a machine and under ``torch.compile``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType, TracebackType
from typing import NamedTuple

import torch

from sre_triton.backends import dense, expansion, native
from sre_triton.backends.native import launch as native_launch
from sre_triton.backends.ringwise import passes as ringwise
from sre_triton.geometry.conv import ConvSpec
from sre_triton.planning import cpu_cost as cost
from sre_triton.planning import gpu_cost, gpu_tables

__all__ = ["BACKENDS", "Call", "Plan", "backend", "current_backend", "expansion_path", "plan_call", "recording", "run"]

BACKENDS = ("auto", "dense", "ringwise", "native", "triton")

# A one-element list and not a ContextVar: torch.compile traces through it and guards on its content.
_requested: list[str] = ["auto"]
_records: list[tuple[Call, Plan]] | None = None


class backend:
    """Context manager that forces one execution path: ``with sre_triton.backend("dense"): ...``.

    Args:
        name: ``"auto"`` (the planner decides, the default outside of any context), ``"dense"``,
            ``"ringwise"``, ``"native"`` or ``"triton"``.

    The request holds for the whole process, as ``torch.backends`` flags do, and a backward pass takes
    the path that was requested when its forward ran. A request that cannot be met raises
    :class:`RuntimeError` at the call; nothing falls back silently.

    Raises:
        ValueError: ``name`` is none of the five.
    """

    def __init__(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
        self.name = name
        self._outer: list[str] = []

    def __enter__(self) -> None:
        self._outer.append(_requested[0])
        _requested[0] = self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _requested[0] = self._outer.pop()


def current_backend() -> str:
    """The path that calls made now will request."""
    return _requested[0]


class Call(NamedTuple):
    """What the planner may look at: one pass of one convolution, without its data."""

    kind: str  # "forward", "transpose", "weight_grad" or "backward"
    spec: ConvSpec
    batch: int
    in_channels: int  # of the convolution, whichever of its passes this is
    out_channels: int
    input_size: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def pixels(self) -> int:
        """Output pixels of the convolution."""
        return self.batch * math.prod(self.spec.output_size(self.input_size))


@dataclass(frozen=True)
class Plan:
    """The chosen path and the reason in words."""

    path: str
    reason: str


def plan_call(call: Call, request: str) -> Plan:
    """The plan for this call under this request.

    Raises:
        RuntimeError: the requested path cannot run this call; the message says why.
    """
    # The native kernel may be built while the process runs.
    return _plan(call, request, has_native=call.device.type == "cpu" and native.missing() is None)


@lru_cache(maxsize=8192)
def _plan(call: Call, request: str, has_native: bool) -> Plan:
    if request == "auto":
        return _automatic_on_gpu(call) if call.device.type == "cuda" else _automatic(call, has_native)
    refuse = _REFUSALS.get(request)
    refusal = refuse(call) if refuse else None
    if refusal is not None:
        raise RuntimeError(f"backend {request!r} was requested but cannot run this call: {refusal}")
    return Plan(request, "requested")


def run(call: Call, request: str) -> ModuleType:
    """The module of the path that this call takes."""
    plan = plan_call(call, request)
    if _records is not None:
        _records.append((call, plan))
    return _PATHS[plan.path] if plan.path != "triton" else _triton()


def expansion_path(tensor: torch.Tensor, dtype: torch.dtype | None) -> ModuleType:
    """The module whose ``expand`` and ``collapse`` take this tensor to ``dtype``: under the request ``"triton"`` the
    kernels wherever they run, so that the interpreter reaches them, else :mod:`sre_triton.backends.expansion`."""
    if _requested[0] == "triton":
        launch = _triton()
        if not any(launch.device_refusal(tensor.device.type, kind) for kind in (tensor.dtype, dtype or tensor.dtype)):
            return launch
    return expansion


@contextmanager
def recording() -> Iterator[list[tuple[Call, Plan]]]:
    """Collects every call planned within the context, in order. Not nestable."""
    global _records
    _records = []
    try:
        yield _records
    finally:
        _records = None


_PATHS: dict[str, ModuleType] = {"dense": dense, "ringwise": ringwise, "native": native_launch}


def _triton() -> ModuleType:
    return import_module("sre_triton.backends.triton.launch")  # imports Triton, so only on request


def _triton_refusal(call: Call) -> str | None:
    try:
        launch = _triton()
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    channels = max(call.in_channels, call.out_channels)
    refusal: str | None = launch.refusal(call.device.type, call.dtype, call.input_size[-1], channels, call.spec)
    return refusal


def _native_refusal(call: Call) -> str | None:
    return native_launch.refusal(call.device.type, call.dtype)


_REFUSALS: dict[str, Callable[[Call], str | None]] = {"native": _native_refusal, "triton": _triton_refusal}


# Taps of depthwise layers that the dense path has kernels of its own for.
_FEW_TAPS = 9


def _automatic(call: Call, has_native: bool) -> Plan:
    taps, depthwise = call.spec.geometry.num_taps, call.spec.groups == call.in_channels == call.out_channels
    if taps == 1 or (depthwise and taps <= _FEW_TAPS):
        return Plan(
            "dense", f"nothing to save with {taps} tap{'s' * (taps > 1)}{' and no channels to mix' * depthwise}"
        )
    rates = cost.rates(call.device.type, call.dtype)
    paths = ("dense", "native" if has_native else "ringwise")
    seconds = cost.estimate(call, {path: rates[path] for path in paths})
    return _comparison(cost.choose(call, seconds), seconds)


# A measured speed may be off by this much on another day.
_MEASURED_MARGIN = 1.1


def _automatic_on_gpu(call: Call) -> Plan:
    """Triton where it was measured or is predicted to be faster, dense elsewhere and whenever Triton refuses."""
    refusal = _triton_refusal(call)
    if refusal is not None:
        return Plan("dense", f"not with Triton: {refusal}")
    gpu = gpu_cost.describe(call.device)
    table = gpu_tables.load(gpu.name)
    measured = table and gpu_tables.lookup(call, table)
    if measured:
        chosen = "triton" if measured.speedup >= _MEASURED_MARGIN else "dense"
        layer = f"k={measured.kernel_size}, {measured.channels} channels, size {measured.size}"
        return Plan(chosen, f"measured on this GPU: Triton at {measured.speedup:.2g} times the speed at {layer}")
    seconds = gpu_cost.estimate(call, gpu)
    if seconds is None:
        return Plan("dense", "no prediction of Triton's speed")
    return _comparison(seconds.path, {"dense": seconds.dense, "triton": seconds.triton})


_WORDS = {"dense": "dense", "ringwise": "ring-wise", "native": "native", "triton": "with Triton"}


def _comparison(chosen: str, seconds: dict[str, float]) -> Plan:
    (other,) = set(seconds) - {chosen}
    ours, theirs = (f"{_in_words(seconds[path])} {_WORDS[path]}" for path in (chosen, other))
    return Plan(chosen, f"predicted {ours} against {theirs}")


def _in_words(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms"
