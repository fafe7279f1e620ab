"""What ``torch.cuda`` says of an H100 that is not there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from bench.pretended_gpu.faults import check_context

__all__ = ["install"]

_PROPERTIES = SimpleNamespace(
    name="Pretended H100", major=9, minor=0, multi_processor_count=132, L2_cache_size=50 * 2**20, warp_size=32,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, regs_per_multiprocessor=65536,
    clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=5120, total_memory=80 * 2**30,
    max_threads_per_multi_processor=2048,
)  # fmt: skip


class _Stream:
    cuda_stream = 0
    device = torch.device("cuda", 0)

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def synchronize(self) -> None:
        check_context()


class _Event:
    def __init__(self, *args: Any, **options: Any) -> None:
        self._time = 0.0

    def record(self, *args: Any) -> None:
        check_context()
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        check_context()

    def elapsed_time(self, later: _Event) -> float:
        return max(1e-3, 1e3 * (later._time - self._time))


class _Graph:
    """Captured calls have run once; replays cost a tenth of a millisecond."""

    def replay(self) -> None:
        check_context()
        time.sleep(1e-4)


class _Device(contextlib.nullcontext):  # type: ignore[type-arg]
    def __init__(self, *args: Any) -> None:
        super().__init__()


@contextlib.contextmanager
def _capture(*args: Any, **options: Any) -> Iterator[None]:
    check_context()
    yield


def install() -> None:
    constant: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "memory_allocated": 0,
        "max_memory_allocated": 0, "is_current_stream_capturing": False, "get_device_capability": (9, 0),
        "get_device_properties": _PROPERTIES, "get_device_name": _PROPERTIES.name, "mem_get_info": (2**36, 2**36),
        "is_bf16_supported": True,
    }  # fmt: skip
    for name, value in constant.items():
        setattr(torch.cuda, name, lambda *args, _value=value, **options: _value)
    torch.cuda.get_rng_state = lambda *args: torch.ByteTensor()  # type: ignore[assignment]
    for name in (
        "set_device", "set_rng_state", "reset_peak_memory_stats", "set_sync_debug_mode", "manual_seed",
        "manual_seed_all", "init", "_lazy_init",
    ):  # fmt: skip
        setattr(torch.cuda, name, lambda *args, **options: None)  # Dynamo wants one function per name
    for name in ("synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **options: check_context())
    stream = _Stream()
    classes = {"Stream": _Stream, "Event": _Event, "CUDAGraph": _Graph, "graph": _capture, "device": _Device}
    for name, kind in classes.items():
        setattr(torch.cuda, name, kind)
    torch.cuda.stream = _Device  # type: ignore[misc, assignment]
    torch.cuda.current_stream = lambda *args: stream  # type: ignore[assignment, return-value]
    torch.get_device_module = lambda device=None: torch.cuda  # type: ignore[assignment]
    # What Triton and quick launchers ask torch's C module for, which a build for CPUs lacks.
    for name, value in {"_cuda_getCurrentRawStream": 0, "_cuda_getDevice": 0}.items():
        setattr(torch._C, name, lambda *args, _value=value: _value)
    torch.compile = lambda model=None, **options: model if model is not None else (lambda inner: inner)  # type: ignore[assignment]
