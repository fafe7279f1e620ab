"""Correctness of the Triton path on the GPU of this machine, against float64."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sre_triton.backends import dense
from sre_triton.geometry.conv import ConvSpec, conv_spec


class Clock:
    """Seconds left of the time that was granted."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Check:
    """A layer whose results are held against float64."""

    kernel_size: int
    dtype: torch.dtype
    size: tuple[int, ...] = (19, 37)
    channels: tuple[int, int] = (40, 72)
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    antialias: bool = False

    @property
    def spec(self) -> ConvSpec:
        k, n = self.kernel_size, len(self.size)
        padding = (self.dilation * (k // 2),) * n
        strides, dilations = (self.stride,) * n, (self.dilation,) * n
        return conv_spec(n, k, k // 2 + 1, True, self.antialias, strides, padding, dilations, self.groups)


def checks() -> list[Check]:
    """Every kernel and dtype; the variations in bfloat16, which no interpreter can check."""
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    found = [Check(k, dtype) for dtype in (brain, half, single) for k in (9, 3, 5)]
    found += [Check(5, dtype, channels=(64, 64), groups=64) for dtype in (brain, half)]
    found += [Check(3, brain, channels=(64, 32), groups=2), Check(5, brain, stride=2), Check(5, brain, dilation=2)]
    found += [Check(3, brain, stride=2, dilation=3), Check(5, brain, antialias=True), Check(5, half, antialias=True)]
    found += [Check(3, brain, size=(5, 9, 11)), Check(5, brain, size=(301,)), Check(7, brain), Check(11, brain)]
    found += [Check(9, brain, channels=(256, 256), size=(14, 14)), Check(5, brain, channels=(3, 64))]
    return found


Finding = tuple[int, list[str]]  # results that were checked, and what is wrong, in words


def submit(pool: ProcessPoolExecutor) -> list[tuple[str, str, Future[Finding]]]:
    """Start every check in the pool: compiling dominates, and a fault leaves this process alone.

    Returns (section, description, future); tiles of 8 warps have a section of their own.
    """
    jobs = [("checks", str(check), pool.submit(check_operations, check)) for check in checks()]
    jobs.append(("checks", "determinism", pool.submit(check_determinism)))
    for dtype, k, warps in itertools.product((torch.bfloat16, torch.float16), (9, 5, 3), (8, 4)):
        check, section = Check(k, dtype, channels=(128, 128)), "warps8" if warps == 8 else "checks"
        jobs.append((section, f"{check}, {warps} warps", pool.submit(check_tiles, check, warps)))
    return jobs


def collect(jobs: list[tuple[str, str, Future[Finding]]], seconds: float) -> dict[str, Any]:
    """Results by section once all checks are done, or as far as they are after this many seconds."""
    wait([future for _, _, future in jobs], timeout=seconds)
    report: dict[str, Any] = {section: {"checked": 0, "failures": []} for section in ("checks", "warps8")}
    for section, what, future in jobs:
        entry = report[section]
        if not future.done():
            entry["failures"].append(f"{what}: not finished in time")
            continue
        with guard(entry["failures"], what):
            checked, failures = future.result()
            entry["checked"] += checked
            entry["failures"] += failures
    return report


def _operands(check: Check) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    (c_in, c_out), spec = check.channels, check.spec
    x = torch.randn(3, c_in, *check.size, device="cuda").to(check.dtype)
    weight = torch.randn(c_out, c_in // check.groups, spec.geometry.num_rings, device="cuda").to(check.dtype)
    grad_y = torch.randn(3, c_out, *spec.output_size(check.size), device="cuda").to(check.dtype)
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}.get(len(check.size), torch.contiguous_format)
    return x.to(memory_format=memory_format), weight, grad_y


def check_operations(check: Check) -> Finding:
    """Forward and both gradients of one layer."""
    from sre_triton.backends.triton import launch

    (x, weight, grad_y), spec = _operands(check), check.spec
    with poisoned_memory(), full_float32():
        results = {"forward": launch.forward(x, weight, None, spec)}
        results["grad_x"], results["grad_w"] = launch.backward(grad_y, x, weight, spec)
    truths = {"forward": dense.forward(x.double(), weight.double(), None, spec)}
    truths["grad_x"], truths["grad_w"] = dense.backward(grad_y.double(), x.double(), weight.double(), spec)
    found = {name: difference(result, truths[name]) for name, result in results.items()}
    return len(found), [f"{name} {check}: {problem}" for name, problem in found.items() if problem]


def check_tiles(check: Check, warps: int) -> Finding:
    """Forward with some of the tiles that the heuristic may pick for other channels and sizes."""
    from sre_triton.backends.triton import launch, tiles

    (x, weight, _), spec = _operands(check), check.spec
    truth = dense.forward(x.double(), weight.double(), None, spec)
    problem = launch.forward_problem(x, weight, spec)
    found = [tile for tile in tiles.candidates(problem) if tile.warps == warps]
    some = found[:: max(1, len(found) // 6)]
    failures = []
    for tile in some:
        with poisoned_memory():
            y = launch.fused_forward(x, weight, None, spec, tile=tile)
        if wrong := difference(y, truth):
            failures.append(f"{check} {tile}: {wrong}")
    return len(some), failures


def check_determinism() -> Finding:
    """20 runs of every pass give the same bits."""
    from sre_triton.backends.triton import launch

    check = Check(5, torch.bfloat16, channels=(128, 64), size=(56, 56))
    (x, weight, grad_y), spec = _operands(check), check.spec
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: launch.forward(x, weight, None, spec),
        "grad_x": lambda: launch.transpose(grad_y, weight, None, spec, (0, 0)),
        "grad_w": lambda: launch.weight_grad(x, grad_y, spec),
    }
    failures = []
    for name, call in calls.items():
        first = call()
        if not all(torch.equal(first, call()) for _ in range(19)):
            failures.append(f"{name} differs between 20 runs")
    return len(calls), failures


def difference(result: Tensor, truth: Tensor) -> str | None:
    """None, or what is wrong: float32 within 2e-5, 16 bits within three rounding errors of the root mean square."""
    if not result.isfinite().all():
        return f"{int((~result.isfinite()).sum())} elements were not written"
    error, scale = (result.double() - truth).norm(), truth.norm()
    limit = (
        2e-5 if result.dtype == torch.float32 else 3 * float((truth.to(result.dtype).double() - truth).norm() / scale)
    )
    return None if error <= limit * scale else f"relative error {float(error / scale):.1e}, limit {limit:.1e}"


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element which no kernel wrote shows."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: allocate(*args, **kwargs).fill_(float("nan"))

    with mock.patch.object(torch, "empty", poisoned(torch.empty)), contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Tensor, "new_empty", poisoned(Tensor.new_empty)))
        yield


@contextlib.contextmanager
def guard(failures: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failures.append(f"{what}: {type(error).__name__}: {error}".splitlines()[0][:300])


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    switch: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, switch.fp32_precision = switch.fp32_precision, "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


def sanitize() -> str:
    """compute-sanitizer over a few small cases, if it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "compute-sanitizer is not installed"
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu", "--sanitized"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "timed out after 60 s"
    return "no errors" if done.returncode == 0 else done.stdout[-2000:]
