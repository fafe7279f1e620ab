"""What is printed last: at most 10 kB, the telling rows at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bench.gpu.record import SECTIONS

__all__ = ["line", "network_line", "summary"]

_MOST_FAILURES, _FAILURE = 12, 160
_MOST_ROWS = 28
_HEADING = (
    f"{'k':>2} {'C':>4} {'size':>4} {'pass':8} {'ms':>8} {'dense':>8} {'TFLOP/s':>7} {'x dense':>7} {'x cached':>8} "
    f"{'of floor':>8}"
)


def summary(result: dict[str, Any]) -> str:
    """The report in short."""
    counts = ", ".join(f"{name} {result[name]['checked']}" for name in SECTIONS)
    names = ("gpu", "driver", "torch", "triton", "cudnn")
    failures = [f"{name}: {text}" for name in SECTIONS for text in result[name]["failures"]]
    rows = result["rows"] + result["rows_3d"]
    lines = [
        ", ".join(f"{name} {result.get(name, 'unknown')}" for name in names),
        f"passed: {counts}; sanitizer: {result['sanitizer'][:300]}",
        "seconds: " + ", ".join(f"{name} {spent:.0f}" for name, spent in result["seconds"].items()),
        f"{len(rows)} rows, {len(result['models'])} of networks; {result['ended']}",
        f"{len(failures)} failures" if failures else "no failures",
        *(f"  {text[:_FAILURE]}" for text in failures[:_MOST_FAILURES]),
        *([f"  and {len(failures) - _MOST_FAILURES} more"] if len(failures) > _MOST_FAILURES else []),
        *(network_line(row) for row in result["models"][:_MOST_ROWS]),
        *_means(rows),
        _HEADING,
    ]
    telling = [row for row in rows if row["pass"] in ("forward", "step")]
    # The end of the list is what a terminal still shows: the first, most telling rows go there.
    lines += [line(row) for row in reversed(telling[:_MOST_ROWS])]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    gains = [row["speedup_vs_dense"], row["speedup_vs_cached"]]
    ours, cached = ("wrong" if gain is None else f"{gain:.2f}" for gain in gains)
    share = "-" if row["fraction_of_floor"] is None else f"{row['fraction_of_floor']:.2f}"
    mark = "" if row["is_telling"] else "  says nothing"
    return (
        f"{row['kernel_size']:>2} {row['channels']:>4} {row['size']:>4} {row['pass']:8} {row['ms']:8.3f} "
        f"{row['dense_ms']:8.3f} {row['dense_tflops']:7.0f} {ours:>7} {cached:>8} {share:>8}{mark}"
    )


def network_line(row: dict[str, Any]) -> str:
    gain = row["speedup_vs_dense"]
    found = row["skipped"] or f"{row['ms']:.2f} ms, x dense {'-' if gain is None else f'{gain:.2f}'}"
    return f"{row['model'][:32]} {row['mode']} {row['backend']}: {found[:60]}"


def _means(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Geometric means over rows of at least 128 channels that are right and say something."""
    for k in sorted({row["kernel_size"] for row in rows}):
        parts = []
        for name in ("forward", "grad_x", "grad_w", "step"):
            gains = [
                row["speedup_vs_dense"]
                for row in rows
                if (row["kernel_size"], row["pass"]) == (k, name)
                and row["speedup_vs_dense"] and row["is_telling"] and row["channels"] >= 128
            ]  # fmt: skip
            if gains:
                parts.append(f"{name} {math.exp(sum(map(math.log, gains)) / len(gains)):.2f} ({len(gains)})")
        if parts:
            yield f"k={k}, C >= 128, times dense in the mean: {', '.join(parts)}"
