"""Correctness and speed on the GPU of this machine, in one command and under nine minutes.

    python -m bench.gpu [--out DIR] [--minutes 8.5]     needs torch, triton, numpy and pytest, from the source tree
    python -m bench.gpu --list                          the cases in the order they run; needs no GPU

Correctness comes first: every kernel, dtype and tile against float64 with outputs poisoned by NaN, 20 runs for
determinism, tiles of 8 warps apart. Then the table, most telling rows first, until the time is spent. Every timed
result is checked too; a wrong one gets no speed-up. All times are medians over CUDA-graph replays that rotate
through inputs larger than the L2 cache. Writes ``gpu-<name>.json``; put into ``sre_triton/planning/gpu_tables`` it
is what the planner goes by on this GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu_checks import Clock, check_operations, checks, collect, difference, full_float32, guard, sanitize, submit
from sre_triton.backends import dense
from sre_triton.cache import gpu_file_name
from sre_triton.geometry.conv import ConvSpec, conv_spec

KERNEL_SIZES = (9, 5, 3, 7, 11)
# (channels, size) of the stages of ResNets at 224, 64 and 32 pixels and of U-Nets at 256 and 512.
STAGES = (
    *((64, 56), (128, 28), (256, 14), (512, 7)),
    *((64, 128), (128, 64)),
    *((64, 64), (128, 32), (256, 16), (512, 8)),
    *((64, 32), (128, 16), (256, 8), (512, 4)),
)
PASSES = ("forward", "grad_x", "grad_w", "step")
_ELEMENTS = 2**25  # of the input: enough work for every multiprocessor, more than any cache


@dataclass(frozen=True)
class Case:
    """One row of the table for each pass."""

    kernel_size: int
    channels: int
    size: int

    @property
    def batch(self) -> int:
        return max(1, min(512, _ELEMENTS // (self.channels * self.size**2)))

    @property
    def spec(self) -> ConvSpec:
        k = self.kernel_size
        return conv_spec(2, k, k // 2 + 1, True, False, (1, 1), (k // 2,) * 2, (1, 1), 1)

    def tensors(self, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
        """x, ring weight and grad_y."""
        shape = (self.batch, self.channels, self.size, self.size)
        x = torch.randn(shape, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        rings = self.spec.geometry.num_rings
        weight = torch.randn(self.channels, self.channels, rings, device="cuda", dtype=dtype) / self.channels
        return x, weight, torch.randn_like(x)

    def floor(self, which: str, bandwidth: float, flops: float) -> float:
        """Least seconds that this GPU needs: one pass over the tensors, or the product over rings."""
        pixels = self.batch * self.size**2
        traffic = 2 * pixels * self.channels * 2 / bandwidth
        product = 2 * pixels * self.channels**2 * self.spec.geometry.num_rings / flops
        return max(traffic, product) * (3 if which == "step" else 1)


def cases() -> list[Case]:
    """Most telling first: all kernel sizes on the stages of a ResNet at 224 pixels, then the other stages."""
    first, rest = STAGES[:4], STAGES[4:]
    ordered = [*itertools.product(first, KERNEL_SIZES), *itertools.product(rest, KERNEL_SIZES)]
    return [Case(k, channels, size) for (channels, size), k in ordered]


# Speed ------------------------------------------------------------------------------------------------


def graph_seconds(calls: list[Callable[[], object]]) -> float:
    """Median seconds per call over replays of a CUDA graph that holds each call once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(7):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3 / len(calls))
    return statistics.median(times)


