"""``python -m bench.scaling``: how much faster layers are with more threads, ours and nn.Conv's.

Both run with one thread and with several in turns, on wall time: unlike ratios between layers, these
figures are only as good as the machine is idle.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import geometric_mean

import torch
from rich.console import Console
from rich.table import Table

from bench import layers, timing
from bench.cases import Case, cases

__all__ = ["main", "scaling"]

# Enough work for two threads: tens of thousands of pixels times channels.
LARGE = ("resnet32.64@32", "resnet64.64@64", "resnet64.128@32", "unet.32@128", "unet.64@64", "unet.128@32")
KERNEL_SIZES = (3, 5, 9)
ROUNDS = 8


def scaling(case: Case, k: int, threads: int, *, train: bool) -> dict[str, float]:
    """Time with one thread over time with ``threads``, by layer, for channels_last input."""
    x = torch.randn(case.input_shape).contiguous(memory_format=layers.MEMORY_FORMATS[case.ndim]["nhwc"])
    calls: dict[tuple[str, int], Callable[[], float]] = {}
    for name, layer in ((layers.OURS, layers.ring_layer(case, k)), (layers.DENSE, layers.dense_layer(case, k))):
        for count in (1, threads):
            calls[name, count] = partial(_with_threads, count, layers.task(layer, x, train=train))
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    before = torch.get_num_threads()
    try:
        for _ in range(ROUNDS):
            for key, call in calls.items():
                seconds[key].append(call())
    finally:
        torch.set_num_threads(before)
    return {name: min(seconds[name, 1]) / min(seconds[name, threads]) for name in (layers.OURS, layers.DENSE)}


def _with_threads(count: int, call: timing.Call) -> float:
    torch.set_num_threads(count)
    call()  # threads that slept wake up here
    return timing.sample(call, 1, time.perf_counter)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads to compare with one (default: %(default)s)")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    options = parser.parse_args(arguments)
    table = Table(title=f"Time with 1 thread over time with {options.threads}")
    for heading in ("case", "k", "pass", layers.OURS, layers.DENSE):
        table.add_column(heading)
    ratios: dict[str, list[float]] = {layers.OURS: [], layers.DENSE: []}
    chosen = [case for case in cases(name=options.filter) if case.name in LARGE]
    for case in chosen:
        for k in KERNEL_SIZES:
            for train in (False, True):
                found = scaling(case, k, options.threads, train=train)
                for name, ratio in found.items():
                    ratios[name].append(ratio)
                table.add_row(case.name, str(k), "train" if train else "infer", *(f"{r:.2f}" for r in found.values()))
    if chosen:
        table.add_row("geometric mean", "", "", *(f"{geometric_mean(r):.2f}" for r in ratios.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
