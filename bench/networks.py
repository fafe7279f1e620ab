"""``python -m bench.networks``: training steps and inference of whole networks, side by side.

A ResNet-18 of rings [9, 9, 5, 5], run by this package and by the reference package, against an ordinary 3x3
ResNet-18 with the same stem, strides and pooling. All networks are timed in turns and in one process, so that
whatever else the machine does slows down all of them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench import report, timing
from bench.layers import MEMORY_FORMATS, reference_module
from sre_triton.models import get_model
from sre_triton.models.resnet import ResNet

__all__ = ["CASES", "NetworkCase", "Row", "contestants", "main", "measure", "table", "task"]

OURS, REFERENCE, PLAIN = "sre_triton", "reference", "plain 3x3"
MODES = ("train", "infer", "fused")
_SIZES = [9, 9, 5, 5]


@dataclass(frozen=True)
class NetworkCase:
    """A ring network, the reference package's file that holds the same network, and its plain twin."""

    name: str
    package: str
    file: str
    size_argument: str
    plain: str = "resnet18"


CASES = (
    NetworkCase("sre_resnet18", "SRE_Conv", "sre_resnet", "sre_conv_size"),
    NetworkCase("gmr_resnet18", "GMR_Conv", "gmr_resnet", "gmr_conv_size"),
)


@dataclass(frozen=True)
class Row:
    """Times of one case in one mode by contestant."""

    case: str
    mode: str
    times: dict[str, timing.Times]

    def best(self, name: str) -> tuple[str, float]:
        """The memory format in which a contestant is fastest, and its median seconds there."""
        medians = {label: t.median for label, t in self.times.items() if label.startswith(name)}
        label = min(medians, key=lambda label: medians[label])
        return label.removeprefix(name).strip(), medians[label]

    @property
    def reference_over_ours(self) -> float:
        """How many times faster than the reference."""
        return self.best(REFERENCE)[1] / self.best(OURS)[1]

    @property
    def ours_over_plain(self) -> float:
        """How many times slower than the plain network."""
        return self.best(OURS)[1] / self.best(PLAIN)[1]


def contestants(case: NetworkCase) -> dict[str, tuple[nn.Module, str]]:
    """Networks and their memory format, by name."""
    options: dict[str, Any] = {"num_classes": 9, "skip_first_maxpool": True}
    build = getattr(reference_module(case.package, case.file), case.name)
    entries: dict[str, tuple[nn.Module, str]] = {}
    for layout in MEMORY_FORMATS[2]:
        entries[f"{REFERENCE} {layout}"] = (build(**{case.size_argument: _SIZES}, **options), layout)
        entries[f"{OURS} {layout}"] = (get_model(case.name, sre_conv_size=_SIZES, **options), layout)
        entries[f"{PLAIN} {layout}"] = (get_model(case.plain, **options), layout)
    return entries


def task(network: nn.Module, x: Tensor, layout: str, mode: str) -> Callable[[], object]:
    """A forward and a backward pass to every parameter, or a forward pass in eval mode; "fused" folds batch
    normalisation before, in networks that can (the reference package's cannot)."""
    memory_format = MEMORY_FORMATS[2][layout]
    x = x.contiguous(memory_format=memory_format)
    network = network.to(memory_format=memory_format).train(mode == "train")  # type: ignore[call-overload]
    if mode == "fused" and isinstance(network, ResNet):
        network = network.fuse()
    if mode != "train":

        def infer() -> None:
            with torch.inference_mode():
                network(x)

        return infer
    target = torch.arange(len(x)) % 9

    def step() -> None:
        network.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x), target).backward()

    return step


def measure(case: NetworkCase, mode: str, batch: int, size: int, rounds: int, threads: int) -> Row:
    """Times of all contestants, taken in turns."""
    x = torch.randn(batch, 3, size, size)
    calls = {name: task(network, x, layout, mode) for name, (network, layout) in contestants(case).items()}
    return Row(case.name, mode, timing.race(calls, rounds, timing.clock_for("cpu", threads)))


def table(rows: Sequence[Row], caption: str) -> Table:
    """Medians, and the two ratios that matter."""
    result = Table(title="Milliseconds per call: median (interquartile range)", caption=caption)
    for heading in ("network", "mode", *rows[0].times):
        result.add_column(heading, justify="left" if heading in ("network", "mode") else "right")
    result.add_column("reference / ours", justify="right")
    result.add_column("ours / plain", justify="right")
    for row in rows:
        cells = [f"{1e3 * t.median:.0f} ({1e3 * t.iqr:.0f})" for t in row.times.values()]
        result.add_row(row.case, row.mode, *cells, f"{row.reference_over_ours:.2f}", f"{row.ours_over_plain:.2f}")
    return result


def to_json(rows: Sequence[Row], setting: dict[str, Any]) -> str:
    """Everything that was measured."""
    figures = [
        {
            "network": row.case,
            "mode": row.mode,
            "seconds": {name: list(t.seconds) for name, t in row.times.items()},
            "reference / ours": row.reference_over_ours,
            "ours / plain": row.ours_over_plain,
        }
        for row in rows
    ]
    return json.dumps({"setting": setting, "networks": figures}, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--filter", default="", help="only networks whose name contains this")
    parser.add_argument("--mode", choices=MODES, help="only this one")
    parser.add_argument("--batch", type=int, default=16, help="images per call (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of an image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each network (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.filter in case.name]
    if not cases:
        print(f"no network's name contains {options.filter!r}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    modes = [options.mode] if options.mode else MODES
    rows = [
        measure(case, mode, options.batch, options.size, options.rounds, options.threads)
        for case in cases
        for mode in modes
    ]
    environment = report.environment(options.threads)
    caption = (
        f"batch {options.batch}, {options.size} x {options.size} pixels, {environment['cpu']}, "
        f"threads {options.threads}. The ratios take the faster memory format of each."
    )
    Console(width=None if sys.stdout.isatty() else 180).print(table(rows, caption))
    if options.json:
        setting = {"batch": options.batch, "size": options.size, "rounds": options.rounds, **environment}
        partial = options.json.with_name(options.json.name + ".part")
        partial.write_text(to_json(rows, setting) + "\n")
        partial.replace(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
