"""Correctness of the Triton backend on this GPU, against float64. Every function here is one job of a worker."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.cases import Layer, Workload
from bench.gpu.truth import difference, full_float32, poisoned_memory
from sre_triton.backends import dense

__all__ = [
    "Finding",
    "Job",
    "check_determinism",
    "check_invariants",
    "check_operations",
    "check_tiles",
    "compile_ahead",
    "jobs",
]

Finding = tuple[int, list[str]]
"""Results that were checked, and what is wrong, in words."""
Job = tuple[str, str, Callable[..., Any], tuple[Any, ...]]
"""Section of the report, description, function and its arguments."""


def jobs(workload: Workload) -> list[Job]:
    """Every check. Tiles of 8 warps have a section of their own: some versions of Triton get them wrong."""
    found: list[Job] = [("checks", f"check of {layer}", check_operations, (layer,)) for layer in workload.checks]
    for size, dtype in itertools.product(((19, 37), (5, 9, 11)), (torch.bfloat16, torch.float16, torch.float32)):
        found.append(("checks", f"check of invariants {size} {dtype}", check_invariants, (size, dtype)))
    found.append(("checks", "check of determinism", check_determinism, (workload.checks[0],)))
    for layer in workload.tiled:
        for warps, section in ((8, "warps8"), (4, "checks")):
            found.append((section, f"check of {layer}, tiles of {warps} warps", check_tiles, (layer, warps)))
    return found


def check_operations(layer: Layer) -> Finding:
    """Forward and all gradients of one layer."""
    from sre_triton.backends import triton

    torch.manual_seed(0)
    (x, weight, grad_y), spec = layer.tensors(), layer.spec
    padding = spec.output_padding(layer.size, grad_y.shape[2:])
    wide_x, wide_weight, wide_grad = x.double(), weight.double(), grad_y.double()
    truth = dense.forward(wide_x, wide_weight, None, spec)
    true_grads = dense.backward(wide_grad, wide_x, wide_weight, spec)
    passes: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...]]] = {
        "forward": (lambda: triton.forward(x, weight, None, spec), (truth,)),
        "grad_x": (lambda: triton.transpose(grad_y, weight, None, spec, padding), true_grads[:1]),
        "grad_w": (lambda: triton.weight_grad(x, grad_y, spec), true_grads[1:]),
        "backward": (lambda: triton.backward(grad_y, x, weight, spec), true_grads),
    }
    failures: list[str] = []
    for name, (call, expected) in passes.items():
        with _guard(failures, name), poisoned_memory(), full_float32():
            results = call()
            for result, true in zip(results if isinstance(results, tuple) else (results,), expected, strict=True):
                if problem := difference(result, true):
                    failures.append(f"{name}: {problem}")
    return len(passes), failures


def check_tiles(layer: Layer, warps: int) -> Finding:
    """Forward with some of the tiles that the heuristic may pick for other channels and sizes."""
    from sre_triton.backends.triton import devices, launch, taps, tiles

    torch.manual_seed(0)
    (x, weight, _), spec = layer.tensors(), layer.spec
    truth = dense.forward(x.double(), weight.double(), None, spec)
    problem = tiles.Problem(
        taps=taps.conv_taps(spec).taps, stride=(1, *spec.stride), dtype=x.dtype, groups=1, c_in=layer.channels[0],
        c_out=layer.channels[1], batch=layer.batch, height=truth.shape[2], width=truth.shape[3],
        device=devices.device_limits(x.device),
    )  # fmt: skip
    found = [tile for tile in tiles.candidates(problem) if tile.warps == warps]
    some = found[:: max(1, len(found) // 6)]
    failures: list[str] = []
    for tile in some:
        with _guard(failures, str(tile)), poisoned_memory():
            if problem_found := difference(launch.fused_forward(x, weight, None, spec, tile=tile), truth):
                failures.append(f"{tile}: {problem_found}")
    return len(some), failures


def check_invariants(size: tuple[int, ...], dtype: torch.dtype) -> Finding:
    """Every kind of differential invariant at two scales, and the gradient, of random maps of this size."""
    from sre_triton.backends import triton
    from sre_triton.invariants import formulas

    torch.manual_seed(0)
    spec = formulas.Spec(len(size), formulas.KINDS, (1, 2), 1e-2)
    z = torch.randn(2, 8, *size, device="cuda", dtype=dtype)
    grad_y = torch.randn(2, 8 * spec.per_channel, *size, device="cuda", dtype=dtype)
    wide = z.double().requires_grad_()
    truth = formulas.maps(wide, spec, torch.float64)
    (true_grad,) = torch.autograd.grad(truth, wide, grad_y.double())
    arguments = tuple(range(len(spec.kinds))), spec.dilations, spec.eps
    calls: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "forward": (lambda: triton.invariants_forward(z, *arguments), truth.detach()),
        "backward": (lambda: triton.invariants_backward(grad_y, z, *arguments), true_grad),
    }
    failures: list[str] = []
    for name, (call, expected) in calls.items():
        with _guard(failures, name), poisoned_memory():
            if problem := difference(call(), expected):
                failures.append(f"{name}: {problem}")
    return len(calls), failures


def check_determinism(layer: Layer) -> Finding:
    """20 runs of every pass give the same bits."""
    from sre_triton.backends import triton

    torch.manual_seed(0)
    (x, weight, grad_y), spec = layer.tensors(), layer.spec
    padding = spec.output_padding(layer.size, grad_y.shape[2:])
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: triton.forward(x, weight, None, spec),
        "grad_x": lambda: triton.transpose(grad_y, weight, None, spec, padding),
        "grad_w": lambda: triton.weight_grad(x, grad_y, spec),
    }
    failures: list[str] = []
    for name, call in calls.items():
        with _guard(failures, name):
            first = call()
            if not all(torch.equal(first, call()) for _ in range(19)):
                failures.append(f"{name} differs between 20 runs")
    return len(calls), failures


def compile_ahead(layer: Layer, which: str) -> Finding:
    """Fill Triton's cache on disk with the kernels of one pass. ``step`` adds what only the shared backward has."""
    from sre_triton.backends import triton

    (x, weight, grad_y), spec = layer.tensors(), layer.spec
    bias = weight.new_zeros(len(weight)) if layer.bias else None
    if which == "forward":
        triton.forward(x, weight, bias, spec)
    elif which == "grad_x":
        triton.transpose(grad_y, weight, None, spec, spec.output_padding(layer.size, grad_y.shape[2:]))
    elif which == "grad_w":
        triton.weight_grad(x, grad_y, spec)
    else:
        triton.backward(grad_y, x, weight, spec)
    return 0, []


@contextlib.contextmanager
def _guard(failures: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failures.append(f"{what}: {type(error).__name__}: {error}".splitlines()[0][:300])
