"""What it costs to add invariants to a ring layer: ``python -m bench.invariants``.

A training step (forward and both gradients) and an inference of ``SREConv2d(C, C, 9)`` alone and followed by
``AddInvariants2d(C)``, in turns and in both memory formats, and the peak memory of the step, each in a process of its
own (see ``bench.contestants``). Time is that of the process, one thread. Exit code 1 if a step takes more than 1.25
times the time or 1.3 times the memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from bench.contestants import contestants, race
from bench.memory import apart, peak
from bench.timing import Call
from sre_triton import AddInvariants2d, SREConv2d
from sre_triton.invariants.passes import way_to_add

__all__ = ["CASES", "Case", "Row", "main", "measure"]

_FORMATS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
_MOST_TIME, _MOST_MEMORY = 1.25, 1.3
# Read by the allocator of the C library in processes that measure memory: every map has pages of its own, which go when
# it goes. Otherwise what a freed map leaves behind may or may not fit the next, and the peak is a matter of luck.
_MAPS_ALL = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}


class Case(NamedTuple):
    """A layer's input and its kernel."""

    batch: int
    channels: int
    side: int
    size: int = 9


CASES = (Case(4, 32, 128), Case(4, 64, 64), Case(4, 128, 32), Case(1, 32, 512))


class Row(NamedTuple):
    """How many times as much it takes with invariants, and the milliseconds and megabytes without."""

    case: Case
    format: str
    step: float
    inference: float
    memory: float
    step_ms: float
    memory_mb: float

    @property
    def is_met(self) -> bool:
        return self.step <= _MOST_TIME and self.memory <= _MOST_MEMORY

    def __str__(self) -> str:
        shape = f"{self.case.batch}x{self.case.channels}x{self.case.side}x{self.case.side} k={self.case.size}"
        verdict = "" if self.is_met else "  MISSED"
        return (
            f"{shape:22} {self.format}  step {self.step:5.2f} ({self.step_ms:6.1f} ms)  inference {self.inference:5.2f}"
            f"  memory {self.memory:5.2f} ({self.memory_mb:5.0f} MB){verdict}"
        )


def _layer(case: Case, with_invariants: bool) -> nn.Module:
    conv = SREConv2d(case.channels, case.channels, case.size, padding=case.size // 2)
    return nn.Sequential(conv, AddInvariants2d(case.channels)) if with_invariants else conv


def _input(case: Case, memory_format: str) -> Tensor:
    x = torch.randn(case.batch, case.channels, case.side, case.side)
    return x.contiguous(memory_format=_FORMATS[memory_format])


def _step(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()
    direction = torch.randn_like(x)
    return lambda: torch.autograd.backward(layer(x), direction)


def _inference(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return layer(x)

    return call


_CALLS = {"step": _step, "inference": _inference}


def _prepare(with_invariants: bool, case: Case, memory_format: str, kind: str) -> tuple[Call, None]:
    return _CALLS[kind](_layer(case, with_invariants), _input(case, memory_format)), None


def _peak_of_step(case: Case, memory_format: str, with_invariants: bool) -> int:
    torch.set_num_threads(1)
    small = case._replace(batch=1, side=8)
    _step(_layer(small, with_invariants), _input(small, memory_format))()
    baseline = peak("cpu")
    x = _input(case, memory_format).requires_grad_()
    layer = _layer(case, with_invariants)
    y = layer(x)
    y.backward(torch.ones_like(y))
    return peak("cpu") - baseline


def measure(ready: Mapping[bool, Connection], case: Case, memory_format: str, rounds: int) -> Row:
    """One row of the table."""
    seconds = {kind: race(ready, (case, memory_format, kind), rounds)[1] for kind in _CALLS}
    ratios = {kind: median(b / a for a, b in zip(of[False], of[True], strict=True)) for kind, of in seconds.items()}
    without, with_them = (apart(_peak_of_step, case, memory_format, on) for on in (False, True))
    return Row(
        case,
        memory_format,
        ratios["step"],
        ratios["inference"],
        with_them / without,
        1e3 * median(seconds["step"][False]),
        without / 2**20,
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the table; see the top of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.invariants", description="cost of adding invariants to rings"
    )
    parser.add_argument("--rounds", type=int, default=9, help="of which medians are taken (default: %(default)s)")
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    way = way_to_add(torch.zeros(1, 1, 1, 1), AddInvariants2d(1).spec)
    print(f"with invariants over without, one thread; invariants: {way}")
    rows = []
    both = {on: partial(_prepare, on) for on in (False, True)}
    with contestants(both, 1) as ready, mock.patch.dict(os.environ, _MAPS_ALL):
        for case in CASES:
            for memory_format in _FORMATS:
                rows.append(measure(ready, case, memory_format, rounds))
                print(rows[-1], flush=True)
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
