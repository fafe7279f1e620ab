"""``python -m bench``: runs the suite in a fresh process and shows what it measured."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from bench import report

SUITE = Path(__file__).with_name("test_layers.py")
RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case of each kind, few rounds")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--k", default="3,5,9", help="only these kernel sizes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")
    parser.add_argument(
        "--json",
        type=Path,
        help="where to write the figures (default, if complete: results/cpu.json, or cpu-pure.json without native)",
    )
    parser.add_argument("--png", type=Path, default=RESULTS / "cpu.png", help="where to draw them (.png, .pdf, .svg)")
    parser.add_argument(
        "--planner-check", action="store_true", help="race the planned path against the dense one instead"
    )
    parser.add_argument(
        "--losses", action="store_true", help="race the layers with next to nothing to save against nn.Conv2d instead"
    )
    options = parser.parse_args(arguments)
    if options.losses:
        from bench import losses

        return losses.main(options.filter, options.threads)
    if options.planner_check:
        from bench.fit_plan import check_registry

        return check_registry(options.filter)

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "benchmarks.json"
        status = _run_suite(options, raw)
        benchmarks = json.loads(raw.read_text())["benchmarks"] if raw.exists() and raw.stat().st_size else []
    if not benchmarks:
        print("nothing was measured", file=sys.stderr)
        return status or 1
    rows = report.rows(benchmarks)
    environment = report.environment(options.threads)
    measured = (
        f"{environment['cpu']}, {options.threads} threads, {'with' if environment['native'] else 'without'} the native "
        "kernel. Fastest rounds; nn.Conv in its faster memory format."
    )
    caption = f"{measured} Lower is better in 'time / floor' and 'memory' (of a training step, over nn.Conv's)."
    Console(width=None if sys.stdout.isatty() else 200).print(report.table(rows, caption))
    complete = not (options.quick or options.filter or options.k != "3,5,9")
    name = "cpu.json" if environment["native"] else "cpu-pure.json"
    path = options.json or (RESULTS / name if complete else None)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.to_json(rows, environment) + "\n")
    options.png.parent.mkdir(parents=True, exist_ok=True)
    report.draw(rows, options.png, measured)
    return status


def _run_suite(options: argparse.Namespace, raw: Path) -> int:
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider", "--benchmark-quiet"]
    command += [f"--benchmark-json={raw}", f"--threads={options.threads}", f"--sizes={options.k}"]
    command += [f"--case={options.filter}", *(["--quick"] if options.quick else [])]
    variables = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    stderr = 2  # stdout is for the table
    return subprocess.run(command, cwd=SUITE.parents[1], env=variables, stdout=stderr).returncode


if __name__ == "__main__":
    sys.exit(main())
