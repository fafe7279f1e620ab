"""What the compilers make of every kernel, without a GPU.

    python -m bench.compile_report [--arch sm_90 ...] [--json PATH]    the whole report
    python -m bench.compile_report --cases gpu --arch sm_90            what bench.gpu launches, on its GPU
    python -m bench.compile_report --check                             a subset, against the committed baseline

Every launch that the library would make over a range of shapes, and all that ``python -m bench.gpu`` makes, is
compiled ahead of time. A row says what the machine code holds; ``default`` marks the tile that the heuristic picks for
a plain layer of that kernel size with 64 channels.
``instructions_per_element_tap`` counts lane instructions: machine instructions of one program, loop trips
counted, times its threads, over its output pixels x input channels x k^D taps of the *dense* kernel, for 64 input
channels whatever layers use the tile (or for all that it ever sees, where it has no loop over them).

All fail on a spill, an overflow or a missing matrix instruction; ``--check`` also on an instruction count 10%
above the baseline.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton

from bench import aot
from bench.gpu.cases import Layer, full
from sre_triton.backends.triton import devices, launch
from sre_triton.geometry.conv import ConvSpec, conv_spec

BASELINE = Path(__file__).parent / "results" / "compile_baseline.json"
TOLERANCE = 1.10
REFERENCE_CHANNELS = 64
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

LINES, ALL_KINDS = (0, 1), (0, 1, 2, 3)  # invariants: those of the networks, gradient and anisotropy, and every one

_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer and image whose launches are compiled."""

    operation: str = "forward"
    kernel_size: int = 3
    dtype: str = "bf16"
    channels: int | tuple[int, int] = 64  # of input and output, if they differ
    size: int | tuple[int, ...] = 128
    batch: int = 32
    ndim: int = 2
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    antialias: bool = False
    precision: str = "tf32"  # of float32 products

    @classmethod
    def of(cls, layer: Layer, operation: str, precision: str) -> Case:
        """One operation of a layer that the GPU benchmark runs."""
        (dtype,) = (name for name, value in DTYPES.items() if value == layer.dtype)
        return cls(
            operation, layer.kernel_size, dtype, layer.channels, layer.size, layer.batch, len(layer.size), layer.stride,
            layer.dilation, layer.groups, layer.antialias, precision,
        )  # fmt: skip

    @property
    def is_reference(self) -> bool:
        """Whether the tile that this layer gets is called the default of its kernel size."""
        is_plain = (self.ndim, self.stride, self.dilation, self.groups, self.antialias) == (2, 1, 1, 1, False)
        return is_plain and self.channels == REFERENCE_CHANNELS and self.size == 128

    def spec(self) -> ConvSpec:
        k, n = self.kernel_size, self.ndim
        padding = (self.dilation * (k // 2),) * n
        return conv_spec(
            n, k, k // 2 + 1, True, self.antialias, (self.stride,) * n, padding, (self.dilation,) * n, self.groups
        )

    def launches(self, arch: str) -> list[aot.Launch]:
        spec, dtype = self.spec(), DTYPES[self.dtype]
        c_in, c_out = self.channels if isinstance(self.channels, tuple) else (self.channels, self.channels)
        size = self.size if isinstance(self.size, tuple) else (self.size,) * self.ndim

        def tensor(*shape: int) -> torch.Tensor:
            empty = torch.empty(shape, dtype=dtype, device="meta")
            return empty.to(memory_format=_FORMATS[self.ndim]) if len(shape) == self.ndim + 2 else empty

        x = tensor(self.batch, c_in, *size)
        weight = torch.empty(c_out, c_in // self.groups, spec.geometry.num_rings, dtype=dtype, device="meta")
        grad_y = tensor(self.batch, c_out, *spec.output_size(size))
        calls = {
            "forward": lambda: launch.fused_forward(x, weight, None, spec),
            "planned": lambda: launch.forward(x, weight, None, spec),
            "backward": lambda: launch.backward(grad_y, x, weight, spec),
            "two_kernels": lambda: launch.two_kernel_forward(x, weight, None, spec),
            "transpose": lambda: launch.transpose(
                grad_y, weight, None, spec, spec.output_padding(size, grad_y.shape[2:])
            ),
            "weight_grad": lambda: launch.weight_grad(x, grad_y, spec),
            "invariants": lambda: launch.invariants_forward(x, LINES, (1,), 1e-2),
            "invariants_backward": lambda: launch.invariants_backward(
                torch.cat([x] * len(LINES), 1), x, LINES, (1,), 1e-2
            ),
            "all_invariants": lambda: launch.invariants_forward(x, ALL_KINDS, (1, 2), 1e-2),
            "all_invariants_backward": lambda: launch.invariants_backward(
                torch.cat([x] * 8, 1), x, ALL_KINDS, (1, 2), 1e-2
            ),
            "expand": lambda: launch.expand(weight, spec.geometry),
            "collapse": lambda: launch.collapse(launch.expand(weight, spec.geometry), spec.geometry),
        }
        switch: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before, switch.fp32_precision = switch.fp32_precision, self.precision
        try:
            return aot.record(calls[self.operation], arch)
        finally:
            switch.fp32_precision = before


def quick_cases() -> Iterator[Case]:
    """What CI compiles: the default tile of kernel sizes with an even and an odd number of rings, a loop over
    channels, and one kernel of each other kind."""
    for k in (3, 5, 9):
        yield Case(kernel_size=k)
    yield Case(kernel_size=5, channels=128)
    yield Case(kernel_size=5, groups=64)
    yield Case("weight_grad", kernel_size=5)
    for operation in ("invariants", "invariants_backward"):
        yield Case(operation, size=64, batch=4)


KERNEL_SIZES = (3, 5, 7, 9, 11)
CHANNELS = (64, 128, 256, 512, 32, 16)
SIZES = (128, 32, 14, 7)


def cases() -> Iterator[Case]:
    """The heuristic's range: kernel sizes, dtypes, channels and image sizes crossed, then one variation at a time."""
    for k, dtype, channels, size in itertools.product(KERNEL_SIZES, DTYPES, CHANNELS, SIZES):
        yield Case(kernel_size=k, dtype=dtype, channels=channels, size=size)
    for k, dtype in itertools.product(KERNEL_SIZES, DTYPES):
        yield Case(kernel_size=k, dtype=dtype, channels=3, size=32)
        for channels, size in itertools.product((64, 256), (128, 14)):
            yield Case("weight_grad", k, dtype, channels, size)
            for operation in ("forward", "weight_grad"):
                yield Case(operation, k, dtype, channels, size, groups=channels)
    for k, dtype, size in itertools.product((7, 9, 11), ("bf16", "fp16"), (14, 32)):
        yield Case("two_kernels", k, dtype, channels=256, size=size)
    for k, dtype in itertools.product((3, 5, 9), DTYPES):
        yield Case(kernel_size=k, dtype=dtype, stride=2)
        yield Case("transpose", k, dtype, stride=2)
        yield Case(kernel_size=k, dtype=dtype, dilation=2)
        yield Case(kernel_size=k, dtype=dtype, antialias=True)
        yield Case(kernel_size=k, dtype=dtype, ndim=1, size=4096)
        yield Case(kernel_size=k, dtype=dtype, channels=128, groups=4)
    for k, dtype in itertools.product((3, 5), DTYPES):
        yield Case(kernel_size=k, dtype=dtype, ndim=3, size=32, batch=4)
    for operation, dtype in itertools.product(("expand", "collapse"), DTYPES):
        yield Case(operation, 9, dtype)
    for ndim, dtype, which in itertools.product((2, 3), DTYPES, ("invariants", "all_invariants")):
        for operation in (which, f"{which}_backward"):
            yield Case(operation, 3, dtype, size=64 if ndim == 2 else 16, batch=4, ndim=ndim)


def gpu_cases() -> Iterator[Case]:
    """What the GPU benchmark launches, at its sizes and batches: checks, table and networks; float32 as PyTorch
    multiplies it by default and in full."""
    workload = full()
    layers = [*workload.checks, *workload.tiled, *(case.layer for case in workload.cases)]
    layers += [layer for network in workload.networks for layer in network.layers()]
    layers += [dataclasses.replace(case.layer, dtype=torch.float32) for case in workload.cases]
    for layer, operation in itertools.product(layers, ("planned", "forward", "transpose", "weight_grad", "backward")):
        for precision in ("tf32", "ieee") if layer.dtype == torch.float32 else ("tf32",):
            yield Case.of(layer, operation, precision)


def rows(archs: list[str], selection: list[Case], jobs: int = 1) -> Iterator[dict[str, Any]]:
    """One row per distinct kernel, in the order of the cases; ``jobs`` of them are compiled side by side."""
    kernels = distinct(archs, selection)
    if jobs == 1:
        yield from map(_row, kernels)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_row, kernels)


def distinct(archs: list[str], selection: list[Case]) -> Iterator[tuple[str, Case, int]]:
    """Architecture, case and which of its launches, for kernels that no earlier launch has."""
    for arch in archs:
        seen = set()
        for case in selection:
            for position, call in enumerate(case.launches(arch)):
                key = json.dumps({**describe(case, call, arch), "default": None})
                if key not in seen:
                    seen.add(key)
                    yield arch, case, position


def _row(kernel: tuple[str, Case, int]) -> dict[str, Any]:
    arch, case, position = kernel
    call = case.launches(arch)[position]
    return describe(case, call, arch) | compiled(case, call, arch)


_SHOWN = ("R", "BM", "BN", "BC", "BK", "BS", "BU", "BP", "BO", "BT", "EVEN_K", "ONE_BLOCK", "KINDS", "DILATIONS")


def describe(case: Case, call: aot.Launch, arch: str) -> dict[str, Any]:
    blocks = {
        name: call.arguments[name]
        for name in (
            "R",
            "BM",
            "BN",
            "BC",
            "BK",
            "BS",
            "BU",
            "BP",
            "BO",
            "BT",
            "EVEN_K",
            "ONE_BLOCK",
            "KINDS",
            "DILATIONS",
        )
        if name in call.arguments
    }
    variation = {
        name: value
        for name, value in dataclasses.asdict(case).items()
        if name in ("ndim", "stride", "dilation", "groups", "antialias") and value != getattr(Case, name)
    }
    if case.dtype == "fp32" and call.arguments.get("PRECISION") == "ieee":
        variation["precision"] = "ieee"
    if (
        "BN" in call.arguments and call.arguments.get("s_wo", 1) != 1
    ):  # ring weights as they lie in memory, loaded one by one
        variation["loose_weights"] = True
    taps = call.arguments.get("TAPS")
    if taps is not None and (case.operation, case.stride) == ("transpose", 2):
        variation["taps"] = len(taps.rows) * taps.num_columns
    return {
        "kernel": call.kernel.__name__,
        "arch": arch,
        "dtype": case.dtype,
        "kernel_size": case.kernel_size,
        "config": blocks | variation | call.options,
        "default": case.is_reference,
    }


def compiled(case: Case, call: aot.Launch, arch: str) -> dict[str, Any]:
    result: dict[str, Any] = dict.fromkeys(
        ("registers", "spill_bytes", "shared_bytes", "mma", "instructions_per_element_tap", "tensor_memory", "error")
    )
    arguments = call.arguments
    c_in, block = arguments.get("c_in", 1), arguments.get("BK") or arguments.get("BC") or 1
    if "BK" in arguments and not arguments.get("ONE_BLOCK", True):
        c_in = REFERENCE_CHANNELS
    trips = c_in if "BC" in arguments else triton.cdiv(c_in, block)
    try:
        binary = aot.build(call, arch, trips)
    except Exception as error:  # whatever a compiler raises is a finding
        return result | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    result |= {
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "shared_bytes": binary.shared_bytes,
        "mma": binary.mma,
        "tensor_memory": binary.tensor_memory,
    }
    if "fwd" in call.kernel.__name__:
        threads = call.options["num_warps"] * devices.limits_of(arch).warp_size
        channels = c_in * block if "BC" in arguments else c_in
        work = arguments["R"] * arguments["BM"] * channels * case.kernel_size**case.ndim
        result["instructions_per_element_tap"] = round(binary.instructions * threads / work, 4)
    return result


def failures(found: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[str]:
    """What CI refuses, one line each."""
    known = {_key(row): row for row in baseline}
    problems = []
    for row in found:
        name = f"{row['kernel']} {row['arch']} {row['dtype']} k={row['kernel_size']} {row['config']}"
        if row["error"]:
            problems.append(f"{name}: {row['error']}")
            continue
        if row["spill_bytes"]:
            problems.append(f"{name}: spills {row['spill_bytes']} bytes")
        if needs_matrix_instruction(row) and row["mma"] == "none":
            problems.append(f"{name}: no matrix instruction")
        count, before = row["instructions_per_element_tap"], known.get(_key(row))
        if count is None:
            continue
        if before is None:
            problems.append(f"{name}: not in the baseline; run python -m bench.compile_report --json {BASELINE}")
        elif count > TOLERANCE * before["instructions_per_element_tap"]:
            problems.append(
                f"{name}: {count} instructions per element-tap, {before['instructions_per_element_tap']} before"
            )
    return problems


def needs_matrix_instruction(row: dict[str, Any]) -> bool:
    """Whether it multiplies, and not in full float32, for which GPUs have no such instruction."""
    is_product = row["kernel"] in ("ring_conv_fwd_kernel", "ring_conv_bwd_kernel_w")
    return is_product and row["config"].get("precision") != "ieee"


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["kernel"], row["arch"], row["dtype"], row["kernel_size"], row["config"]], sort_keys=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.compile_report", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=sorted(aot.TARGETS), default=list(aot.TARGETS))
    parser.add_argument("--cases", choices=("all", "gpu"), default="all", help="what to compile (default: all)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows here")
    parser.add_argument("--check", action="store_true", help="compile a subset and compare it with the baseline")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at a time (default: cores)")
    options = parser.parse_args(argv)
    every = () if options.cases == "gpu" else cases()
    selection = list(quick_cases() if options.check else (*every, *gpu_cases()))
    found = []
    for row in rows(options.arch, selection, options.jobs):
        found.append(row)
        print(line(row), flush=True)
    if options.json:
        options.json.write_text(as_json(found))
    problems = failures(found, json.loads(BASELINE.read_text())["rows"] if options.check else found)
    print("\n".join(problems) or f"{len(found)} kernels: no spill, no overflow, no loss")
    return bool(problems)


def as_json(found: list[dict[str, Any]]) -> str:
    """The report as a file, one line per row."""
    head = json.dumps({"triton": triton.__version__, "torch": torch.__version__.split("+")[0]})
    lines = ",\n".join(json.dumps(row) for row in found)
    return f'{head[:-1]}, "rows": [\n{lines}\n]}}\n'


def line(row: dict[str, Any]) -> str:
    config = " ".join(f"{name}={value}" for name, value in row["config"].items())
    head = f"{row['arch']:7} {row['dtype']} k={row['kernel_size']:<2} {row['kernel']:32}"
    if row["error"]:
        return f"{head} {config}: {row['error']}"
    count = row["instructions_per_element_tap"]
    return (
        f"{head} {'*' if row['default'] else ' '} {row['registers']:3} registers, {row['spill_bytes']} spilled, "
        f"{row['shared_bytes']} shared, {row['mma']}"
        f"{'' if count is None else f', {count:.3f} per element-tap'}  {config}"
    )


if __name__ == "__main__":
    sys.exit(main())
