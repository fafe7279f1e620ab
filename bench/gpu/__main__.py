"""Correctness and speed on the GPU of this machine, in one command and seven minutes.

    python -m bench.gpu [--out DIR] [--minutes 7]    needs torch, triton and numpy, from the source tree
    python -m bench.gpu --quick                      a sample on tiny inputs: does everything run here?
    python -m bench.gpu --list                       what runs, in its order; needs no GPU

Writes ``gpu-<name>.json`` after every result, and what it prints to ``gpu-<name>.log``; SIGTERM and Ctrl-C end it
with everything saved. In ``~/.cache/sre_triton``, or to ship with the package in ``sre_triton/backends/measured``, the
JSON is what the planner goes by on this GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from bench.gpu import cases, checks
from bench.gpu.record import Clock
from bench.gpu.run import run

__all__ = ["main"]

_SPARE_CORES = 2  # for this process and the one that launches


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = Path(__file__).parents[1] / "results"
    parser.add_argument("--out", type=Path, default=results, metavar="DIR", help="where reports go: %(default)s")
    parser.add_argument("--minutes", type=float, default=7, help="stop cleanly after this long: %(default)s")
    parser.add_argument("--limit", type=float, default=60, help="seconds after which a job is killed: %(default)s")
    parser.add_argument("--workers", type=int, default=_workers(), help="processes that compile: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a sample on tiny inputs, to see whether it runs")
    parser.add_argument("--list", action="store_true", help="print what would run and stop")
    options = parser.parse_args(argv)
    for name in ("minutes", "limit", "workers"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    clock = Clock(60 * options.minutes)
    workload = cases.quick() if options.quick else cases.full()
    if options.list:
        print("\n".join([*(what for _, what, *_ in checks.jobs(workload)), *map(str, workload.cases)]))
        print("\n".join(map(str, workload.networks)))
        return 0
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA or ROCm device on this machine")
        return 2
    return run(workload, options.out, clock, options.workers, options.limit)


def _workers() -> int:
    return max(1, len(os.sched_getaffinity(0)) - _SPARE_CORES)


if __name__ == "__main__":
    sys.exit(main())
