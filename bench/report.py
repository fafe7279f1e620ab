"""What the suite measured, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from rich.table import Table

from bench.layers import DENSE, FLOOR, GMR, OURS, SRE
from sre_triton.backends import native
from sre_triton.training.figures.style import COLOURS, DOUBLE, MARKERS, drawing

__all__ = ["Row", "draw", "environment", "means", "rows", "table", "to_json"]


# Libraries take and keep up to this much for themselves, so less is not told apart.
_LEAST_BYTES = 8 << 20


@dataclass(frozen=True)
class Row:
    """One case at one kernel size on one device: the ``extra_info`` of its tests, by mode."""

    case: str
    k: int
    device: str
    modes: dict[str, dict[str, Any]]

    @property
    def in_mean(self) -> bool:
        return all(mode["in_mean"] for mode in self.modes.values())

    @property
    def ndim(self) -> int:
        return int(next(iter(self.modes.values()))["case"]["ndim"])

    def speedup(self, mode: str, rival: str) -> float | None:
        """Time of ``rival`` over ours."""
        ratio: dict[str, float] = self.modes.get(mode, {}).get("ratio", {})
        return ratio.get(rival)

    @property
    def over_floor(self) -> float | None:
        """Our time over that of the floor."""
        ratio = self.speedup("infer", FLOOR)
        return None if ratio is None else 1 / ratio

    @property
    def memory(self) -> float | None:
        """Our peak memory in a training step over that of nn.Conv."""
        peak = self.modes.get("train", {}).get("peak_bytes")
        if peak is None or max(peak.values()) < _LEAST_BYTES:
            return None
        return float(peak[OURS] / max(peak[DENSE], _LEAST_BYTES))

    @property
    def paths(self) -> str:
        """Planned paths, forward and backward."""
        plan = {
            kind: path for mode in ("infer", "train") for kind, path in self.modes.get(mode, {}).get("plan", {}).items()
        }
        return " / ".join(plan.values())


# Heading: (figure of a row, its format).
COLUMNS: dict[str, tuple[Callable[[Row], float | None], str]] = {
    "infer": (lambda row: row.speedup("infer", DENSE), ".2f"),
    "train": (lambda row: row.speedup("train", DENSE), ".2f"),
    "bf16 infer": (lambda row: row.speedup("infer-bf16", DENSE), ".2f"),
    "bf16 train": (lambda row: row.speedup("train-bf16", DENSE), ".2f"),
    "time / floor": (lambda row: row.over_floor, ".2f"),
    "SRE_Conv infer": (lambda row: row.speedup("infer", SRE), ".1f"),
    "SRE_Conv train": (lambda row: row.speedup("train", SRE), ".1f"),
    "GMR_Conv infer": (lambda row: row.speedup("infer", GMR), ".1f"),
    "GMR_Conv train": (lambda row: row.speedup("train", GMR), ".1f"),
    "memory": (lambda row: row.memory, ".2f"),
}


def rows(benchmarks: Sequence[dict[str, Any]]) -> list[Row]:
    """The tests of pytest-benchmark's JSON, those of a case together."""
    modes: dict[tuple[str, int, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        modes[info["case"]["name"], info["k"], info["device"]][info["mode"]] = info
    return [Row(*key, found) for key, found in modes.items()]


def means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Geometric means of every column over the layers of 32 to 512 channels, by dimension and kernel size."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.ndim, row.k)):
        if row.in_mean:
            groups[f"{row.ndim}-D k={row.k} {row.device}"].append(row)
    found: dict[str, dict[str, float]] = {}
    for group, members in groups.items():
        figures = {name: [figure(row) for row in members] for name, (figure, _) in COLUMNS.items()}
        present = {name: [value for value in values if value is not None] for name, values in figures.items()}
        found[group] = {name: geometric_mean(values) for name, values in present.items() if values}
    return found


def table(rows: Sequence[Row], caption: str) -> Table:
    """Speed-ups: above 1 we are faster. ``time / floor`` and ``memory`` are costs: below 1 we need less."""
    result = Table(title="Ring convolution layers: time of the rival over ours", caption=caption)
    result.add_column("case")
    result.add_column("k", justify="right")
    for name in COLUMNS:
        result.add_column(name, justify="right")
    result.add_column("path")
    for row in rows:
        figures = ((figure(row), style) for figure, style in COLUMNS.values())
        cells = ["-" if value is None else format(value, style) for value, style in figures]
        result.add_row(row.case, str(row.k), *cells, row.paths)
    result.add_section()
    for group, figures_of_group in means(rows).items():
        cells = [format(figures_of_group[n], s) if n in figures_of_group else "-" for n, (_, s) in COLUMNS.items()]
        result.add_row(f"geometric mean, {group}", "", *cells, "")
    return result


def environment(threads: int) -> dict[str, Any]:
    """What the figures depend on: versions, processor, threads, and whether the native kernel is built."""
    versions = {}
    for package in ("torch", "triton", "SRE-Conv", "GMR-Conv", "sre-triton"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **versions},
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": threads,
        "native": native.missing() is None,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def to_json(rows: Sequence[Row], environment: dict[str, Any]) -> str:
    """Everything that was measured."""
    cases = [{"case": row.case, "k": row.k, "device": row.device, "modes": row.modes} for row in rows]
    return json.dumps({"environment": environment, "means": means(rows), "cases": cases}, indent=1)


def draw(rows: Sequence[Row], path: Path, caption: str = "") -> None:
    """The speed-up over nn.Conv at inference, and that of the floor, a line of the figure for each layer."""
    shown = [row for row in rows if "infer" in row.modes]
    devices = {row.device for row in shown}
    names = [f"{row.case} ({row.device})" if len(devices) > 1 else row.case for row in shown]
    places = {name: -place for place, name in enumerate(dict.fromkeys(names))}
    caption = f"{caption} Hollow: the floor, one product with ring sums for nothing.".strip()
    with drawing(path, DOUBLE, 0.14 * len(places) + 0.8, caption) as figure:
        axes = figure.subplots()
        for number, k in enumerate(sorted({row.k for row in shown})):
            mine = [(places[name], row) for name, row in zip(names, shown, strict=True) if row.k == k]
            style = {"linestyle": "none", "marker": MARKERS[number], "markersize": 4, "color": COLOURS[number]}
            ours = [row.modes["infer"]["ratio"][DENSE] for _, row in mine]
            floor = [dense / row.modes["infer"]["ratio"][FLOOR] for (_, row), dense in zip(mine, ours, strict=True)]
            axes.plot(ours, [place for place, _ in mine], label=f"kernel size {k}", **style)
            axes.plot(floor, [place for place, _ in mine], markerfacecolor="none", **style)
        axes.axvline(1, color="#606060", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("Times faster than nn.Conv, inference")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(list(places.values()), list(places))
        axes.set_ylim(-len(places) + 0.4, 0.6)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