def ceilings() -> tuple[float, float]:
    """Bytes per second of a large copy, and flop per second of a large bfloat16 product."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / graph_seconds([lambda: target.copy_(source)] * 4)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = torch.empty_like(a)
    return bandwidth, 2 * 8192**3 / graph_seconds([lambda: torch.mm(a, a, out=product)] * 4)


def measure(case: Case, bandwidth: float, flops: float) -> list[dict[str, Any]]:
    """One row per pass."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size or 2**25
    _, weight, _ = case.tensors()
    pairs = [case.tensors()[::2] for _ in range(max(2, 2 * l2 // (2 * _ELEMENTS) + 1))]
    spec = case.spec
    kernel = dense.expand(weight, spec.geometry).contiguous(memory_format=torch.channels_last)
    correct = _matches_dense(case, *pairs[0], weight)
    rows = []
    for which in PASSES:
        ours, theirs, cached = (
            _calls(which, path, pairs, weight, kernel, spec) for path in ("triton", "dense", "cached")
        )
        seconds, dense_seconds = graph_seconds(ours), graph_seconds(theirs)
        row = {
            "kernel_size": case.kernel_size,
            "channels": case.channels,
            "size": case.size,
            "batch": case.batch,
            "pass": which,
            "ms": seconds * 1e3,
            "dense_ms": dense_seconds * 1e3,
            "dense_cached_ms": graph_seconds(cached) * 1e3,
            "gmr_ms": None,
            "speedup_vs_dense": dense_seconds / seconds if correct[which] else None,
            "fraction_of_floor": case.floor(which, bandwidth, flops) / seconds,
            "correct": correct[which],
        }
        if which == "forward":
            with guard([], "needs more memory than there is at large kernels"):
                row["gmr_ms"] = graph_seconds([partial(gmr_forward, x, weight, spec) for x, _ in pairs]) * 1e3
        rows.append(row)
    return rows


def _calls(
    which: str, path: str, pairs: list[tuple[Tensor, Tensor]], weight: Tensor, kernel: Tensor, spec: ConvSpec
) -> list[Callable[[], object]]:
    """One call per pair of x and grad_y. "dense" expands the ring weights every time, "cached" never."""
    from sre_triton.backends.triton import launch

    def cached(x: Tensor, grad_y: Tensor) -> object:
        gradients = (which in ("grad_x", "step"), which in ("grad_w", "step"), False)
        y = F.conv2d(x, kernel, None, 1, spec.padding) if which in ("forward", "step") else None
        if which == "forward":
            return y
        return torch.ops.aten.convolution_backward(
            grad_y, x, kernel, None, spec.stride, spec.padding, spec.dilation, False, (0, 0), 1, gradients
        )

    def run(x: Tensor, grad_y: Tensor) -> object:
        if path == "cached":
            return cached(x, grad_y)
        if path == "triton":
            if which == "grad_x":
                return launch.transpose(grad_y, weight, None, spec, (0, 0))
            module: Any = launch
        else:
            module = dense
            if which == "grad_x":
                return dense.transpose(grad_y, weight, None, spec, (0, 0))
        if which == "forward":
            return module.forward(x, weight, None, spec)
        if which == "grad_w":
            return module.weight_grad(x, grad_y, spec)
        return module.forward(x, weight, None, spec), module.backward(grad_y, x, weight, spec)

    return [partial(run, x, g) for x, g in pairs]


def gmr_forward(x: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    """The composition that GMR_Conv uses: every ring's mask over single channels, then a 1x1 convolution."""
    n, c, h, w = x.shape
    masks = torch.as_tensor(spec.geometry.weights.copy(), device=x.device, dtype=x.dtype)
    masks = masks.view(-1, 1, *spec.geometry.kernel_size)
    responses = F.conv2d(x.reshape(n * c, 1, h, w), masks, None, 1, spec.padding)
    return F.conv2d(responses.view(n, -1, h, w), weight.reshape(len(weight), -1, 1, 1))


def _matches_dense(case: Case, x: Tensor, grad_y: Tensor, weight: Tensor) -> dict[str, bool]:
    """Results on one image against float32 without TF32."""
    from sre_triton.backends.triton import launch

    x, grad_y, spec = x[:1], grad_y[:1], case.spec
    with full_float32():
        truth = [dense.forward(x.float(), weight.float(), None, spec)]
        truth += dense.backward(grad_y.float(), x.float(), weight.float(), spec)
    ours = [launch.forward(x, weight, None, spec), *launch.backward(grad_y, x, weight, spec)]
    good = [difference(result, expected.double()) is None for result, expected in zip(ours, truth, strict=True)]
    return dict(zip(PASSES, (*good, all(good)), strict=True))


def model_steps(clock: Clock) -> list[dict[str, Any]]:
    """Training steps of whole networks, eager and compiled, on the dense and on the Triton path."""
    try:
        import sre_triton
        from sre_triton.models import SREUNet, sre_resnet18
    except ImportError as error:
        return [{"model": "all", "skipped": f"not in this source tree: {error}"}]
    rows: list[dict[str, Any]] = []
    networks: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
        "sre_resnet18": (lambda: sre_resnet18(sre_conv_size=[9, 9, 5, 5], num_classes=9), (128, 3, 32, 32)),
        "SREUNet": (SREUNet, (8, 3, 256, 256)),
    }
    for (name, (build, shape)), compiled, path in itertools.product(
        networks.items(), (False, True), ("triton", "dense")
    ):
        row: dict[str, Any] = {"model": name, "compiled": compiled, "path": path}
        rows.append(row)
        if clock.left() < 60:
            row["skipped"] = "time ran out"
            continue
        failures: list[str] = []
        with guard(failures, name), sre_triton.backend(path):
            model = build().cuda().to(memory_format=torch.channels_last)
            row["ms"] = _step_ms(torch.compile(model) if compiled else model, shape)
        row |= {"skipped": failures[0]} if failures else {}
    return rows


def _step_ms(model: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    x = torch.randn(shape, device="cuda").to(memory_format=torch.channels_last)
    times = []
    for index in range(8):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
        torch.cuda.synchronize()
        if index >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


# The run ----------------------------------------------------------------------------------------------


def compile_ahead(case: Case) -> None:
    """Fill Triton's disk cache with the kernels of one case; runs in a worker process."""
    from sre_triton.backends.triton import launch

    x, weight, grad_y = case.tensors()
    launch.forward(x, weight, None, case.spec)
    launch.backward(grad_y, x, weight, case.spec)
    launch.transpose(grad_y, weight, None, case.spec, (0, 0))
    launch.weight_grad(x, grad_y, case.spec)
    torch.cuda.synchronize()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--minutes", type=float, default=8.5, help="stop cleanly after this long")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--sanitized", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(map(str, (*checks(), *cases()))))
        return 0
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA or ROCm device on this machine")
        return 2
    torch.backends.cudnn.benchmark = True
    if options.sanitized:
        return any(failures for _, failures in map(check_operations, checks()[::4]))
    return run(options.out, Clock(60 * options.minutes))


def run(out: Path, clock: Clock) -> int:
    result = machine() | {"complete": False, "rows": [], "models": []}
    out.mkdir(parents=True, exist_ok=True)
    path = out / gpu_file_name(result["gpu"])

    def save() -> None:
        path.write_text(json.dumps(result, indent=1) + "\n")

    workers = max(1, min(8, (os.cpu_count() or 2) - 1))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    jobs = submit(pool)
    ahead = [pool.submit(compile_ahead, case) for case in cases()]
    result |= collect(jobs, clock.left() - 270)
    save()
    # Nothing is timed while workers compile. Telling cases were submitted first.
    wait(ahead, timeout=clock.left() - 240)
    pool.shutdown(wait=True, cancel_futures=True)
    result["sanitizer"] = sanitize()
    bandwidth, flops = ceilings()
    result["ceilings"] = {"copy_bytes_per_second": bandwidth, "gemm_flop_per_second": flops}
    for index, case in enumerate(cases()):
        if index == 4 * len(KERNEL_SIZES):
            result["models"] = model_steps(clock)
        if clock.left() < 20:
            break
        with guard(result["checks"]["failures"], str(case)):
            result["rows"] += measure(case, bandwidth, flops)
        torch.cuda.empty_cache()
        save()
    else:
        result["complete"] = True
    save()
    print(summary(result))
    print(f"written to {path}")
    return bool(result["checks"]["failures"] + result["warps8"]["failures"])


def machine() -> dict[str, Any]:
    import triton

    driver = None
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True).stdout.strip().split("\n")[0]
    return {
        "gpu": torch.cuda.get_device_name(),
        "dtype": "bfloat16",
        "driver": driver or torch.version.hip or "unknown",
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def summary(result: dict[str, Any]) -> str:
    """The short table that is printed last."""
    tested, warps8 = result["checks"], result["warps8"]
    lines = [
        f"{result['gpu']}, driver {result['driver']}, torch {result['torch']}, triton {result['triton']}",
        f"checks: {tested['checked']}, and {warps8['checked']} with 8 warps; sanitizer: {result['sanitizer']}",
        *(f"WRONG: {text}" for text in tested["failures"]),
        *(f"WRONG with 8 warps: {text}" for text in warps8["failures"]),
        *(f"model {row}" for row in result["models"]),
        f"{'k':>2} {'C':>4} {'size':>4} {'pass':8} {'ms':>8} {'dense':>8} {'speed-up':>8} {'of floor':>8}",
    ]
    for row in result["rows"]:
        gain = "wrong" if row["speedup_vs_dense"] is None else f"{row['speedup_vs_dense']:.2f}"
        lines.append(
            f"{row['kernel_size']:>2} {row['channels']:>4} {row['size']:>4} {row['pass']:8} {row['ms']:8.3f} "
            f"{row['dense_ms']:8.3f} {gain:>8} {row['fraction_of_floor']:8.2f}"
        )
    lines.append("complete" if result["complete"] else "stopped when the time was spent, the most telling rows first")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
