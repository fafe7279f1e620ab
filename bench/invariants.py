"""What it costs to add invariants to a ring layer: ``python -m bench.invariants``.

A training step (forward and both gradients) and an inference of ``SREConv2d(C, C, 9)`` alone and followed by
``AddInvariants2d(C)``, in turns and in both memory formats, and the peak memory of the step, each in a process of its
own. Time is that of the process, one thread. Exit code 1 if a step takes more than 1.25 times the time or 1.3 times the
memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.memory import apart, peak
from bench.timing import clock_for, race
from sre_triton import AddInvariants2d, SREConv2d
from sre_triton.invariants.passes import way_to_add

__all__ = ["CASES", "Case", "Row", "main", "measure"]

_FORMATS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
_MOST_TIME, _MOST_MEMORY = 1.25, 1.3


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


def _peak_of_step(case: Case, memory_format: str, with_invariants: bool) -> int:
    torch.set_num_threads(1)
    _step(
        _layer(case._replace(batch=1, side=8), with_invariants), _input(case._replace(batch=1, side=8), memory_format)
    )()
    baseline = peak("cpu")
    x = _input(case, memory_format).requires_grad_()
    layer = _layer(case, with_invariants)
    y = layer(x)
    y.backward(torch.ones_like(y))
    return peak("cpu") - baseline


def measure(case: Case, memory_format: str, rounds: int) -> Row:
    """One row of the table."""
    x = _input(case, memory_format)
    plain, added = (_layer(case, on) for on in (False, True))
    calls = {
        "step": _step(plain, x),
        "step+": _step(added, x),
        "inference": _inference(plain, x),
        "inference+": _inference(added, x),
    }
    times = {name: found.median for name, found in race(calls, rounds, clock_for("cpu", 1)).items()}
    without, with_them = (apart(_peak_of_step, case, memory_format, on) for on in (False, True))
    return Row(
        case,
        memory_format,
        times["step+"] / times["step"],
        times["inference+"] / times["inference"],
        with_them / without,
        1e3 * times["step"],
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
    for case in CASES:
        for memory_format in _FORMATS:
            rows.append(measure(case, memory_format, rounds))
            print(rows[-1], flush=True)
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
