"""``python -m bench --losses``: layers with next to nothing to save, on which a drop-in must not be slower than what it
replaces.

Each is called as users call it, in inference and in a training step, in both memory formats, and raced against
``nn.Conv2d`` in the same format and in the one that is faster for *it*: a ratio below one to the latter is a loss.
Every contestant has a process of its own (see ``bench.contestants``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from bench import contestants, timing
from bench.cases import Case
from bench.layers import MEMORY_FORMATS, dense_layer, ring_layer, task
from sre_triton.planning.plan import recording

__all__ = ["GOAL", "LAYERS", "MODES", "Loss", "main", "race"]

GOAL = 0.97
ROUNDS = 31
MODES = {"infer": False, "train": True}

# The layers of MobileNet, EfficientNet, ConvNeXt and ResNeXt that rings save least on.
LAYERS = (
    Case("depthwise.144@56", 2, 4, 144, 144, 56, groups=144, kernel_sizes=(3,)),
    Case("depthwise.96@56", 2, 4, 96, 96, 56, groups=96, kernel_sizes=(7,)),
    Case("depthwise.480@14", 2, 8, 480, 480, 14, groups=480, kernel_sizes=(5,)),
    Case("pointwise.64@56", 2, 4, 64, 64, 56, kernel_sizes=(1,)),
    Case("pointwise.256@14", 2, 8, 256, 256, 14, kernel_sizes=(1,)),
    Case("stem.3-32@224/2", 2, 2, 3, 32, 224, stride=2, kernel_sizes=(3,)),
    Case("grouped32.128@56", 2, 2, 128, 128, 56, groups=32, kernel_sizes=(3,)),
    Case("grouped32.512@14", 2, 8, 512, 512, 14, groups=32, kernel_sizes=(3,)),
)

_LAYERS_OF = {"ours": ring_layer, "nn.Conv2d": dense_layer}
_FORMATS = tuple(MEMORY_FORMATS[2])


@dataclass(frozen=True)
class Loss:
    """One layer in one mode and memory format, against nn.Conv2d."""

    case: str
    k: int
    mode: str
    memory_format: str
    milliseconds: float  # ours, median
    ratio: float  # median over rounds of the time of nn.Conv2d in its faster format over ours
    same: float  # the same of nn.Conv2d in our format
    rival: str  # nn.Conv2d's faster format
    plan: str

    @property
    def is_loss(self) -> bool:
        return self.ratio < GOAL


def _prepare(kind: str, memory_format: str, case: Case, k: int, mode: str) -> tuple[timing.Call, str]:
    """A call of a layer, and its plan."""
    x = torch.randn(case.input_shape).contiguous(memory_format=MEMORY_FORMATS[case.ndim][memory_format])
    call = task(_LAYERS_OF[kind](case, k), x, train=MODES[mode])
    with recording() as records:
        call()
    return call, " / ".join(plan.backend for _, plan in records)


def race(ready: Mapping[tuple[str, str], Connection], case: Case, k: int, mode: str, rounds: int) -> list[Loss]:
    """Races a layer in every memory format, in turns."""
    plans, seconds = contestants.race(ready, (case, k, mode), rounds)
    rival = min(_FORMATS, key=lambda memory_format: median(seconds["nn.Conv2d", memory_format]))
    found = []
    for memory_format in _FORMATS:
        ours = seconds["ours", memory_format]
        ratio, same = (
            median(theirs / own for theirs, own in zip(seconds["nn.Conv2d", other], ours, strict=True))
            for other in (rival, memory_format)
        )
        plan = str(plans["ours", memory_format])
        found.append(Loss(case.name, k, mode, memory_format, 1e3 * median(ours), ratio, same, rival, plan))
    return found


def main(name: str = "", threads: int = 1, rounds: int = ROUNDS) -> int:
    """Races the layers whose name contains ``name``, prints them, and returns 1 if one is slower than nn.Conv2d, else
    0. One that seems to be is raced again, since it may have been a busy moment."""
    table = Table(title=f"nn.Conv2d's time over ours ({threads} threads); below {GOAL} is a loss")
    for heading in ("layer", "k", "mode", "format", "ms", "ratio", "its format", "same format", "plan"):
        table.add_column(heading)
    losses = 0
    kinds = {(kind, form): partial(_prepare, kind, form) for kind in _LAYERS_OF for form in _FORMATS}
    with contestants.contestants(kinds, threads) as ready:
        races = [(case, k, mode) for case in LAYERS if name in case.name for k in case.kernel_sizes for mode in MODES]
        for case, k, mode in races:
            found = race(ready, case, k, mode, rounds)
            if any(loss.is_loss for loss in found):
                again = race(ready, case, k, mode, rounds)
                found = [max(pair, key=lambda loss: loss.ratio) for pair in zip(found, again, strict=True)]
            for loss in found:
                losses += loss.is_loss
                table.add_row(
                    loss.case, str(loss.k), loss.mode, loss.memory_format, f"{loss.milliseconds:.3f}",
                    f"{loss.ratio:.2f}", loss.rival, f"{loss.same:.2f}", loss.plan,
                    style="bold red" if loss.is_loss else None,
                )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"{losses} of {table.row_count} are slower than nn.Conv2d by more than {1 - GOAL:.0%}")
    return int(losses > 0)
