"""``python -m bench.revisions CHECKOUT``: whole networks of this checkout against those of another one.

Each checkout has a process of its own, and so has the plain network. They take turns, call by call, so that whatever
else the machine does slows down all of them alike. Build the native kernels first, by ``make native`` in each checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import report

__all__ = ["Worker", "main", "race", "table"]

HERE = Path(__file__).resolve().parents[1]
RING, PLAIN = "sre_resnet18", "resnet18"
CASES = tuple((mode, layout) for mode in ("fused", "train") for layout in ("nchw", "channels_last"))


class Worker:
    """A process that times networks of the checkout at ``root``."""

    def __init__(self, root: Path, network: str, threads: int, batch: int, size: int) -> None:
        self.network = network
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
        worker = [sys.executable, str(HERE / "bench" / "revision_worker.py"), *map(str, (threads, batch, size))]
        self._process = subprocess.Popen(
            worker, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        place, self.version = self._answer()
        if not Path(place).resolve().is_relative_to(root):
            self.close()
            raise RuntimeError(f"a process for {root} imported sre_triton from {place}")

    def seconds(self, mode: str, layout: str) -> float:
        """Time of one call."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([self.network, mode, layout]) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process that times {self.network} ended with status {self._process.wait()}")
        return json.loads(line)


def race(workers: dict[str, Worker], rounds: int) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Seconds of every worker in every case, in turns, after two calls to warm up."""
    times: dict[tuple[str, str], dict[str, list[float]]] = {}
    for case in CASES:
        samples = times[case] = {name: [] for name in workers}
        for number in range(rounds + 2):
            for name, worker in workers.items():
                seconds = worker.seconds(*case)
                if number >= 2:
                    samples[name].append(seconds)
    return times


def table(times: dict[tuple[str, str], dict[str, list[float]]], caption: str) -> Table:
    """Medians, and medians of the ratios of calls that followed upon one another."""
    result = Table(title="Milliseconds per call", caption=caption)
    names = list(next(iter(times.values())))
    for heading in ("mode", "format", *names, "other / here", "plain / here"):
        result.add_column(heading, justify="left" if heading in ("mode", "format") else "right")
    for (mode, layout), samples in times.items():
        medians = [f"{1e3 * statistics.median(samples[name]):.1f}" for name in names]
        ratios = [
            f"{statistics.median(a / b for a, b in zip(samples[name], samples['here'], strict=True)):.2f}"
            for name in ("other", "plain")
        ]
        result.add_row(mode, layout, *medians, *ratios)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.revisions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="the other one, made by `git worktree add FOLDER REVISION`")
    parser.add_argument("--batch", type=int, default=16, help="images per call (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of an image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="timings of each network (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")
    options = parser.parse_args(arguments)
    other = options.checkout.resolve()
    if not (other / "sre_triton" / "__init__.py").exists():
        print(f"checkout must be a folder that holds sre_triton/, got {options.checkout}", file=sys.stderr)
        return 2
    setting = options.threads, options.batch, options.size
    workers: dict[str, Worker] = {}
    try:
        for name, root, network in (("here", HERE, RING), ("other", other, RING), ("plain", HERE, PLAIN)):
            workers[name] = Worker(root, network, *setting)
        times = race(workers, options.rounds)
    finally:
        for worker in workers.values():
            worker.close()
    caption = (
        f"{RING} of kernel sizes 9, 9, 5, 5 here and in {other.name} ({workers['other'].version}), and {PLAIN}; "
        f"batch {options.batch}, {options.size} x {options.size} pixels, {report.environment(options.threads)['cpu']}, "
        f"threads {options.threads}"
    )
    Console(width=None if sys.stdout.isatty() else 120).print(table(times, caption))
    return 0


if __name__ == "__main__":
    sys.exit(main())
