"""Host time of launches, layers and backward passes, without a GPU: ``python -m bench.host_time``.

The real launchers and Triton's real launcher run into a driver that does nothing (:mod:`bench.pretended_gpu`), so what
is left is what the host spends before a GPU could begin. Medians of the process's own time, one thread; what the
pretence adds to a call (some 2 us) is in them. Exit code 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import pretended_gpu

__all__ = ["Row", "main", "measure"]

_ROUNDS = 9


class Row(NamedTuple):
    """One figure and its bound, both in ``unit``."""

    name: str
    value: float
    bound: float
    unit: str = "us"

    @property
    def is_met(self) -> bool:
        return self.value <= self.bound

    def __str__(self) -> str:
        verdict = "" if self.is_met else "  MISSED"
        return f"{self.name:58} {self.value:7.1f} {self.unit:8} at most {self.bound:g}{verdict}"


def microseconds(call: Callable[[], object], calls: int) -> float:
    """Of the process's time per call, the median of some rounds."""
    for _ in range(5):
        call()
    rounds = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        for _ in range(calls):
            call()
        rounds.append((time.process_time() - start) / calls)
    return 1e6 * statistics.median(rounds)


class _Operations(TorchDispatchMode):
    """Counts PyTorch's operations that launch a kernel: all but views and fresh memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(
            result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns
        )
        if not is_view and not func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view")):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def launches(call: Callable[[], object]) -> tuple[list[str], list[str]]:
    """Names of our kernels that a call starts, and of PyTorch's operations that start one."""
    from sre_triton.backends.triton.prepared import Launch

    ours: list[str] = []
    start = Launch.__call__

    def noting(launch: Launch, *tensors: Any) -> Any:
        ours.append(launch.kernel.fn.__name__)
        return start(launch, *tensors)

    call()  # what is worked out once is not counted
    with mock.patch.object(Launch, "__call__", noting), _Operations() as operations:
        call()
    return ours, operations.names


def _operands(batch: int, size: int, k: int) -> tuple[Tensor, Tensor, Tensor, Any]:
    from sre_triton.geometry.conv import conv_spec

    spec = conv_spec(2, k, k // 2 + 1, True, False, (1, 1), (k // 2,) * 2, (1, 1), 1)
    options: Any = {"dtype": torch.bfloat16, "device": "cuda"}
    x = torch.zeros(batch, 64, size, size, **options).to(memory_format=torch.channels_last)
    return x, torch.zeros(64, 64, k // 2 + 1, **options), torch.zeros_like(x), spec


def measure(calls: int = 200) -> list[Row]:
    """Every figure. The pretended GPU must be active.

    Args:
        calls: of a round; there are nine.
    """
    import sre_triton
    from sre_triton.backends.triton import launch

    torch.set_num_threads(1)
    x, weight, grad_y, spec = _operands(2, 8, 5)
    layer = sre_triton.SREConv2d(64, 64, 5, padding=2, bias=False, dtype=torch.bfloat16, device="cuda")

    def with_gradients() -> Tensor:
        return layer(x)

    def without() -> Tensor:
        with torch.no_grad():
            return layer(x)

    shape = "2x64x8x8, k=5"
    rows = [
        Row(f"forward launch, {shape}", microseconds(lambda: launch.forward(x, weight, None, spec), calls), 40),
        Row(f"backward launch, {shape}", microseconds(lambda: launch.backward(grad_y, x, weight, spec), calls), 130),
    ]
    with sre_triton.backend("triton"):
        rows += [
            Row(f"layer without gradients, {shape}", microseconds(without, calls), 50),
            Row(f"layer with gradients, {shape}", microseconds(with_gradients, calls), 70),
        ]
    x, weight, grad_y, spec = _operands(167, 56, 9)
    ours, theirs = launches(lambda: launch.backward(grad_y, x, weight, spec))
    name = f"backward of 167x64x56x56, k=9: {len(ours)} of ours, {len(theirs)} of PyTorch's"
    return [*rows, Row(name, len(ours) + len(theirs), 12, "launches")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.host_time", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200, help="calls of a round (200)")
    options = parser.parse_args(argv)
    pretended_gpu.activate("noop")
    rows = measure(options.calls)
    print("\n".join(map(str, rows)))
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
