"""Which backend a call takes, and why.

All of :mod:`sre_triton.backends.registry` compute the same function. The plan looks at shapes, dtype and device
alone, so that it is the same in every process of a machine and under ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from sre_triton.backends import empty, native, triton
from sre_triton.backends.base import Backend, Call, Kind
from sre_triton.backends.registry import BACKENDS
from sre_triton.geometry.conv import ConvArgs
from sre_triton.planning import cpu_cost as cost
from sre_triton.planning import gpu_cost, gpu_tables

__all__ = ["Plan", "plan_call", "plan_on_gpu", "plan_pass", "plans_are_recorded", "recording"]

_records: list[tuple[Call, Plan]] | None = None


@dataclass(frozen=True)
class Plan:
    """The name of the chosen backend, and the reason in words."""

    backend: str
    reason: str


def plan_pass(
    kind: Kind, shape: tuple[int, ...], out_channels: int, num_rings: int, args: ConvArgs, dtype: torch.dtype,
    device: torch.device,
) -> tuple[Call, Backend]:  # fmt: skip
    """The call that such a pass is, and the backend that it takes.

    Args:
        shape: (N, in, *space) of the convolution's input, whichever of its passes this is.

    Raises:
        RuntimeError: the requested backend cannot run the call; the message says why.
    """
    call, plan, chosen = _planned(
        kind, shape, out_channels, num_rings, args, dtype, device, native.missing(),
        device.type == "cuda" and torch.cuda.is_current_stream_capturing(),
    )  # fmt: skip
    if _records is not None:
        _records.append((call, plan))
    return call, chosen


@lru_cache(maxsize=8192)
def _planned(
    kind: Kind, shape: tuple[int, ...], out_channels: int, num_rings: int, args: ConvArgs, dtype: torch.dtype,
    device: torch.device, native_missing: str | None, in_graph: bool,
) -> tuple[Call, Plan, Backend]:  # fmt: skip
    batch, in_channels, *size = shape
    call = Call(kind, args.spec(num_rings), batch, in_channels, out_channels, tuple(size), dtype, device)
    plan = plan_call(call, args.backend, in_graph)
    if not (in_channels and out_channels):
        return call, Plan(plan.backend, "there are no channels: nothing to multiply"), empty
    return call, plan, BACKENDS[plan.backend]


def plan_call(call: Call, request: str, in_graph: bool = False) -> Plan:
    """The plan for this call under this request.

    Args:
        in_graph: whether the call is captured into a CUDA graph, as compiled code in the mode "reduce-overhead" is:
            its replays cost the host no time, so none is counted.

    Raises:
        RuntimeError: the requested backend cannot run this call; the message says why.
    """
    if request == "auto":
        # The native kernel may be built while the process runs.
        if call.device.type == "cuda":
            return plan_on_gpu(call, None, in_graph)
        return _automatic(call, has_native=call.device.type == "cpu" and native.missing() is None)
    refusal = BACKENDS[request].refusal(call)
    if refusal is not None:
        raise RuntimeError(f"backend {request!r} was requested but cannot run this call: {refusal}")
    return Plan(request, "requested")


@contextmanager
def recording() -> Iterator[list[tuple[Call, Plan]]]:
    """Collects every call planned within the context, in order; one around it sees them, too."""
    global _records
    outer, records = _records, []  # type: tuple[list[tuple[Call, Plan]] | None, list[tuple[Call, Plan]]]
    _records = records
    try:
        yield records
    finally:
        _records = outer
        if outer is not None:
            outer.extend(records)


def plans_are_recorded() -> bool:
    """Whether a context of :func:`recording` wants to see calls."""
    return _records is not None


# Taps of depthwise layers that PyTorch's kernels are hard to beat at by its own operations.
_FEW_TAPS = 9


def _automatic(call: Call, has_native: bool) -> Plan:
    taps, depthwise = call.spec.geometry.num_taps, call.spec.groups == call.in_channels == call.out_channels
    if taps == 1 or (depthwise and taps <= _FEW_TAPS and not has_native):
        return Plan(
            "dense", f"nothing to save with {taps} tap{'s' * (taps > 1)}{' and no channels to mix' * depthwise}"
        )
    rates = cost.rates(call.device.type, call.dtype)
    names = ("dense", "native" if has_native else "ringwise")
    seconds = cost.estimate(call, {name: rates[name] for name in names})
    return _comparison(cost.choose(call, seconds), seconds)


# A measured speed may be off by this much on another day.
_MEASURED_MARGIN = 1.1


def plan_on_gpu(call: Call, gpu: gpu_cost.Gpu | None = None, in_graph: bool = False) -> Plan:
    """Triton where it was measured or is predicted to be faster, dense elsewhere and whenever Triton refuses.

    Args:
        gpu: the GPU to plan for, which need not be there (see :func:`~sre_triton.planning.gpu_cost.gpu_of`); None for
            that of the call's device.
        in_graph: as for :func:`plan_call`.
    """
    refusal = triton.refusal(call)
    if refusal is not None:
        return Plan("dense", f"not with Triton: {refusal}")
    if gpu is None:
        gpu = gpu_cost.describe(call.device)
    measured = gpu_tables.lookup(call, gpu_tables.load(gpu.name))
    if measured is not None:
        chosen = "triton" if measured.speedup >= _MEASURED_MARGIN else "dense"
        layer = f"k={measured.kernel_size}, {measured.channels} channels, size {measured.size}"
        return Plan(chosen, f"measured on this GPU: Triton at {measured.speedup:.2g} times the speed at {layer}")
    seconds = gpu_cost.estimate(call, gpu, in_graph)
    if seconds is None:
        return Plan("dense", "no prediction of Triton's speed")
    plan = _comparison(seconds.backend, {"dense": seconds.dense, "triton": seconds.triton})
    return Plan(plan.backend, f"{plan.reason}, {'in a CUDA graph' if in_graph else 'time of the host included'}")


_WORDS = {"dense": "dense", "ringwise": "ring-wise", "native": "native", "triton": "with Triton"}


def _comparison(chosen: str, seconds: dict[str, float]) -> Plan:
    (other,) = set(seconds) - {chosen}
    ours, theirs = (f"{_in_words(seconds[name])} {_WORDS[name]}" for name in (chosen, other))
    return Plan(chosen, f"predicted {ours} against {theirs}")


def _in_words(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms"
